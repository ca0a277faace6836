/** Characters that a reader can't see but that change what is read: direction overrides, zero-width and control characters. */

const HIDDEN =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
const JOINERS = new Set(["\u200c", "\u200d"]);

export type Piece = { text: string; hidden: boolean };

const isAscii = (text: string | undefined): boolean => text === undefined || text.charCodeAt(0) < 128;

/** `text` cut at its hidden characters, each of which is named (U+202E). Joiners inside emoji and non-Latin words stay as they are. */
export function pieces(text: string): Piece[] {
  const found: Piece[] = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    const [mark] = match;
    const end = match.index + mark.length;
    if (JOINERS.has(mark) && !isAscii(text[match.index - 1]) && !isAscii(text[end])) continue;
    if (match.index > from) found.push({ text: text.slice(from, match.index), hidden: false });
    found.push({ text: `U+${mark.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}`, hidden: true });
    from = end;
  }
  if (from < text.length || found.length === 0) found.push({ text: text.slice(from), hidden: false });
  return found;
}

/** `text` for places that hold no elements, such as options and titles. */
export const plain = (text: string): string =>
  pieces(text)
    .map((piece) => (piece.hidden ? `⟨${piece.text}⟩` : piece.text))
    .join("");
