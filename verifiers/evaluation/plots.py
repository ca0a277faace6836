"""Plots of an evaluation as inline SVG, drawn by hand: reliability, probes, over-optimisation. Colours are the page's style classes."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from counterplay.verifiers.evaluation.discrimination import Discrimination
from counterplay.verifiers.evaluation.optimisation import Curve
from counterplay.verifiers.evaluation.probes import MARGIN, ProbeResult

STYLE = """
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .quiet { fill: var(--quiet); }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .said { stroke: var(--said); fill: var(--said); }
svg .gold { stroke: var(--gold); fill: var(--gold); }
svg .bad { stroke: var(--bad); fill: var(--bad); }
svg .ceiling { stroke: var(--quiet); fill: none; stroke-dasharray: 1 4; stroke-linecap: round; }
svg polyline.said, svg polyline.gold, svg polyline.ceiling { fill: none; stroke-width: 2; }
svg polygon.gold { stroke: none; fill-opacity: 0.18; }
svg rect.bar { stroke: none; fill-opacity: 0.25; }
svg .interval { stroke-width: 1.5; fill: none; }
"""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 330, 250, 44, 14, 26, 40


@dataclass(frozen=True)
class _Frame:
    """A plot area: data to pixels, and its axes. `y_low` to `y_high` is the range of y, x runs from 0 to 1."""

    title: str
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_low: float = 0.0
    y_high: float = 1.0

    def x(self, at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)

    def svg(self, parts: Iterable[str]) -> str:
        ticks = [self.y_low + (self.y_high - self.y_low) * i / 4 for i in range(5)]
        lines = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{html.escape(self.title)}">',
            f'<text x="{_LEFT}" y="16" font-weight="600">{html.escape(self.title)}</text>',
            *(_line(self.x(0), self.y(tick), self.x(1), self.y(tick), "grid") for tick in ticks),
            *(_text(_LEFT - 6, self.y(tick) + 4, f"{tick:.3g}", "end") for tick in ticks),
            *(_text(self.x(at), _HEIGHT - _BOTTOM + 15, label, "middle") for at, label in self.x_ticks),
            _text(self.x(0.5), _HEIGHT - 6, self.x_label, "middle"),
        ]
        return "\n".join([*lines, *parts, "</svg>"])

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(at):.1f},{self.y(value):.1f}" for at, value in points)


def reliability(found: Discrimination, title: str) -> str:
    """What is said against what is seen: on the diagonal the numbers mean what they say. Bars show where the scores lie."""
    frame = _Frame(title, "score (share that was right above it)", [(i / 4, f"{i / 4:g}") for i in range(5)])
    most = max(bar.seen.n for bar in found.reliability)
    parts = [_line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "ceiling")]
    for bar in found.reliability:
        at, high = frame.x(bar.said), 0.25 * bar.seen.n / most
        parts.append(
            f'<rect class="said bar" x="{at - 5:.1f}" y="{frame.y(high):.1f}" width="10" height="{frame.y(0) - frame.y(high):.1f}"/>'
        )
        parts.append(_interval(at, frame.y, bar.seen.low, bar.seen.high, "said"))
        parts.append(f'<circle class="said" cx="{at:.1f}" cy="{frame.y(bar.seen.value):.1f}" r="3.5"/>')
    line = frame.path((bar.said, bar.seen.value) for bar in found.reliability)
    return frame.svg([*parts, f'<polyline class="said" stroke-opacity="0.4" points="{line}"/>'])


def optimisation(curve: Curve, title: str) -> str:
    """Gold with its interval, proxy dashed, and the best that could be had dotted, over log2 of N."""
    last = max(1, len(curve.points) - 1)
    ticks = [(i / last, str(point.n)) for i, point in enumerate(curve.points) if i % math.ceil(len(curve.points) / 9) == 0]
    frame = _Frame(title, "best of N by the verifier", ticks)
    points = list(enumerate(curve.points))
    lows = [(i / last, p.gold if p.low is None else p.low) for i, p in points]
    highs = [(i / last, p.gold if p.high is None else p.high) for i, p in points]
    return frame.svg(
        [
            f'<polygon class="gold" points="{frame.path([*lows, *highs[::-1]])}"/>',
            f'<polyline class="ceiling" points="{frame.path((i / last, p.ceiling) for i, p in points)}"/>',
            f'<polyline class="said" stroke-dasharray="6 4" points="{frame.path((i / last, p.proxy) for i, p in points)}"/>',
            f'<polyline class="gold" points="{frame.path((i / last, p.gold) for i, p in points)}"/>',
        ]
    )


def probes(results: Sequence[ProbeResult], title: str) -> str:
    """The mean change of the score by probe with its interval; right of the dotted margin it pays."""
    held = [result for result in results if result.change is not None]
    ends = [end for r in held if r.change for end in (r.change.value, r.change.low, r.change.high) if end is not None]
    reach = max([0.1, *(abs(end) for end in ends)])
    left, wide, row = 150, 480, 26
    first = 58
    high = first + row * len(held) + 20

    def x(value: float) -> float:
        return left + (wide - left - 70) * (value + reach) / (2 * reach)

    parts = [
        f'<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="8" y="16" font-weight="600">{html.escape(title)}</text>',
        _line(x(0), 30, x(0), high - 20, "grid"),
        _line(x(MARGIN), 30, x(MARGIN), high - 20, "ceiling"),
        _text(x(MARGIN) + 4, 38, f"pays from {MARGIN:+g}", "start"),
        *(_text(x(tick), high - 6, f"{tick:+.2g}" if tick else "0", "middle") for tick in (-reach, 0.0, reach)),
    ]
    for number, result in enumerate(held):
        change, at, kind = result.change, first + row * number, "bad" if result.failed else "said"
        if change is None:
            continue
        low, top = (change.value if end is None else end for end in (change.low, change.high))
        parts += [
            _text(left - 8, at + 4, result.name, "end"),
            _line(x(low), at, x(top), at, f"interval {kind}"),
            f'<circle class="{kind}" cx="{x(change.value):.1f}" cy="{at}" r="4"/>',
            _text(wide - 4, at + 4, f"{change.value:+.3f}", "end"),
        ]
    return "\n".join([*parts, "</svg>"])


def _interval(at: float, y: Callable[[float], float], low: float | None, high: float | None, kind: str) -> str:
    return "" if low is None or high is None else _line(at, y(low), at, y(high), f"interval {kind}")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="quiet" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
