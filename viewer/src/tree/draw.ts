/** Drawing of a placed tree on a canvas; only what is in sight. */

import { valueColour } from "../colour";
import { value as shown } from "../format";
import { COLUMN, LANE, type Layout, type Placed } from "./layout";
import { FLAG, type TreeModel } from "./model";

export type View = { scale: number; x: number; y: number };

export type Scene = {
  model: TreeModel;
  layout: Layout;
  dark: boolean;
  selected: number;
  hovered: number;
  /** Nodes of the branch on the right side of the comparison. */
  branch: ReadonlySet<number>;
  forkStep: number;
};

const INK = {
  light: {
    ink: "#1d1e22",
    soft: "#70727a",
    line: "#c3c2bb",
    logged: "#5a5c64",
    branch: "#4b4fc9",
    ground: "#ffffff",
    worse: "#8a4a0c",
    band: "#f4f4f2",
  },
  dark: {
    ink: "#ececee",
    soft: "#8f919a",
    line: "#4a4d57",
    logged: "#aeb0b8",
    branch: "#a3a5ff",
    ground: "#1a1b1f",
    worse: "#eba45c",
    band: "#212227",
  },
};
type Ink = (typeof INK)["light"];

/** By visits; never smaller on the screen than can be seen and hit. */
export function radius(model: TreeModel, node: number, scale: number): number {
  const most = model.tree.nodes.visits[0] || 1;
  return Math.max(1, 0.62 / scale) * 4.5 + 5.5 * Math.sqrt(Math.min(1, model.tree.nodes.visits[node]! / most));
}

