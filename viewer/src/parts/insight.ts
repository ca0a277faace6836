/** Which rows of a long list are drawn. */

const OVERSCAN = 8;

export type Range = { from: number; to: number };

/** Rows to draw for a viewport at `top`. */
export function inSight(top: number, height: number, row: number, total: number): Range {
  const from = Math.max(0, Math.floor(top / row) - OVERSCAN);
  return { from, to: Math.min(total, Math.ceil((top + height) / row) + OVERSCAN) };
}
