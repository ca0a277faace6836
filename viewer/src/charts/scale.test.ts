import { expect, it } from "vitest";
import { doubling, linear, ticks } from "./scale";

it("ticks are round and within the bounds", () => {
  expect(ticks(0, 1, 4)).toEqual([0, 0.5, 1]);
  expect(ticks(0.0003, 0.0042, 4)).toEqual([0.001, 0.002, 0.003, 0.004]);
  expect(ticks(3, 3)).toEqual([3]);
});

it("scales map the bounds of one on those of the other", () => {
  const y = linear([0, 10], [100, 0]);
  expect([y(0), y(5), y(10)]).toEqual([100, 50, 0]);
  const x = doubling([1, 2, 4, 8], [0, 30]);
  expect([x(1), x(2), x(8)]).toEqual([0, 10, 30]);
  expect(x.ticks).toEqual([1, 2, 4, 8]);
});

it("a scale of one value has room on both sides", () => {
  expect(linear([2, 2], [0, 10])(2)).toBe(5);
});
