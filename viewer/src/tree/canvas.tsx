/** The tree on screen: pan, zoom, touch, arrow keys; what is selected is said to screen readers. */

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { value as shown } from "../format";
import { Text, Value } from "../parts/signs";
import { isDark } from "../theme";
import { type Scene, type View, draw, hit } from "./draw";
import { COLUMN, type Layout } from "./layout";
import { FLAG, type TreeModel } from "./model";

export type CanvasProps = {
  model: TreeModel;
  layout: Layout;
  selected: number;
  branch: ReadonlySet<number>;
  forkStep: number;
  onSelect: (node: number) => void;
  onFold: (node: number) => void;
};

const SMALLEST = 0.02;
const LARGEST = 3;

type Hover = { node: number; x: number; y: number };

export function TreeCanvas(props: CanvasProps) {
  const { model, layout, selected, onSelect, onFold } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const view = useRef<View>({ scale: 1, x: 0, y: 0 });
  const [hover, setHover] = useState<Hover | null>(null);
  const dark = isDark();
  const scene: Scene = useMemo(
    () => ({ ...props, dark, hovered: hover?.node ?? -1 }),
    [model, layout, selected, props.branch, dark, hover?.node, props.forkStep],
  );
  const latest = useRef(scene);
  latest.current = scene;
  const paint = usePaint(canvas, view, latest);
  const fit = (everything: boolean): void => {
    view.current = fitted(canvas.current!, latest.current, everything);
    paint();
  };
  useLayoutEffect(() => fit(false), [model]);
  useEffect(paint, [scene]);
  const first = useRef(true);
  useEffect(() => {
    if (first.current) return void (first.current = false);
    shownInView(canvas.current!, view, latest.current, selected);
    paint();
  }, [selected, layout]);
  const zoom = (factor: number): void => {
    const box = canvas.current!.getBoundingClientRect();
    zoomAt(view, factor, box.width / 2, box.height / 2);
    paint();
  };
  usePointer(canvas, view, latest, paint, setHover, onSelect, onFold);
  return (
    <div
      class="treewrap"
      style={{ height: `clamp(220px, ${Math.round((layout.bounds.y1 - layout.bounds.y0) * 1.1 + 110)}px, var(--tree-height))` }}
    >
      <canvas
        ref={canvas}
        tabIndex={0}
        role="application"
        aria-roledescription="search tree"
        aria-label={`Search tree of ${model.size} nodes. Arrow keys go from node to node.`}
        aria-describedby="tree-node"
        onKeyDown={(event) => keys(event, props, zoom, () => fit(true))}
      />
      <p id="tree-node" class="sr" aria-live="polite">
        {said(model, selected)}
      </p>
      <div class="treetools">
        <button type="button" class="button icon" aria-label="Zoom in" onClick={() => zoom(1.35)}>
          +
        </button>
        <button type="button" class="button icon" aria-label="Zoom out" onClick={() => zoom(1 / 1.35)}>
          −
        </button>
        <button type="button" class="button" onClick={() => fit(true)}>
          Fit
        </button>
      </div>
      {hover && <Tip model={model} hover={hover} />}
    </div>
  );
}

/** Paint once a frame, and when the size changes. */
function usePaint(canvas: { current: HTMLCanvasElement | null }, view: { current: View }, latest: { current: Scene }): () => void {
  const frame = useRef(0);
  const paint = useCallback((): void => {
    frame.current ||= requestAnimationFrame(() => {
      frame.current = 0;
      const element = canvas.current;
      if (element) draw(element.getContext("2d")!, element.clientWidth, element.clientHeight, latest.current, view.current);
    });
  }, []);
  useLayoutEffect(() => {
    const element = canvas.current!;
    const resize = (): void => {
      const ratio = devicePixelRatio || 1;
      element.width = Math.round(element.clientWidth * ratio);
      element.height = Math.round(element.clientHeight * ratio);
      draw(element.getContext("2d")!, element.clientWidth, element.clientHeight, latest.current, view.current);
    };
    const observer = new ResizeObserver(resize);
    observer.observe(element);
    resize();
    return () => (observer.disconnect(), cancelAnimationFrame(frame.current));
  }, []);
  return paint;
}

const EDGE = { left: 36, right: 56, top: 44, bottom: 34 };

