import { expect, it } from "vitest";
import { pieces, plain } from "./invisible";

it("names what can't be seen", () => {
  expect(pieces("pay \u202e001$")).toEqual([
    { text: "pay ", hidden: false },
    { text: "U+202E", hidden: true },
    { text: "001$", hidden: false },
  ]);
  expect(plain("a\u200bb\ufeff\u0000\u{e0041}")).toBe("a⟨U+200B⟩b⟨U+FEFF⟩⟨U+0000⟩⟨U+E0041⟩");
});

it("keeps joiners of emoji and of words that need them, and names them between Latin letters", () => {
  expect(plain("👩‍👧 می‌خواهم")).toBe("👩‍👧 می‌خواهم");
  expect(plain("pass\u200dword 日\u200dword")).toBe("pass⟨U+200D⟩word 日⟨U+200D⟩word");
});

it("leaves ordinary text alone", () => {
  for (const text of ["", "plain\n\ttext", "日本語", "<script>"]) expect(pieces(text)).toEqual([{ text, hidden: false }]);
});
