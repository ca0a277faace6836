/** Numbers, times and amounts as people read them. `null` is "not known" and is shown as a dash, never as zero. */

export const DASH = "–";

export const number = (value: number | null | undefined): string => (value == null ? DASH : value.toLocaleString("en-US"));

export function value(q: number | null | undefined): string {
  return q == null ? DASH : q.toFixed(2).replace("-", "−");
}

export function percent(share: number | null | undefined, digits = 0): string {
  return share == null ? DASH : `${(share * 100).toFixed(digits)} %`;
}

export function usd(amount: number | null | undefined): string {
  if (amount == null) return DASH;
  if (amount !== 0 && amount < 0.01) return `$${amount.toPrecision(2)}`;
  return `$${amount.toFixed(amount < 10 ? 3 : 2)}`;
}

export function seconds(s: number | null | undefined): string {
  if (s == null) return DASH;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 90) return `${s.toFixed(1)} s`;
  return s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

export function compact(count: number | null | undefined): string {
  if (count == null) return DASH;
  if (count < 10_000) return number(count);
  return count < 1e6 ? `${(count / 1e3).toFixed(count < 1e5 ? 1 : 0)} k` : `${(count / 1e6).toFixed(1)} M`;
}

/** Local date and minute of a time in microseconds since 1970. */
export function when(us: number | null | undefined): string {
  if (us == null) return DASH;
  const date = new Date(us / 1000);
  const two = (part: number): string => String(part).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

export const plural = (count: number, one: string, many = `${one}s`): string => `${number(count)} ${count === 1 ? one : many}`;

/** JSON text indented; anything that isn't JSON as it is. */
export function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

export function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
