/** Value as colour: brown (0) over grey (0.5) to teal (1). Distinguishable with every common colour blindness, and never the only sign. */

type Rgb = readonly [number, number, number];

const LIGHT: readonly Rgb[] = [
  [155, 84, 18],
  [205, 154, 84],
  [200, 200, 196],
  [94, 178, 166],
  [1, 118, 104],
];
const DARK: readonly Rgb[] = [
  [222, 136, 58],
  [176, 120, 66],
  [110, 112, 118],
  [66, 158, 146],
  [74, 214, 192],
];

/** The colour of a value in [0, 1]; null for none. */
export function valueColour(value: number | null, dark: boolean): string | null {
  if (value === null || Number.isNaN(value)) return null;
  const stops = dark ? DARK : LIGHT;
  const place = Math.min(1, Math.max(0, value)) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const [a, b] = [stops[low]!, stops[low + 1]!];
  const mixed = a.map((part, i) => Math.round(part + (b[i]! - part) * (place - low)));
  return `rgb(${mixed.join(" ")})`;
}

export const valueGradient = (dark: boolean): string =>
  `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map((v) => valueColour(v, dark)).join(", ")})`;