/** The whole tree where it is asked for or stays readable, else both branches of the comparison and what lies near them. */
function fitted(element: HTMLCanvasElement, { layout, branch }: Scene, everything: boolean): View {
  const [wide, high] = [element.clientWidth - EDGE.left - EDGE.right, element.clientHeight - EDGE.top - EDGE.bottom];
  const whole = layout.bounds;
  const scaleOf = (x0: number, x1: number, y0: number, y1: number): number => Math.min(1.15, wide / (x1 - x0 || 1), high / (y1 - y0 || 1));
  const all = scaleOf(whole.x0, whole.x1, whole.y0, whole.y1);
  const places = [...branch].flatMap((node) => layout.byNode.get(node) ?? []);
  const ys = [0, ...places.map((place) => place.y)];
  const xs = places.length ? places.map((place) => place.x) : [0, whole.x1];
  const near = { x0: Math.max(0, Math.min(...xs) - 3 * COLUMN), x1: Math.max(...xs), y0: Math.min(...ys), y1: Math.max(...ys) };
  const scale = everything
    ? Math.max(SMALLEST, all)
    : Math.max(all, Math.min(0.8, Math.max(0.2, scaleOf(near.x0, near.x1, near.y0, near.y1))));
  const fits = { x: (whole.x1 - whole.x0) * scale <= wide + 1, y: (whole.y1 - whole.y0) * scale <= high + 1 };
  const x = EDGE.left - (fits.x ? 0 : near.x0 * scale);
  const y = fits.y ? EDGE.top + (high - (whole.y1 - whole.y0) * scale) / 2 - whole.y0 * scale : EDGE.top - near.y0 * scale;
  return { scale, x, y };
}

function zoomAt(view: { current: View }, factor: number, px: number, py: number): void {
  const { scale, x, y } = view.current;
  const next = Math.min(LARGEST, Math.max(SMALLEST, scale * factor));
  view.current = { scale: next, x: px - ((px - x) * next) / scale, y: py - ((py - y) * next) / scale };
}

function shownInView(element: HTMLCanvasElement, view: { current: View }, { layout }: Scene, node: number): void {
  const place = layout.byNode.get(node);
  if (!place) return;
  const { scale, x, y } = view.current;
  const [px, py] = [place.x * scale + x, place.y * scale + y];
  const inside = (at: number, size: number, edge: number): number => (at < edge ? edge - at : at > size - edge ? size - edge - at : 0);
  view.current = { scale, x: x + inside(px, element.clientWidth, 50), y: y + inside(py, element.clientHeight, 40) };
}

function usePointer(
  canvas: { current: HTMLCanvasElement | null },
  view: { current: View },
  latest: { current: Scene },
  paint: () => void,
  setHover: (hover: Hover | null) => void,
  onSelect: (node: number) => void,
  onFold: (node: number) => void,
): void {
  const act = useRef({ onSelect, onFold });
  act.current = { onSelect, onFold };
  useEffect(() => {
    const element = canvas.current!;
    const pointers = new Map<number, { x: number; y: number }>();
    let moved = 0;
    const place = (event: MouseEvent): { x: number; y: number } => {
      const box = element.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const hoverAt = ({ x, y }: { x: number; y: number }): void => {
      const found = hit(latest.current, view.current, x, y);
      setHover(found && !found.fold ? { node: found.node, x, y } : null);
      element.style.cursor = found ? "pointer" : "";
    };
    const down = (event: PointerEvent): void => {
      pointers.set(event.pointerId, place(event));
      element.setPointerCapture(event.pointerId);
      moved = 0;
    };
    const move = (event: PointerEvent): void => {
      const now = place(event);
      const before = pointers.get(event.pointerId);
      if (!before) return hoverAt(now);
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) pinch(view, before, now, other);
      else view.current = { ...view.current, x: view.current.x + now.x - before.x, y: view.current.y + now.y - before.y };
      moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
      pointers.set(event.pointerId, now);
      if (moved > 4) setHover(null);
      paint();
    };
    const up = (event: PointerEvent): void => {
      const now = place(event);
      const held = pointers.delete(event.pointerId);
      if (!held || moved > 6 || event.type !== "pointerup") return;
      const found = hit(latest.current, view.current, now.x, now.y);
      if (found) (found.fold ? act.current.onFold : act.current.onSelect)(found.node);
    };
    const wheel = (event: WheelEvent): void => {
      event.preventDefault();
      const { x, y } = place(event);
      if (event.ctrlKey || event.metaKey || !event.shiftKey) zoomAt(view, Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), x, y);
      else view.current = { ...view.current, x: view.current.x - event.deltaY };
      paint();
    };
    const leave = (): void => setHover(null);
    element.addEventListener("pointerdown", down);
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", up);
    element.addEventListener("pointercancel", up);
    element.addEventListener("pointerleave", leave);
    element.addEventListener("wheel", wheel, { passive: false });
    return () => {
      element.removeEventListener("pointerdown", down);
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", up);
      element.removeEventListener("pointercancel", up);
      element.removeEventListener("pointerleave", leave);
      element.removeEventListener("wheel", wheel);
    };
  }, []);
}

