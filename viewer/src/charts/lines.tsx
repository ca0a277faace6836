/** Lines with intervals over one axis, readable by pointer, by keyboard and as a table. */

import { useState } from "preact/hooks";
import { Fold } from "../parts/conversation";
import { Text } from "../parts/signs";
import { type Scale, doubling, linear } from "./scale";
import { useWidth } from "./width";

export type Point = { x: number; y: number | null; low?: number | null; high?: number | null };
export type Series = { name: string; points: Point[]; colour?: string; dashed?: boolean; dots?: boolean };

export const COLOURS = ["var(--accent)", "var(--better)", "var(--worse)", "var(--ink-3)", "var(--ink)"];

export type LinesProps = {
  label: string;
  series: Series[];
  x: string;
  y: string;
  /** Ticks at powers of two. */
  doubling?: boolean;
  yDomain?: [number, number];
  xDomain?: [number, number];
  format?: (value: number) => string;
  /** The diagonal from (0, 0) to (1, 1): what perfect calibration is. */
  diagonal?: boolean;
  height?: number;
};

const LEFT = 46;
const RIGHT = 14;
const TOP = 26;
const BOTTOM = 38;

export function Lines(props: LinesProps) {
  const { series, label, format = (v: number) => String(v), height = 240 } = props;
  const [box, width] = useWidth();
  const [at, setAt] = useState<number | null>(null);
  const shown = series.filter((one) => one.points.some((point) => point.y !== null));
  const xs = [...new Set(shown.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  const [x, y] = scales(props, shown, xs, width, height);
  const nearest = (px: number): number | null =>
    xs.reduce<number | null>((best, v) => (best === null || Math.abs(x(v) - px) < Math.abs(x(best) - px) ? v : best), null);
  const step = (by: number): void => setAt(xs[Math.min(xs.length - 1, Math.max(0, (at === null ? -1 : xs.indexOf(at)) + by))] ?? null);
  return (
    <figure class="figure" ref={box}>
      <Keys series={shown} />
      <svg
        class="chart"
        viewBox={`0 0 ${width} ${height}`}
        role="img"
        tabIndex={0}
        aria-label={`${label}. Arrow keys read the values.`}
        onPointerMove={(event) =>
          setAt(nearest(((event.clientX - event.currentTarget.getBoundingClientRect().left) * width) / event.currentTarget.clientWidth))
        }
        onPointerLeave={() => setAt(null)}
        onKeyDown={(event) => {
          const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (by) (event.preventDefault(), step(by));
        }}
      >
        <Axes x={x} y={y} props={props} width={width} height={height} format={format} />
        {shown.map((one, i) => (
          <Line key={one.name} series={one} colour={one.colour ?? COLOURS[i % COLOURS.length]!} x={x} y={y} />
        ))}
        {at !== null && <line x1={x(at)} x2={x(at)} y1={TOP} y2={height - BOTTOM} stroke="var(--ink-3)" stroke-dasharray="2 3" />}
      </svg>
      <p class="small num soft" role="status" style={{ minHeight: "20px" }}>
        {at !== null && read(shown, at, props.x, format)}
      </p>
      <DataTable label={label} series={shown} xs={xs} x={props.x} format={format} />
    </figure>
  );
}

function scales(props: LinesProps, series: Series[], xs: number[], width: number, height: number): [Scale, Scale] {
  const values = series.flatMap((one) => one.points.flatMap((p) => [p.y, p.low ?? null, p.high ?? null])).filter((v) => v !== null);
  const [low, high] = props.yDomain ?? [Math.min(...values, Infinity), Math.max(...values, -Infinity)];
  const pad = props.yDomain ? 0 : (high - low) * 0.06 || 0.5;
  const across: [number, number] = [LEFT, width - RIGHT];
  const x = props.doubling ? doubling(xs, across) : linear(props.xDomain ?? [xs[0] ?? 0, xs.at(-1) ?? 1], across, width < 420 ? 4 : 8);
  return [x, linear([low - pad, high + pad], [height - BOTTOM, TOP], 4)];
}

function Axes({
  x,
  y,
  props,
  width,
  height,
  format,
}: {
  x: Scale;
  y: Scale;
  props: LinesProps;
  width: number;
  height: number;
  format: (v: number) => string;
}) {
  const whole = (v: number): boolean => props.doubling === true || props.xDomain !== undefined || Number.isInteger(v);
  return (
    <g aria-hidden="true">
      {y.ticks.map((tick) => (
        <g key={tick}>
          <line class="gridline" x1={LEFT} x2={width - RIGHT} y1={y(tick)} y2={y(tick)} />
          <text x={LEFT - 8} y={y(tick) + 4} text-anchor="end">
            {format(tick)}
          </text>
        </g>
      ))}
      {x.ticks.filter(whole).map((tick) => (
        <text key={tick} x={x(tick)} y={height - BOTTOM + 16} text-anchor="middle">
          {tick}
        </text>
      ))}
      <line class="axis" x1={LEFT} x2={width - RIGHT} y1={height - BOTTOM} y2={height - BOTTOM} />
      {props.diagonal && <line x1={x(0)} y1={y(0)} x2={x(1)} y2={y(1)} stroke="var(--line-strong)" stroke-dasharray="4 4" />}
      <text class="label" x={(LEFT + width - RIGHT) / 2} y={height - 4} text-anchor="middle">
        {props.x}
      </text>
      <text class="label" x={0} y={10} text-anchor="start">
        {props.y}
      </text>
    </g>
  );
}

type Known = { x: number; y: number; low: number | null; high: number | null };

const known = (series: Series): Known[] =>
  series.points.flatMap(({ x, y, low = null, high = null }) => (y === null ? [] : [{ x, y, low, high }]));

function Line({ series, colour, x, y }: { series: Series; colour: string; x: Scale; y: Scale }) {
  const points = known(series);
  const band = points.filter((point) => point.low !== null && point.high !== null);
  const dots = series.dots ?? points.length <= 40;
  const area = [...band.map((p) => `${x(p.x)},${y(p.high!)}`), ...band.toReversed().map((p) => `${x(p.x)},${y(p.low!)}`)].join(" ");
  return (
    <g>
      {band.length > 1 && <polygon points={area} fill={colour} opacity={0.11} />}
      {dots &&
        band.map((p) => (
          <line key={p.x} x1={x(p.x)} x2={x(p.x)} y1={y(p.low!)} y2={y(p.high!)} stroke={colour} stroke-width={1.4} opacity={0.7} />
        ))}
      <polyline
        points={points.map((p) => `${x(p.x)},${y(p.y)}`).join(" ")}
        fill="none"
        stroke={colour}
        stroke-width={2}
        stroke-linejoin="round"
        stroke-dasharray={series.dashed ? "5 4" : undefined}
      />
      {dots &&
        points.map((p) => <circle key={p.x} cx={x(p.x)} cy={y(p.y)} r={3.2} fill={colour} stroke="var(--surface)" stroke-width={1.2} />)}
    </g>
  );
}

function Keys({ series }: { series: Series[] }) {
  if (series.length < 2) return null;
  return (
    <div class="keyline">
      {series.map((one, i) => (
        <span key={one.name}>
          <i
            style={{ borderTopColor: one.colour ?? COLOURS[i % COLOURS.length]!, borderTopStyle: one.dashed ? "dashed" : "solid" }}
            aria-hidden="true"
          />
          <Text>{one.name}</Text>
        </span>
      ))}
    </div>
  );
}

const said = (point: Known, format: (v: number) => string): string =>
  format(point.y) + (point.low === null || point.high === null ? "" : ` (${format(point.low)} to ${format(point.high)})`);

function read(series: Series[], at: number, x: string, format: (v: number) => string): string {
  const parts = series.flatMap((one) => {
    const point = known(one).find((p) => p.x === at);
    return point ? [`${series.length > 1 ? `${one.name} ` : ""}${said(point, format)}`] : [];
  });
  return `${x} ${at}: ${parts.join(" · ")}`;
}

const ROWS_AT_MOST = 60;

function DataTable({
  label,
  series,
  xs,
  x,
  format,
}: {
  label: string;
  series: Series[];
  xs: number[];
  x: string;
  format: (v: number) => string;
}) {
  const every = Math.ceil(xs.length / ROWS_AT_MOST);
  return (
    <Fold summary={<span class="faint small">As a table</span>}>
      {() => (
        <div class="overflow">
          <table class="table" aria-label={label}>
            <thead>
              <tr>
                <th scope="col">{x}</th>
                {series.map((one) => (
                  <th key={one.name} scope="col">
                    <Text>{one.name}</Text>
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {xs
                .filter((_, i) => i % every === 0)
                .map((at) => (
                  <tr key={at}>
                    <td class="num">{at}</td>
                    {series.map((one) => {
                      const point = known(one).find((p) => p.x === at);
                      return (
                        <td key={one.name} class="num">
                          {point ? said(point, format) : "–"}
                        </td>
                      );
                    })}
                  </tr>
                ))}
            </tbody>
          </table>
        </div>
      )}
    </Fold>
  );
}
