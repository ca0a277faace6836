/** Two branches as rows: the first differing actions face each other, and after them equal actions do. */

import { script } from "../diff";
import type { StepView } from "../types";

export type Pair<S> = { left: S | null; right: S | null; kind: "differs" | "same" | "result" };

/** What a step does, whatever its ids: tool calls with canonical arguments where there are any, else its text. */
export function signature(step: StepView): string {
  if (step.calls.length === 0) return `say(${step.text.split(/\s+/).join(" ").trim()})`;
  return step.calls.map((call) => `${call.name}(${canonical(call.arguments)})`).join("; ");
}

function canonical(text: string): string {
  try {
    return JSON.stringify(sorted(JSON.parse(text)));
  } catch {
    return text;
  }
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, part]) => [name, sorted(part)]),
  );
}

const results = (step: StepView): string =>
  JSON.stringify([step.calls.map((call) => call.result?.text ?? null), step.followed.map((message) => message.text)]);

/** Rows in order. The first row holds both first steps, which differ; further on, steps that do the same stand side by side. */
export function aligned<S extends { step: StepView }>(left: readonly S[], right: readonly S[]): Pair<S>[] {
  const first: Pair<S>[] = left[0] && right[0] ? [paired(left[0], right[0])] : [];
  const skip = first.length;
  return [...first, ...rest(left.slice(skip), right.slice(skip))];
}

function paired<S extends { step: StepView }>(a: S, b: S): Pair<S> {
  if (signature(a.step) !== signature(b.step)) return { left: a, right: b, kind: "differs" };
  return { left: a, right: b, kind: results(a.step) === results(b.step) ? "same" : "result" };
}

function rest<S extends { step: StepView }>(left: readonly S[], right: readonly S[]): Pair<S>[] {
  const edits =
    script(
      left.map((at) => signature(at.step)),
      right.map((at) => signature(at.step)),
    ) ?? [];
  const pairs: Pair<S>[] = [];
  let [l, r, lefts, rights] = [0, 0, [] as S[], [] as S[]];
  const flush = (): void => {
    for (let i = 0; i < Math.max(lefts.length, rights.length); i++)
      pairs.push({ left: lefts[i] ?? null, right: rights[i] ?? null, kind: "differs" });
    [lefts, rights] = [[], []];
  };
  for (const edit of edits) {
    if (edit.kind === "removed") lefts.push(left[l++]!);
    else if (edit.kind === "added") rights.push(right[r++]!);
    else {
      flush();
      pairs.push(paired(left[l++]!, right[r++]!));
    }
  }
  flush();
  return pairs;
}