function pinch(view: { current: View }, before: Point, now: Point, other: Point): void {
  const away = (a: Point): number => Math.hypot(a.x - other.x, a.y - other.y) || 1;
  zoomAt(view, away(now) / away(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
}
type Point = { x: number; y: number };

/** Left and right along a branch, up and down between branches, Enter folds, + and - zoom, 0 shows all. */
function keys(
  event: KeyboardEvent,
  { model, layout, selected, onSelect, onFold }: CanvasProps,
  zoom: (factor: number) => void,
  fit: () => void,
): void {
  const actions: Record<string, () => void> = {
    ArrowLeft: () => to(model.tree.nodes.parent[selected]),
    ArrowRight: () => to(model.children[selected]!.find((child) => layout.byNode.has(child))),
    ArrowUp: () => to(neighbour(model, layout, selected, -1)),
    ArrowDown: () => to(neighbour(model, layout, selected, 1)),
    Home: () => to(0),
    End: () => to(model.leafBelow(selected)),
    Enter: () => onFold(selected),
    " ": () => onFold(selected),
    "+": () => zoom(1.35),
    "=": () => zoom(1.35),
    "-": () => zoom(1 / 1.35),
    "0": fit,
    l: () => to(model.tree.logged_tip ?? undefined),
    b: () => to(model.tree.best ?? undefined),
  };
  const to = (node: number | undefined): void => {
    if (node !== undefined && node >= 0) onSelect(node);
  };
  const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : actions[event.key];
  if (!act || !Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  act();
}

/** The nearest node above or below in the same column. */
function neighbour(model: TreeModel, layout: Layout, node: number, direction: 1 | -1): number | undefined {
  const here = layout.byNode.get(node);
  if (!here) return undefined;
  const { depth } = model.tree.nodes;
  let best: { node: number; y: number } | undefined;
  for (const place of layout.placed) {
    const away = (place.y - here.y) * direction;
    if (depth[place.node] !== depth[node] || away <= 0) continue;
    if (!best || away < (best.y - here.y) * direction) best = place;
  }
  return best?.node;
}

function said(model: TreeModel, node: number): string {
  const { action, visits, depth } = model.tree.nodes;
  const kind = [model.has(node, FLAG.logged) ? "logged" : "counterfactual", model.has(node, FLAG.best) ? "on the best branch" : ""]
    .filter(Boolean)
    .join(", ");
  if (node === 0) return `Root: the state the search started from, ${visits[0]} visits`;
  return `Depth ${depth[node]}: ${action[node]}; ${kind}; value ${shown(model.value(node))}; ${visits[node]} visits; ${model.children[node]!.length} children`;
}

function Tip({ model, hover: { node, x, y } }: { model: TreeModel; hover: Hover }) {
  const { action, visits, score, verifier } = model.tree.nodes;
  const right = x > 420;
  return (
    <div
      class="tip"
      style={{ top: `${Math.max(4, y - 12)}px`, ...(right ? { right: `calc(100% - ${x - 18}px)` } : { left: `${x + 18}px` }) }}
    >
      <div class="mono" style={{ overflowWrap: "anywhere" }}>
        <Text>{node === 0 ? "where the search started" : action[node]!}</Text>
      </div>
      <div class="soft num" style={{ display: "flex", gap: "10px", flexWrap: "wrap", marginTop: "4px" }}>
        <Value value={model.value(node)} />
        <span>{visits[node]} visits</span>
        {score[node] !== null && (
          <span>
            score {shown(score[node])} <Text>{model.tree.verifiers[verifier[node]!] ?? ""}</Text>
          </span>
        )}
        {node > 0 && <span>{model.tree.grades[model.tree.nodes.grade[node]!]}</span>}
        {model.has(node, FLAG.contested) && <span>its best children can't be told apart</span>}
      </div>
    </div>
  );
}
