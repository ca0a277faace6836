import { describe, expect, it } from "vitest";
import { jsonDiff, script, wordDiff, words } from "./diff";

const text = (parts: { text: string }[]): string => parts.map((part) => part.text).join("");

/** Random words from a seed, so that a failure can be had again. */
function sentence(seed: number, length: number): string[] {
  let state = seed;
  return Array.from({ length }, () => "abcd"[((state = (state * 1103515245 + 12345) & 0x7fffffff) >> 16) & 3]!);
}

/** The least number of edits, by the slow textbook table. */
function distance(a: string[], b: string[]): number {
  let row = b.map((_, i) => i + 1);
  row.unshift(0);
  for (const [i, x] of a.entries()) {
    const next = [i + 1];
    for (const [j, y] of b.entries()) next.push(x === y ? row[j]! : 1 + Math.min(row[j + 1]!, next[j]!));
    row = next;
  }
  return row.at(-1)!;
}

describe("script", () => {
  it("gives both sides back and needs no more edits than the textbook", () => {
    for (let seed = 1; seed < 200; seed++) {
      const [a, b] = [sentence(seed, seed % 13), sentence(seed * 7, (seed * 5) % 11)];
      const edits = script(a, b)!;
      expect(edits.filter((e) => e.kind !== "added").map((e) => e.text)).toEqual(a);
      expect(edits.filter((e) => e.kind !== "removed").map((e) => e.text)).toEqual(b);
      expect(edits.filter((e) => e.kind !== "same").length).toBe(distance(a, b));
    }
  });

  it("gives up beyond its bound, and the texts then differ as a whole", () => {
    const [a, b] = [Array.from({ length: 900 }, (_, i) => `a${i}`), Array.from({ length: 900 }, (_, i) => `b${i}`)];
    expect(script(a, b)).toBeNull();
    expect(wordDiff(a.join(" "), b.join(" ")).left).toEqual([{ text: a.join(" "), kind: "removed" }]);
  });
});

describe("wordDiff", () => {
  it("marks the words that differ and nothing else", () => {
    const { left, right } = wordDiff("book 1002 to 18", "book 1001 to 18");
    expect(left.filter((part) => part.kind !== "same")).toEqual([{ text: "1002", kind: "removed" }]);
    expect(right.filter((part) => part.kind !== "same")).toEqual([{ text: "1001", kind: "added" }]);
    expect(text(left)).toBe("book 1002 to 18");
  });

  it("cuts no character of any language", () => {
    const odd = "naïve 日本語 👩‍👩‍👧 \u202eא\n<script>";
    expect(words(odd).join("")).toBe(odd);
  });
});

describe("jsonDiff", () => {
  it("says for each leaf what either side holds", () => {
    const lines = jsonDiff({ a: 1, b: { c: "x" }, gone: true }, { b: { c: "y" }, a: 1, more: [2] });
    expect(lines.map(({ key, left, right, kind }) => [key, left, right, kind])).toEqual([
      ["a", "1", "1", "same"],
      ["b", "", "", "same"],
      ["c", "x", "y", "changed"],
      ["gone", "true", null, "removed"],
      ["more", "", "", "same"],
      ["[0]", null, "2", "added"],
    ]);
  });

  it("takes names of Object's own for what they are", () => {
    const lines = jsonDiff(JSON.parse('{"constructor": 1, "__proto__": 2}'), {});
    expect(lines.map(({ key, left, right }) => [key, left, right])).toEqual([
      ["constructor", "1", null],
      ["__proto__", "2", null],
    ]);
  });
});

describe("what is marked", () => {
  it("is one mark where words in a row differ, and everything where next to nothing is alike", () => {
    expect(wordDiff("pay the old bill now", "pay the new invoice now").left.map((part) => part.text)).toEqual([
      "pay the ",
      "old bill",
      " now",
    ]);
    expect(wordDiff("Booked as run 0.", "Posted 3.").left).toEqual([{ text: "Booked as run 0.", kind: "removed" }]);
  });
});
