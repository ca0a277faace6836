"""Success against what is spent at test time, for several policies at equal numbers of model calls.

A better model may only save samples: where both curves meet at a larger budget, the tuning bought calls, not ability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from counterplay.core.errors import UserError
from counterplay.finetune.evaluate import Results
from counterplay.finetune.intervals import Interval, difference_interval, rate_interval


@dataclass(frozen=True, slots=True)
class Line:
    """One run from a task's beginning: its model calls, what the verifier thinks of it (None: nothing), and what it truly earned."""

    calls: int
    score: float | None
    outcome: float


@dataclass(frozen=True, slots=True)
class Point:
    """Success at most `budget` model calls a task, with its 95 % interval; `spent` is the mean that was really used."""

    budget: int
    rate: float
    interval: Interval
    spent: float


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """The paired difference of `b` over `a` at equal budgets, with its 95 % interval."""

    a: str
    b: str
    budget: int
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Scaling:
    """Curves of all policies on the same tasks, and the gap of each to the first at every budget."""

    tasks: int
    method: str
    verifier: str
    curves: tuple[Curve, ...]
    gaps: tuple[Gap, ...]

    def sentences(self) -> list[str]:
        """What a person takes from it: where the gap is sure, and what the new model's budget is worth in calls of the first."""
        first, said = self.curves[0], []
        for curve in self.curves[1:]:
            sure = [gap for gap in self.gaps if gap.b == curve.name and (gap.interval[0] > 0 or gap.interval[1] < 0)]
            budgets = ", ".join(f"{gap.budget} ({100 * gap.difference:+.1f})" for gap in sure)
            told = f"sure at budgets {budgets}" if sure else "no evidence of a gap at any budget"
            said.append(f"{curve.name} over {first.name}: {told}")
            best = first.points[-1]
            reached = next((point.budget for point in curve.points if point.rate >= best.rate), None)
            if reached is not None and reached < best.budget and best.rate > 0:
                said.append(f"  {curve.name} has {first.name}'s success at {best.budget} model calls with {reached}")
        return said


def best_within(lines: Sequence[Line], budget: int) -> tuple[float, int]:
    """Best of n by the verifier (Cobbe et al. 2021): the outcome of the line of the highest score among the first ones that fit into
    `budget` model calls, the earliest of equals; and the calls they took. Lines without a score come last. 0 where none fits.
    """
    spent, fitting = 0, list[Line]()
    for line in lines:
        if spent + line.calls > budget:
            break
        spent += line.calls
        fitting.append(line)
    best = max(fitting, key=lambda line: -1.0 if line.score is None else line.score, default=None)
    return (0.0 if best is None else best.outcome), spent


def best_of_lines(name: str, lines: Mapping[str, Sequence[Line]], budgets: Sequence[int]) -> dict[int, Results]:
    """`best_within` for every task and budget. The lines of one task serve all budgets, so a curve is one experiment seen in full."""
    found = {}
    for budget in budgets:
        each = {task: best_within(drawn, budget) for task, drawn in lines.items()}
        outcomes = {task: outcome for task, (outcome, _) in each.items()}
        found[budget] = Results(name, outcomes, {task: float(spent) for task, (_, spent) in each.items()})
    return found


def scaling(results: Sequence[Mapping[int, Results]], *, method: str = "best of n", verifier: str = "outcome") -> Scaling:
    """The curves out of one policy's results at each budget, for each policy. Raises UserError where they differ in tasks or budgets."""
    budgets = sorted(results[0]) if results else []
    tasks = sorted(results[0][budgets[0]].outcomes) if budgets else []
    if not tasks or any(sorted(one) != budgets or any(sorted(r.outcomes) != tasks for r in one.values()) for one in results):
        raise UserError("got results at different budgets or on different tasks", "the same ones for every policy")
    values = [{budget: [_mean(one[budget], task) for task in tasks] for budget in budgets} for one in results]
    names = [one[budgets[0]].name for one in results]
    curves = tuple(
        Curve(name, tuple(_point(budget, outcomes[budget], one[budget]) for budget in budgets))
        for name, outcomes, one in zip(names, values, results, strict=True)
    )
    gaps = tuple(
        Gap(names[0], name, budget, *_difference(values[0][budget], outcomes[budget]))
        for name, outcomes in list(zip(names, values, strict=True))[1:]
        for budget in budgets
    )
    return Scaling(len(tasks), method, verifier, curves, gaps)


def _difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, Interval]:
    return _rate(after) - _rate(before), difference_interval(before, after)


def _mean(results: Results, task: str) -> float:
    outcomes = results.attempts(task)
    return sum(outcomes) / len(outcomes)


def _rate(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _point(budget: int, values: Sequence[float], results: Results) -> Point:
    return Point(budget, _rate(values), rate_interval(values), _rate(list(results.steps.values())) if results.steps else float(budget))


def plot(found: Scaling, path: Path) -> None:
    """Draw the curves with their 95 % intervals into a file, `.svg` or `.png`. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is not installed", "it, to draw the curves", "pip install matplotlib") from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in found.curves:
        budgets, rates = [p.budget for p in curve.points], [100 * p.rate for p in curve.points]
        (drawn,) = axes.plot(budgets, rates, marker="o", markersize=4, label=curve.name)
        lows, highs = zip(*(p.interval for p in curve.points), strict=True)
        axes.fill_between(budgets, [100 * low for low in lows], [100 * high for high in highs], color=drawn.get_color(), alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks([point.budget for point in found.curves[0].points], [str(point.budget) for point in found.curves[0].points])
    axes.minorticks_off()
    axes.set_ylim(0, 102)
    axes.set_xlabel(f"model calls a task ({found.method}, chosen by {found.verifier})")
    axes.set_ylabel(f"success, % of {found.tasks} tasks")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with rc_context({"svg.hashsalt": "counterplay"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
