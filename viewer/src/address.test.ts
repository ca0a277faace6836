import { expect, it } from "vitest";
import { href, parseRoute } from "./address";

it("writes an address that reads back, whatever the id holds", () => {
  for (const id of ["plain", "a/b?c#d", "javascript:alert(1)", "日 %41", "\u202e"]) {
    const route = parseRoute(href("traces", id, { step: 3, agent: "" }));
    expect([route.page, route.id, route.query.get("step"), route.query.get("agent")]).toEqual(["traces", id, "3", ""]);
  }
});

it("is always a fragment", () => {
  expect(href("traces", "//evil.example/x").startsWith("#/traces/")).toBe(true);
  expect(href("traces", "javascript:alert(1)")).toBe("#/traces/javascript%3Aalert(1)");
});

it("takes an address that was cut", () => {
  expect(parseRoute("#/traces/%E0%A4")).toMatchObject({ page: "traces", id: "%E0%A4" });
  expect(parseRoute("")).toMatchObject({ page: "traces", id: null });
});
