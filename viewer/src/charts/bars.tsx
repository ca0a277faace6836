/** Shares as bars with their intervals; each bar can be chosen. */

import { percent } from "../format";
import { Text } from "../parts/signs";
import { useWidth } from "./width";

export type Bar = { name: string; share: number; low: number; high: number; note: string };

export function Bars({
  label,
  bars,
  chosen,
  onChoose,
}: {
  label: string;
  bars: Bar[];
  chosen?: string | null;
  onChoose?: (name: string) => void;
}) {
  const [box, width] = useWidth();
  const highest = Math.max(0.05, ...bars.map((bar) => bar.high));
  const most = highest > 0.5 ? 1 : highest;
  const track = Math.max(90, Math.min(420, width * 0.42));
  return (
    <div ref={(element) => void (box.current = element)} role="group" aria-label={label}>
      {bars.map((bar) => (
        <button
          key={bar.name}
          type="button"
          class="barline"
          aria-pressed={chosen === bar.name}
          disabled={!onChoose}
          aria-label={`${bar.name}: ${percent(bar.share)}, 95 % interval ${percent(bar.low)} to ${percent(bar.high)}, ${bar.note}`}
          onClick={() => onChoose?.(bar.name)}
        >
          <span class="barname">
            <Text>{bar.name}</Text>
            <span class="faint small num">{bar.note}</span>
          </span>
          <svg width={track} height={18} aria-hidden="true">
            <rect x={0} y={3} width={track} height={12} rx={3} fill="var(--sunken)" />
            <rect x={0} y={3} width={(bar.share / most) * track} height={12} rx={3} fill="var(--bar)" />
            <line
              x1={(bar.low / most) * track}
              x2={Math.min(track - 1, (bar.high / most) * track)}
              y1={9}
              y2={9}
              stroke="var(--ink)"
              stroke-width={1.5}
            />
            {[bar.low, bar.high].map((end, i) => (
              <line
                key={i}
                x1={Math.min(track - 1, (end / most) * track)}
                x2={Math.min(track - 1, (end / most) * track)}
                y1={5}
                y2={13}
                stroke="var(--ink)"
                stroke-width={1.5}
              />
            ))}
          </svg>
          <span class="num barshare">{percent(bar.share)}</span>
        </button>
      ))}
    </div>
  );
}
