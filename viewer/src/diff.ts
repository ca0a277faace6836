/** Differences between two texts by words, and between two JSON values by their leaves. Myers' O(ND) algorithm, bounded. */

export type Part = { text: string; kind: "same" | "removed" | "added" };
export type Sides = { left: Part[]; right: Part[] };

const WORD = /[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu;
const MOST_EDITS = 1500;

export const words = (text: string): string[] => text.match(WORD) ?? [];

type Edit = { kind: Part["kind"]; text: string };

/** The shortest edit script from `a` to `b`; null where it would need more than `most` edits. */
export function script(a: readonly string[], b: readonly string[], most = MOST_EDITS): Edit[] | null {
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const middle = myers(a.slice(head, a.length - tail), b.slice(head, b.length - tail), most);
  if (middle === null) return null;
  const same = (text: string): Edit => ({ kind: "same", text });
  return [...a.slice(0, head).map(same), ...middle, ...a.slice(a.length - tail).map(same)];
}

function myers(a: readonly string[], b: readonly string[], most: number): Edit[] | null {
  const limit = Math.min(a.length + b.length, most);
  const offset = limit + 1;
  let furthest = new Int32Array(2 * limit + 3);
  const kept: Int32Array[] = [];
  for (let d = 0; d <= limit; d++) {
    kept.push(furthest.slice());
    for (let k = -d; k <= d; k += 2) {
      let x = comesDown(furthest, offset, k, d) ? at(furthest, offset + k + 1) : at(furthest, offset + k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      furthest[offset + k] = x;
      if (x >= a.length && x - k >= b.length) return walked(a, b, kept, offset);
    }
  }
  return null;
}

const at = (array: Int32Array, index: number): number => array[index] ?? 0;

const comesDown = (furthest: Int32Array, offset: number, k: number, d: number): boolean =>
  k === -d || (k !== d && at(furthest, offset + k - 1) < at(furthest, offset + k + 1));

function walked(a: readonly string[], b: readonly string[], kept: Int32Array[], offset: number): Edit[] {
  const edits: Edit[] = [];
  let x = a.length;
  let y = b.length;
  for (let d = kept.length - 1; d >= 0; d--) {
    const furthest = kept[d]!;
    const k = x - y;
    const down = comesDown(furthest, offset, k, d);
    const from = down ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : at(furthest, offset + from);
    const fromY = d === 0 ? 0 : fromX - from;
    while (x > fromX && y > fromY) (edits.push({ kind: "same", text: a[--x]! }), y--);
    if (d > 0) edits.push(down ? { kind: "added", text: b[--y]! } : { kind: "removed", text: a[--x]! });
  }
  return edits.reverse();
}

function joined(edits: readonly Edit[], leftOut: Part["kind"]): Part[] {
  const parts: Part[] = [];
  for (const edit of edits) {
    if (edit.kind === leftOut) continue;
    const last = parts.at(-1);
    if (last && last.kind === edit.kind) last.text += edit.text;
    else parts.push({ ...edit });
  }
  return parts;
}

/** White space between two changes belongs to them, and so do few equal words in texts that have little in common. */
function cleaned(edits: readonly Edit[]): Edit[] {
  const letters = (kind: Part["kind"] | null): number =>
    edits.reduce((sum, edit) => sum + (kind === null || edit.kind === kind ? edit.text.trim().length : 0), 0);
  const alike = letters("same") * 4 >= letters(null) - letters("same");
  const both = (text: string): Edit[] => [
    { kind: "removed", text },
    { kind: "added", text },
  ];
  const changed = (edit: Edit | undefined): boolean => edit !== undefined && edit.kind !== "same";
  return edits.flatMap((edit, i) => {
    if (edit.kind !== "same") return [edit];
    const bridge = edit.text.trim() === "" && changed(edits[i - 1]) && changed(edits[i + 1]);
    return bridge || !alike ? both(edit.text) : [edit];
  });
}

/** Both texts cut into parts that are the same and parts that are not. Texts too different to align are all different. */
export function wordDiff(left: string, right: string): Sides {
  if (left === right) return { left: [{ text: left, kind: "same" }], right: [{ text: right, kind: "same" }] };
  const found = script(words(left), words(right));
  if (found === null) return { left: [{ text: left, kind: "removed" }], right: [{ text: right, kind: "added" }] };
  const edits = cleaned(found);
  return { left: joined(edits, "added"), right: joined(edits, "removed") };
}

export type JsonLine = {
  depth: number;
  key: string;
  left: string | null;
  right: string | null;
  kind: "same" | "changed" | "removed" | "added";
};

type Value = unknown;
const isObject = (value: Value): value is Record<string, Value> => typeof value === "object" && value !== null && !Array.isArray(value);

/** One line a leaf, in the left one's order of keys, with what each side says there; null where a side has no such leaf. */
export function jsonDiff(left: Value, right: Value, key = "", depth = 0): JsonLine[] {
  const pairs = paired(left, right);
  if (pairs === null) return [leafLine(left, right, key, depth)];
  const lines = pairs.flatMap(([name, a, b]) => jsonDiff(a, b, name, key === "" && depth === 0 ? 0 : depth + 1));
  return key === "" ? lines : [{ depth, key, left: "", right: "", kind: "same" }, ...lines];
}

function paired(left: Value, right: Value): [string, Value, Value][] | null {
  const one = left === undefined ? right : left;
  const other = right === undefined ? left : right;
  const side = (value: Value, name: string | number): Value =>
    value === undefined || value === null ? undefined : (value as Record<string | number, Value>)[name];
  if (isObject(one) && isObject(other)) {
    const names = [...new Set([...Object.keys(one), ...Object.keys(other)])];
    return names.length ? names.map((name) => [name, own(left, name), own(right, name)]) : null;
  }
  if (Array.isArray(one) && Array.isArray(other)) {
    const length = Math.max(one.length, other.length);
    return length ? Array.from({ length }, (_, i) => [`[${i}]`, side(left, i), side(right, i)]) : null;
  }
  return null;
}

const own = (value: Value, name: string): Value => (isObject(value) && Object.hasOwn(value, name) ? value[name] : undefined);

function leafLine(left: Value, right: Value, key: string, depth: number): JsonLine {
  const [a, b] = [shown(left), shown(right)];
  const kind = a === b ? "same" : a === null ? "added" : b === null ? "removed" : "changed";
  return { depth, key, left: a, right: b, kind };
}

const shown = (value: Value): string | null => (value === undefined ? null : typeof value === "string" ? value : JSON.stringify(value));
