/** Linear and logarithmic scales with round ticks. */

export type Scale = { (value: number): number; ticks: number[]; domain: [number, number] };

/** Round steps of 1, 2 or 5 so that about `count` ticks lie between the bounds. */
export function ticks(low: number, high: number, count = 5): number[] {
  if (!(high > low)) return [low];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 5, 10].find((n) => n * power >= raw * 0.999) ?? 10) * power;
  const found: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

export function linear(domain: [number, number], range: [number, number], count = 5): Scale {
  const [low, high] = domain[1] > domain[0] ? domain : [domain[0] - 0.5, domain[0] + 0.5];
  const scale = (value: number): number => range[0] + ((value - low) / (high - low)) * (range[1] - range[0]);
  return Object.assign(scale, { ticks: ticks(low, high, count), domain: [low, high] as [number, number] });
}

/** Logarithmic to base 2, with the given values as ticks: budgets and best-of-n double. */
export function doubling(values: readonly number[], range: [number, number]): Scale {
  const known = [...new Set(values.filter((v) => v > 0))].sort((a, b) => a - b);
  const [low, high] = [known[0] ?? 1, known.at(-1) ?? 2];
  const inner = linear([Math.log2(low), Math.log2(high)], range);
  const every = Math.ceil(known.length / 8);
  return Object.assign((value: number): number => inner(Math.log2(Math.max(value, low / 2))), {
    ticks: known.filter((_, i) => i % every === 0),
    domain: [low, high] as [number, number],
  });
}
