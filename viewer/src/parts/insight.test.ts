import { expect, it } from "vitest";
import { inSight } from "./insight";

it("draws what is in sight and a little more, whatever the length", () => {
  expect(inSight(0, 400, 40, 100_000)).toEqual({ from: 0, to: 18 });
  const { from, to } = inSight(2_000_000, 400, 40, 100_000);
  expect(from).toBeLessThanOrEqual(50_000);
  expect(to).toBeGreaterThanOrEqual(50_010);
  expect(to - from).toBeLessThan(40);
  expect(inSight(1e9, 400, 40, 7)).toMatchObject({ to: 7 });
});
