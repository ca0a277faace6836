/** A list of any length of which only the rows in sight exist. Pages of it are asked for as they come into sight. */

import type { JSX, RefObject } from "preact";
import { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { ask, askAgain } from "../api";
import { type Range, inSight } from "./insight";

const PAGE = 200;

type Page<Row> = { rows: readonly Row[]; grown: number };

/**
 * Rows of a paged answer by their place: `undefined` until they have come. `key` says which list it is. Where a list grows, `grown` changes:
 * pages that were not full are asked again, and what they had stays until the answer comes.
 */
export function usePages<Row>(pageUrl: (offset: number, limit: number) => string, key: string, grown = 0) {
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  const pages = useMemo(() => new Map<number, Page<Row>>(), [key]);
  const want = (range: Range): void => {
    for (let page = Math.floor(range.from / PAGE); page * PAGE < range.to; page++) {
      const known = pages.get(page);
      if (known && (known.grown === grown || known.rows.length === PAGE)) continue;
      pages.set(page, { rows: known?.rows ?? [], grown });
      (known ? askAgain : ask)<{ rows: Row[] }>(pageUrl(page * PAGE, PAGE)).then(
        ({ rows }) => (pages.set(page, { rows, grown }), redraw(0)),
        () => pages.delete(page),
      );
    }
  };
  const row = (index: number): Row | undefined => pages.get(Math.floor(index / PAGE))?.rows[index % PAGE];
  return { want, row };
}

export type RowsProps<Row> = {
  label: string;
  total: number;
  rowHeight: number;
  height: string;
  row: (index: number) => Row | undefined;
  /** Draws a row; what else than the row it depends on is in `stamp`. */
  render: (row: Row | undefined) => JSX.Element;
  stamp?: string;
  want?: (range: Range) => void;
};

/** Drawn rows, so that scrolling draws new ones only: an element that is the very same is not looked at again. */
function useDrawn<Row>({ row, render, stamp = "", rowHeight }: RowsProps<Row>): (index: number) => JSX.Element {
  const drawn = useMemo(() => new Map<number, { row: Row | undefined; element: JSX.Element }>(), [stamp, rowHeight]);
  return (index) => {
    const now = row(index);
    const known = drawn.get(index);
    if (known && known.row === now) return known.element;
    if (drawn.size > 500) drawn.clear();
    const element = (
      <div key={index} role="listitem" class="placed" style={{ top: `${index * rowHeight}px`, height: `${rowHeight}px` }}>
        {render(now)}
      </div>
    );
    drawn.set(index, { row: now, element });
    return element;
  };
}

/** The scrolling window. Rows are absolutely placed blocks of one height. */
export function Rows<Row>(props: RowsProps<Row>) {
  const { label, total, rowHeight, height, want } = props;
  const draw = useDrawn(props);
  const box = useRef<HTMLDivElement>(null);
  const range = useRange(box, rowHeight, total);
  useEffect(() => want?.(range), [range.from, range.to, want]);
  const shown = [];
  for (let index = range.from; index < range.to; index++) shown.push(draw(index));
  return (
    <div class="scroller" ref={box} style={{ height }} role="list" aria-label={label} tabIndex={-1}>
      <div style={{ height: `${total * rowHeight}px`, position: "relative" }} role="presentation">
        {shown}
      </div>
    </div>
  );
}

/** How far each list was scrolled, by its address: whoever comes back finds it as it was. */
const places = new Map<string, number>();

function useRange(box: RefObject<HTMLDivElement | null>, rowHeight: number, total: number): Range {
  const [range, setRange] = useState<Range>({ from: 0, to: Math.min(total, 40) });
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    let frame = 0;
    const place = location.hash;
    element.scrollTop = places.get(place) ?? 0;
    const measure = (): void => {
      frame = 0;
      if (total > 0) places.set(place, element.scrollTop);
      const next = inSight(element.scrollTop, element.clientHeight, rowHeight, total);
      setRange((last) => (last.from === next.from && last.to === next.to ? last : next));
    };
    const later = (): void => void (frame ||= requestAnimationFrame(measure));
    const observer = new ResizeObserver(later);
    observer.observe(element);
    element.addEventListener("scroll", later, { passive: true });
    measure();
    return () => {
      cancelAnimationFrame(frame);
      observer.disconnect();
      element.removeEventListener("scroll", later);
    };
  }, [rowHeight, total]);
  return { from: Math.min(range.from, total), to: Math.min(range.to, total) };
}

/** Whether the page is narrow (a phone); follows the window. */
export function useNarrow(): boolean {
  const query = useMemo(() => matchMedia("(max-width: 640px)"), []);
  const [narrow, setNarrow] = useState(query.matches);
  useEffect(() => {
    const follow = (): void => setNarrow(query.matches);
    query.addEventListener("change", follow);
    return () => query.removeEventListener("change", follow);
  }, [query]);
  return narrow;
}
