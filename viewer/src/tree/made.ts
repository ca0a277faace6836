/** Trees for tests, from lists of parents. */
import type { StepView, Tree } from "../types";
import { TreeModel } from "./model";

type Node = { parent: number; value?: number | null; visits?: number; flags?: number };

export function made(nodes: Node[], rest: Partial<Tree> = {}): TreeModel {
  const column = <T>(of: (node: Node, index: number) => T): T[] => nodes.map(of);
  const depth: number[] = [];
  nodes.forEach((node, i) => (depth[i] = node.parent < 0 ? 0 : depth[node.parent]! + 1));
  return new TreeModel({
    search: {
      id: "s",
      algorithm: "mcts",
      trace: null,
      task: null,
      fork_step: 0,
      nodes: nodes.length,
      finished: 0,
      stopped: "",
      best: null,
    },
    config: {},
    used: { simulations: 0, model_calls: 0, tokens: 0, usd: 0, tool_calls: 0, seconds: 0 },
    failures: {},
    root_steps: 0,
    nodes: {
      parent: column((node) => node.parent),
      depth,
      action: column((_, i) => `act(${i})`),
      label: column((_, i) => `act ${i}`),
      visits: column((node) => node.visits ?? 1),
      value: column((node) => node.value ?? null),
      score: column(() => null),
      verifier: column(() => -1),
      prior: column(() => 1),
      grade: column(() => 0),
      flags: column((node) => node.flags ?? 0),
      reward: column(() => null),
      best_below: column(() => null),
    },
    verifiers: [],
    grades: ["exact"],
    reasons: {},
    logged_tip: null,
    best: null,
    ...rest,
  });
}

/** A tree of `size` nodes whose shape follows from a seed. */
export function random(size: number, seed: number): TreeModel {
  let state = seed;
  const draw = (below: number): number => ((state = (state * 1103515245 + 12345) & 0x7fffffff) >> 8) % below;
  return made(
    Array.from({ length: size }, (_, i) => ({
      parent: i === 0 ? -1 : Math.max(0, i - 1 - draw(Math.min(i, 9))),
      value: draw(100) / 100,
      visits: draw(9),
    })),
  );
}

export function step(name: string, args: object, result = "ok"): { step: StepView } {
  const message = {
    role: "tool",
    text: result,
    reasoning: null,
    name: null,
    tool_call_id: "c",
    wire: "{}",
    grade: "exact" as const,
    is_error: false,
  };
  const call = { id: "c", name, arguments: JSON.stringify(args), result: message };
  const rest = {
    index: 0,
    text: "",
    reasoning: null,
    followed: [],
    sampled: true,
    terminated: false,
    truncated: false,
    error: null,
    reward: null,
  };
  return { step: { ...rest, calls: [call], grade: "exact", scores: [], value: null, failing: "", call: null, wire: "{}" } };
}
