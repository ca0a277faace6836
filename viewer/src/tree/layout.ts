/**
 * Where nodes go. Time runs to the right: a column is a step, so that steps of all branches line up. The logged branch is straight;
 * the best one leaves it upwards, everything else hangs below. Branches are packed: one that ends early leaves room for another.
 */

import { hierarchy, type HierarchyNode } from "d3-hierarchy";
import { FLAG, type TreeModel } from "./model";

export const COLUMN = 80;
export const LANE = 38;

export type Placed = { node: number; x: number; y: number; parent: number; hidden: number; worth: number | null };
export type Layout = {
  placed: readonly Placed[];
  byNode: ReadonlyMap<number, Placed>;
  bounds: { x0: number; y0: number; x1: number; y1: number };
};

type Branch = HierarchyNode<number>;

/** Places of all nodes that are not folded. `folded` children are counted at their parent. */
export function layout(model: TreeModel, folded: ReadonlySet<number>): Layout {
  const root = hierarchy(0, (node) => {
    const shown = model.children[node]!.filter((child) => !folded.has(child));
    return shown.length ? shown : null;
  });
  const lanes = new Map<number, number>();
  const down = new Contour();
  const up = new Contour();
  placeChain(root, 0, model, lanes, down, up, false);
  return finished(root, model, folded, lanes);
}

/** The first free lane by column. */
class Contour {
  private readonly free: number[] = [];

  lane(from: number, to: number, atLeast: number): number {
    let lane = atLeast;
    for (let column = from; column <= to; column++) lane = Math.max(lane, this.free[column] ?? 0);
    return lane;
  }

  take(from: number, to: number, lane: number): void {
    for (let column = from; column <= to; column++) this.free[column] = Math.max(this.free[column] ?? 0, lane + 1);
  }
}

/** A branch runs straight through first children; its side branches are placed from the deepest fork up, so that no line crosses another. */
function placeChain(
  start: Branch,
  lane: number,
  model: TreeModel,
  lanes: Map<number, number>,
  down: Contour,
  up: Contour,
  above: boolean,
): void {
  const chain = straight(start);
  for (const node of chain) lanes.set(node.data, above ? -lane : lane);
  const end = chain.at(-1)!.depth;
  const contour = above ? up : down;
  contour.take(start.depth, end, lane);
  if (lane === 0) up.take(start.depth, end, 0);
  for (const fork of chain.toReversed()) {
    for (const side of fork.children?.slice(1) ?? []) {
      const rises = above || (lane === 0 && model.has(side.data, FLAG.best) && model.has(fork.data, FLAG.logged | FLAG.best));
      const own = rises ? up : down;
      const reach = straight(side).at(-1)!.depth;
      placeChain(side, own.lane(side.depth, reach, lane + 1), model, lanes, down, up, rises);
    }
  }
}

function straight(start: Branch): Branch[] {
  const chain = [start];
  for (let next = start.children?.[0]; next; next = next.children?.[0]) chain.push(next);
  return chain;
}

function finished(root: Branch, model: TreeModel, folded: ReadonlySet<number>, lanes: Map<number, number>): Layout {
  const placed: Placed[] = [];
  const bounds = { x0: 0, y0: 0, x1: 0, y1: 0 };
  root.eachBefore((at) => {
    const away = model.children[at.data]!.filter((child) => folded.has(child));
    const hidden = away.reduce((sum, child) => sum + 1 + model.below[child]!, 0);
    const worths = away.map((child) => model.worth(child)).filter((worth) => worth !== null);
    const [x, y] = [at.depth * COLUMN, lanes.get(at.data)! * LANE];
    placed.push({ node: at.data, x, y, parent: at.parent?.data ?? -1, hidden, worth: worths.length ? Math.max(...worths) : null });
    bounds.x1 = Math.max(bounds.x1, x);
    bounds.y0 = Math.min(bounds.y0, y);
    bounds.y1 = Math.max(bounds.y1, y);
  });
  return { placed, byNode: new Map(placed.map((place) => [place.node, place])), bounds };
}
