"""What came of the rounds: a table, a page, and a plot of success with intervals, one line a method."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterplay import console

if TYPE_CHECKING:
    from counterplay.improve.rounds import Improved, Round

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#4b5563")
_COLUMNS = ("round", "success [95 %]", "over the round before", "over round 0", "failed", "solved", "rows", "model calls", "seconds")


def table(improved: Improved) -> list[Any]:
    """For a terminal: a row a round, and what is to be taken from it."""
    title = f"{improved.rounds[0].tasks} held-out tasks, paired differences in points"
    shown = console.table(title, _COLUMNS, [_cells(one) for one in improved.rounds])
    return [shown, *_words(improved)]


def page(improved: Improved) -> str:
    """The same as Markdown."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    lines += [f"| {' | '.join(map(str, _cells(one)))} |" for one in improved.rounds]
    lines.append(f"\n{improved.rounds[0].tasks} held-out tasks; differences are in points, paired by task, with 95 % intervals.\n")
    lines += [f"* {text}" for text in _words(improved)]
    return "\n".join(["# Rounds of improvement\n", *lines, "\n![success over rounds](success.svg)", ""])


def plot(methods: Mapping[str, Sequence[tuple[float, float, float]]], title: str = "held-out success after each round") -> str:
    """An SVG. Each method gives (share, low, high) for rounds 0, 1, and so on."""
    wide, high, left, below = 520, 320, 46, 44
    rounds = max(len(line) for line in methods.values())

    def x(number: int, shift: float = 0.0) -> float:
        return left + 24 + (wide - left - 60) * number / max(1, rounds - 1) + shift

    def y(share: float) -> float:
        return high - below - (high - below - 34) * share

    size = f'width="{wide}" height="{high + 18 * len(methods)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="18" font-size="13">{html.escape(title)}</text>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{left}" x2="{wide - 12}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end" fill="#555">{100 * share:.0f} %</text>')
    parts += [f'<text x="{x(n):.1f}" y="{high - below + 18}" text-anchor="middle" fill="#555">{n}</text>' for n in range(rounds)]
    parts.append(f'<text x="{(left + wide) / 2:.0f}" y="{high - 10}" text-anchor="middle" fill="#555">round</text>')
    for at, (name, line) in enumerate(methods.items()):
        colour, shift = _COLOURS[at % len(_COLOURS)], 4.0 * (at - (len(methods) - 1) / 2)
        points = " ".join(f"{x(n, shift):.1f},{y(share):.1f}" for n, (share, _, _) in enumerate(line))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        for n, (share, low, top) in enumerate(line):
            parts.append(f'<line x1="{x(n, shift):.1f}" x2="{x(n, shift):.1f}" y1="{y(low):.1f}" y2="{y(top):.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x(n, shift):.1f}" cy="{y(share):.1f}" r="3" fill="{colour}"/>')
        row = high + 4 + 18 * at
        parts.append(f'<rect x="{left}" y="{row - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18}" y="{row}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _cells(one: Round) -> list[Any]:
    low, high = one.interval
    return [
        one.number,
        f"{100 * one.success:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
        _points(one.gain),
        _points(one.over_base),
        f"{one.failed} of {one.traces}" if one.number else "",
        one.solved if one.number else "",
        f"{one.rows}" + (f" and {one.pairs} pairs" if one.pairs else "") if one.number else "",
        f"{one.model_calls:,}" if one.number else "",
        f"{one.seconds:.0f}",
    ]


def _points(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return ""
    middle, low, high = (100 * value for value in difference)
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def _words(improved: Improved) -> list[str]:
    chosen = improved.rounds[improved.chosen]
    best = (
        f"round {chosen.number} is the last that is surely better than those before: {improved.model}"
        if improved.chosen
        else f"no round is surely better than the agent as it was: {improved.model}"
    )
    unguided = [f"round {one.number} searched without a learned verifier: {one.unguided}" for one in improved.rounds if one.unguided]
    return [*unguided, best, f"stopped: {improved.stopped}" if improved.stopped else "not at its end: run the same command to go on"]
