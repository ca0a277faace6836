import { describe, expect, it } from "vitest";
import { aligned } from "./align";
import { COLUMN, LANE, layout } from "./layout";
import { made, random, step } from "./made";
import { FLAG } from "./model";

const LOGGED = FLAG.logged;
const BEST = FLAG.best;
// 0 - 1 - 2 - 3 is the log; 4 - 5 leaves it at 1 and is the best; 6 leaves it at 2
const FORKED = [
  { parent: -1, flags: LOGGED | BEST },
  { parent: 0, flags: LOGGED | BEST, value: 0.4 },
  { parent: 1, flags: LOGGED, value: 0.1 },
  { parent: 2, flags: LOGGED, value: 0 },
  { parent: 1, flags: BEST, value: 0.9 },
  { parent: 4, flags: BEST, value: 1 },
  { parent: 2, value: 0.2 },
];

describe("model", () => {
  it("finds both branches and the fork", () => {
    const model = made(FORKED, { logged_tip: 3, best: 5 });
    expect(model.branches(3, 5)).toEqual({ fork: 1, shared: [1], left: [2, 3], right: [4, 5] });
    expect(model.bestOffLog()).toBe(5);
    expect(model.leafBelow(4)).toBe(5);
  });

  it("has children in reading order: the log, the best, then by worth and visits", () => {
    const nodes = [0.2, 0.8, 0.8, 0.1, 0.3].map((value, i) => ({
      parent: 0,
      value,
      visits: i,
      flags: i === 3 ? LOGGED : i === 4 ? BEST : 0,
    }));
    expect(made([{ parent: -1 }, ...nodes]).children[0]).toEqual([4, 5, 3, 2, 1]);
  });

  it("looks beside the log where the log itself is the best", () => {
    const model = made(
      FORKED.map((node) => ({ ...node, flags: (node.flags ?? 0) & LOGGED })),
      { logged_tip: 3, best: 3 },
    );
    expect(model.bestOffLog()).toBe(5);
  });

  it("folds what was never visited, and what is over the first ends, but never the log or the best", () => {
    const pruned = made([...FORKED, { parent: 1, visits: 0 }, { parent: 2, visits: 0, flags: LOGGED }]);
    expect([...pruned.foldedAtFirst()]).toEqual([7]);
    const many = random(3000, 5);
    const folded = many.foldedAtFirst();
    const { placed } = layout(many, folded);
    const ends = placed.filter(({ node }) => !placed.some(({ parent }) => parent === node));
    expect(ends.length).toBeLessThanOrEqual(61);
    expect(placed.reduce((sum, place) => sum + place.hidden, 0) + placed.length).toBe(3000);
  });
});

describe("layout", () => {
  it("keeps the log straight, lets the best rise and hangs the rest below", () => {
    const { byNode } = layout(made(FORKED, { logged_tip: 3, best: 5 }), new Set());
    expect([0, 1, 2, 3].map((node) => byNode.get(node)!.y)).toEqual([0, 0, 0, 0]);
    expect(byNode.get(5)).toMatchObject({ x: 3 * COLUMN, y: -LANE });
    expect(byNode.get(6)!.y).toBe(LANE);
  });

  it("puts no node on another, and no line across another branch", () => {
    for (let seed = 1; seed < 40; seed++) {
      const model = random(250, seed);
      const { placed, byNode } = layout(model, new Set());
      const places = new Set(placed.map(({ x, y }) => `${x}/${y}`));
      expect(places.size).toBe(250);
      for (const { x, y, parent } of placed) {
        const from = byNode.get(parent);
        if (!from || from.y === y) continue;
        const [low, high] = [Math.min(from.y, y), Math.max(from.y, y)];
        const crossed = placed.filter(
          (other) => other.x === x && other.y > low && other.y < high && byNode.get(other.parent)!.y === other.y,
        );
        expect(crossed).toEqual([]);
      }
    }
  });
});

describe("aligned", () => {
  it("faces the first differing actions and then equal ones, ids and key order apart", () => {
    const left = [step("post", { a: 1002 }), step("balance", {}, "off"), step("close", { b: 1, a: 2 })];
    const right = [step("post", { a: 1001 }), step("convert", {}), step("balance", {}, "even"), step("close", { a: 2, b: 1 })];
    expect(aligned(left, right).map(({ left: l, right: r, kind }) => [l?.step.calls[0]!.name, r?.step.calls[0]!.name, kind])).toEqual([
      ["post", "post", "differs"],
      [undefined, "convert", "differs"],
      ["balance", "balance", "result"],
      ["close", "close", "same"],
    ]);
  });

  it("has a row for every step of both", () => {
    const left = [step("a", {}), step("b", {}), step("c", {})];
    expect(aligned(left, [step("z", {})]).flatMap((pair) => (pair.left ? [pair.left] : []))).toEqual(left);
    expect(aligned([], left).map((pair) => pair.right)).toEqual(left);
  });
});