export function draw(context: CanvasRenderingContext2D, width: number, height: number, scene: Scene, view: View): void {
  const ink = scene.dark ? INK.dark : INK.light;
  const ratio = devicePixelRatio || 1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  columns(context, width, height, scene, view, ink, false);
  context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  const sight = {
    x0: -view.x / view.scale - COLUMN,
    x1: (width - view.x) / view.scale + COLUMN,
    y0: -view.y / view.scale - LANE,
    y1: (height - view.y) / view.scale + LANE,
  };
  edges(context, scene, sight, view.scale, ink);
  for (const place of scene.layout.placed) {
    if (place.x > sight.x0 && place.x < sight.x1 && place.y > sight.y0 && place.y < sight.y1) drawNode(context, place, scene, view, ink);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  columns(context, width, height, scene, view, ink, true);
}

const HEADING = 24;

/** A line for each step, and their numbers along the top, thinned to what fits. */
function columns(
  context: CanvasRenderingContext2D,
  width: number,
  height: number,
  scene: Scene,
  view: View,
  ink: Ink,
  heading: boolean,
): void {
  const wide = COLUMN * view.scale;
  const every = [1, 2, 5, 10, 20, 50].find((n) => n * wide >= 40) ?? 100;
  const last = scene.layout.bounds.x1 / COLUMN;
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  if (heading) {
    context.fillStyle = ink.ground;
    context.fillRect(0, 0, width, HEADING);
  }
  for (let column = 1; column <= last; column++) {
    const step = scene.forkStep + column - 1;
    const x = view.x + column * wide;
    if (step % every !== 0 || x < -20 || x > width + 20) continue;
    context.fillStyle = heading ? ink.soft : ink.band;
    if (heading) context.fillText(every === 1 && wide > 60 ? `step ${step}` : String(step), x, HEADING / 2 + 1);
    else context.fillRect(x - 0.5, HEADING, 1, height - HEADING);
  }
}

type Sight = { x0: number; x1: number; y0: number; y1: number };

function edges(context: CanvasRenderingContext2D, scene: Scene, sight: Sight, scale: number, ink: Ink): void {
  const { model, layout, branch } = scene;
  const sorts: [(node: number) => boolean, string, number][] = [
    [(node) => !model.has(node, FLAG.logged) && !branch.has(node), ink.line, 1.4],
    [(node) => model.has(node, FLAG.logged), ink.logged, 3],
    [(node) => branch.has(node) && !model.has(node, FLAG.logged), ink.branch, 3],
  ];
  for (const [wanted, colour, width] of sorts) {
    context.beginPath();
    for (const place of layout.placed) {
      if (place.parent < 0 || !wanted(place.node)) continue;
      const from = layout.byNode.get(place.parent)!;
      if (place.x < sight.x0 || from.x > sight.x1 || Math.max(place.y, from.y) < sight.y0 || Math.min(place.y, from.y) > sight.y1) continue;
      line(context, from, place);
    }
    context.strokeStyle = colour;
    context.lineWidth = width / Math.min(1, scale * 1.2);
    context.lineJoin = "round";
    context.stroke();
  }
}

/** Straight in its lane; to another lane by a rounded corner right after the fork. */
function line(context: CanvasRenderingContext2D, from: Placed, to: Placed): void {
  context.moveTo(from.x, from.y);
  if (from.y === to.y) return void context.lineTo(to.x, to.y);
  const turn = from.x + COLUMN * 0.34;
  const bend = Math.min(10, Math.abs(to.y - from.y) / 2) * Math.sign(to.y - from.y);
  const round = Math.abs(bend);
  context.lineTo(turn - round, from.y);
  context.quadraticCurveTo(turn, from.y, turn, from.y + bend);
  context.lineTo(turn, to.y - bend);
  context.quadraticCurveTo(turn, to.y, turn + round, to.y);
  context.lineTo(to.x, to.y);
}

function drawNode(context: CanvasRenderingContext2D, place: Placed, scene: Scene, view: View, ink: Ink): void {
  const { model, dark, selected, hovered } = scene;
  const r = radius(model, place.node, view.scale);
  const colour = valueColour(model.value(place.node), dark);
  shape(context, place, r, model);
  context.fillStyle = colour ?? ink.ground;
  context.fill();
  context.lineWidth = colour ? 1 : 1.6;
  context.setLineDash(colour ? [] : [2.5, 2]);
  context.strokeStyle = colour ? (dark ? "#0008" : "#0003") : ink.soft;
  context.stroke();
  context.setLineDash([]);
  if (place.node === selected || place.node === hovered) ring(context, place, r, place.node === selected ? ink.branch : ink.soft);
  if (view.scale > 0.45) badges(context, place, r, scene, Math.min(1, view.scale), ink);
  if (view.scale > 0.72 || place.node === selected) label(context, place, r, scene, ink);
  if (place.hidden > 0) folded(context, place, r, dark, ink);
}

/** A circle goes on, a square has ended, a diamond was cut off or failed. */
function shape(context: CanvasRenderingContext2D, { x, y, node }: Placed, r: number, model: TreeModel): void {
  context.beginPath();
  if (model.has(node, FLAG.error | FLAG.truncated)) {
    context.moveTo(x, y - r * 1.25);
    context.lineTo(x + r * 1.25, y);
    context.lineTo(x, y + r * 1.25);
    context.lineTo(x - r * 1.25, y);
    context.closePath();
  } else if (model.has(node, FLAG.terminated)) context.roundRect(x - r, y - r, 2 * r, 2 * r, 2);
  else context.arc(x, y, r, 0, 2 * Math.PI);
}

function ring(context: CanvasRenderingContext2D, { x, y }: Placed, r: number, colour: string): void {
  context.beginPath();
  context.arc(x, y, r + 4.5, 0, 2 * Math.PI);
  context.lineWidth = 2;
  context.strokeStyle = colour;
  context.stroke();
}

const GRADE_SIGN: Record<string, string> = { reused: "r", executed: "", simulated: "s", stale: "!", exact: "" };

/** How it ended beside the end, and the grade where it is not the ordinary one. */
function badges(context: CanvasRenderingContext2D, { x, y, node }: Placed, r: number, { model }: Scene, scale: number, ink: Ink): void {
  const { score, reward, grade } = model.tree.nodes;
  const ended = model.has(node, FLAG.terminated | FLAG.truncated | FLAG.error);
  context.textBaseline = "middle";
  if (ended) {
    const worth = score[node] ?? reward[node] ?? model.value(node);
    context.font = `600 ${10.5 / scale}px system-ui, sans-serif`;
    context.textAlign = "left";
    context.fillStyle = ink.ink;
    context.fillText(worth === null || worth === undefined ? "–" : shown(worth), x + r + 6, y);
  }
  const sign = GRADE_SIGN[model.tree.grades[grade[node]!] ?? ""];
  if (!sign) return;
  context.font = `600 ${9 / scale}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.fillStyle = ink.worse;
  context.fillText(sign, x + r + 1, y - r - 2);
}

function label(context: CanvasRenderingContext2D, { x, y, node }: Placed, r: number, { model, selected }: Scene, ink: Ink): void {
  const text = node === 0 ? "" : (model.tree.nodes.label[node] ?? "");
  context.font = "9.5px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "top";
  context.fillStyle = node === selected ? ink.ink : ink.soft;
  context.fillText(node === selected ? text : shortened(context, text), x, y + r + 3);
}

const widths = new Map<string, string>();

/** As much of a label as a column is wide. */
function shortened(context: CanvasRenderingContext2D, text: string): string {
  const known = widths.get(text);
  if (known !== undefined) return known;
  let short = text;
  while (short.length > 1 && context.measureText(short === text ? text : `${short}…`).width > COLUMN - 8) short = short.slice(0, -1);
  const kept = short === text ? text : `${short.trimEnd()}…`;
  widths.set(text, kept);
  return kept;
}

function folded(context: CanvasRenderingContext2D, { x, y, hidden, worth }: Placed, r: number, dark: boolean, ink: Ink): void {
  const text = `+${hidden}`;
  const wide = 9 + text.length * 5.5;
  context.beginPath();
  context.roundRect(x - wide / 2, y - r - 16, wide, 12, 6);
  context.fillStyle = ink.band;
  context.fill();
  context.lineWidth = 1;
  context.strokeStyle = valueColour(worth, dark) ?? ink.line;
  context.stroke();
  context.font = "600 8.5px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = ink.soft;
  context.fillText(text, x, y - r - 9.6);
}

/** The node under a point of the canvas, or its folding sign; null where there is neither. */
export function hit(scene: Scene, view: View, px: number, py: number): { node: number; fold: boolean } | null {
  const [x, y] = [(px - view.x) / view.scale, (py - view.y) / view.scale];
  const slack = 6 / view.scale;
  let best: { node: number; fold: boolean } | null = null;
  let nearest = Infinity;
  for (const place of scene.layout.placed) {
    const r = radius(scene.model, place.node, view.scale);
    const away = Math.hypot(place.x - x, place.y - y);
    if (away < r + slack && away < nearest) [best, nearest] = [{ node: place.node, fold: false }, away];
    if (place.hidden > 0 && Math.abs(place.x - x) < 16 && y > place.y - r - 18 && y < place.y - r - 3)
      return { node: place.node, fold: true };
  }
  return best;
}
