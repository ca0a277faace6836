/** A search tree as the page needs it: children in reading order, what is folded, and the two branches to compare. */

import type { Tree } from "../types";

export const FLAG = { logged: 1, terminated: 2, truncated: 4, error: 8, best: 16, contested: 32, sampled: 64 } as const;
/** Above this many ends the less visited branches are folded until somebody opens them. */
const ENDS_AT_FIRST = 60;

export type Branches = { fork: number; left: number[]; right: number[]; shared: number[] };

export class TreeModel {
  readonly size: number;
  readonly children: readonly (readonly number[])[];
  /** Leaves at or below each node. */
  readonly ends: Int32Array;
  readonly below: Int32Array;

  constructor(readonly tree: Tree) {
    const { parent } = tree.nodes;
    this.size = parent.length;
    this.ends = new Int32Array(this.size);
    this.below = new Int32Array(this.size);
    const children: number[][] = Array.from({ length: this.size }, () => []);
    for (let i = this.size - 1; i > 0; i--) {
      children[parent[i]!]!.push(i);
      if (this.ends[i] === 0) this.ends[i] = 1;
      this.ends[parent[i]!]! += this.ends[i]!;
      this.below[parent[i]!]! += this.below[i]! + 1;
    }
    if (this.ends[0] === 0) this.ends[0] = 1;
    for (const siblings of children) siblings.sort((a, b) => this.before(a, b));
    this.children = children;
  }

  has(node: number, flag: number): boolean {
    return (this.tree.nodes.flags[node]! & flag) !== 0;
  }

  /** Q, or the verifier's score where the node was never visited; null without either. */
  value(node: number): number | null {
    return this.tree.nodes.value[node] ?? this.tree.nodes.score[node] ?? null;
  }

  worth(node: number): number | null {
    return this.tree.nodes.best_below[node] ?? this.value(node);
  }

  /** The logged child first, then the best path, then what is worth most. */
  private before(a: number, b: number): number {
    const rank = (node: number): number => (this.has(node, FLAG.logged) ? 2 : 0) + (this.has(node, FLAG.best) ? 1 : 0);
    const { visits } = this.tree.nodes;
    return rank(b) - rank(a) || (this.worth(b) ?? -1) - (this.worth(a) ?? -1) || visits[b]! - visits[a]! || a - b;
  }

  path(node: number): number[] {
    const nodes: number[] = [];
    for (let at = node; at >= 0; at = this.tree.nodes.parent[at]!) nodes.push(at);
    return nodes.reverse();
  }

  /** Down from a node along what is worth most, to a leaf. */
  leafBelow(node: number): number {
    let at = node;
    for (;;) {
      const [first, ...rest] = this.children[at]!;
      if (first === undefined) return at;
      at = rest.reduce((best, child) => ((this.worth(child) ?? -1) > (this.worth(best) ?? -1) ? child : best), first);
    }
  }

  /** The best end of a branch that left the log; null where none is valued. */
  bestOffLog(): number | null {
    const { best } = this.tree;
    if (best !== null && !this.has(best, FLAG.logged)) return best;
    let found: number | null = null;
    for (let i = 1; i < this.size; i++) {
      if (this.children[i]!.length > 0 || this.has(i, FLAG.logged) || this.value(i) === null) continue;
      if (found === null || this.value(i)! > this.value(found)!) found = i;
    }
    return found;
  }

  /** Two branches below the last node that they share. */
  branches(left: number, right: number): Branches {
    const [a, b] = [this.path(left), this.path(right)];
    let same = 0;
    while (same < a.length && a[same] === b[same]) same++;
    return { fork: a[same - 1] ?? 0, shared: a.slice(1, same), left: a.slice(same), right: b.slice(same) };
  }

  /** Children that are folded away unless their parent is opened: never visited without an opinion, or beyond what fits at first. */
  foldedAtFirst(): Set<number> {
    const folded = new Set<number>();
    const { visits, score } = this.tree.nodes;
    for (let i = 1; i < this.size; i++) {
      if (visits[i] === 0 && score[i] === null && this.children[i]!.length === 0 && !this.kept(i)) folded.add(i);
    }
    this.foldLeastVisited(folded);
    return folded;
  }

  private kept(node: number): boolean {
    return this.has(node, FLAG.logged) || this.has(node, FLAG.best);
  }

  /** Branches by visits until enough ends are in sight; the others are folded where they begin. */
  private foldLeastVisited(folded: Set<number>): void {
    if (this.ends[0]! - folded.size <= ENDS_AT_FIRST) return;
    const { visits, parent } = this.tree.nodes;
    const shown = new Set<number>([0]);
    let ends = 1;
    const order = Array.from({ length: this.size }, (_, i) => i).filter((i) => !folded.has(i));
    order.sort((a, b) => Number(this.kept(b)) - Number(this.kept(a)) || visits[b]! - visits[a]! || a - b);
    const opened = new Set<number>();
    const show = (node: number): void => {
      for (let at = node; !shown.has(at); at = parent[at]!) {
        shown.add(at);
        if (opened.has(parent[at]!)) ends++;
        opened.add(parent[at]!);
      }
    };
    for (const node of order) if (this.kept(node) || ends < ENDS_AT_FIRST) show(node);
    for (let i = 1; i < this.size; i++) if (!shown.has(i) && shown.has(parent[i]!)) folded.add(i);
  }
}
