"""An evaluation for a person to read: tables on a terminal, shortened, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from counterplay import console

if TYPE_CHECKING:
    from counterplay.evaluation import Evaluation
    from counterplay.finetune.evaluate import Comparison, EvaluationReport, Summary

_CLASSES, _TASKS = 8, 4


def tables(evaluation: Evaluation) -> list[Any]:
    """Success by policy, every paired difference in points, each above its 95 % interval; what a success took; how runs failed; then
    the verdicts in words, with the first regressions.
    """
    report = evaluation.report
    shown: list[Any] = [_success(report)]
    columns, rows = _costs(report.policies)
    if rows:
        shown.append(console.table("what it took", columns, rows))
    columns, rows = _failures(report)
    if rows:
        shown.append(console.table("how runs failed: share of all attempts, 95 % intervals", columns, rows[:_CLASSES]))
        shown += [f"and {len(rows) - _CLASSES} classes more"] if len(rows) > _CLASSES else []
    for comparison in report.comparisons:
        shown.append(comparison.sentence())
        if comparison.regressions:
            shown.append(_regressed(comparison))
    return [*shown, *(f"not played, and left out: {task}: {error}" for task, error in evaluation.unplayed.items())]


def _success(report: EvaluationReport) -> Any:
    baselines = list(dict.fromkeys(comparison.a for comparison in report.comparisons))
    cells = {(c.b, c.a): f"{100 * c.difference:+.1f}\n{interval(c.interval, signed=True)}" for c in report.comparisons}
    rows = [
        [policy.name, f"{100 * policy.rate:.1f} %\n{interval(policy.interval)}", *(cells.get((policy.name, b), "") for b in baselines)]
        for policy in report.policies
    ]
    first = report.policies[0]
    played = f"{first.tasks} held-out tasks" + (f", {first.attempts} attempts each" if first.attempts > 1 else "")
    title = f"{played}: success, paired differences, 95 % intervals"
    return console.table(title, ["agent", "success", *(f"over {baseline}" for baseline in baselines)], rows)


def _costs(policies: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """pass@k, and steps and US dollars a success, as far as they are known."""
    ks = sorted({k for policy in policies for k in policy.pass_at if policy.attempts > 1})
    ks = [k for k in ks if k & (k - 1) == 0 or k == ks[-1]]
    columns = ["agent", *(f"pass@{k}" for k in ks), "steps a run", "steps a success", "usd a success"]
    rows = [
        [
            policy.name,
            *(f"{100 * policy.pass_at[k]:.1f} %\n{interval(policy.pass_intervals[k])}" for k in ks),
            *("-" if value is None else f"{value:.1f}" for value in (policy.mean_steps, policy.steps_per_success)),
            "-" if policy.cost_per_success_usd is None else f"{policy.cost_per_success_usd:.4f}",
        ]
        for policy in policies
    ]
    known = [at for at in range(len(columns)) if any(row[at] != "-" for row in rows)]
    return [columns[at] for at in known], [[row[at] for at in known] for row in rows]


def _failures(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """One row a class, the most frequent first; with the change where two policies are compared."""
    shares = {policy.name: {share.failure: share for share in policy.failures} for policy in report.policies}
    names = list(dict.fromkeys(name for found in shares.values() for name in found))
    names.sort(key=lambda name: -max(found[name].share for found in shares.values() if name in found))
    pair = report.comparisons[0] if len(report.policies) == 2 and report.comparisons else None
    changes = {} if pair is None else {change.failure: change for change in pair.failures}
    rows = []
    for name in names:
        cells = [found.get(name) for found in shares.values()]
        row = [name, *("0.0 %" if cell is None else f"{100 * cell.share:.1f} %\n{interval(cell.interval)}" for cell in cells)]
        if name in changes:
            row.append(f"{100 * changes[name].difference:+.1f}\n{interval(changes[name].interval, signed=True)}")
        rows.append(row)
    return ["failure", *shares, *(["change"] if changes else [])], rows


def _regressed(comparison: Comparison) -> str:
    named = [f"{task} ({' -> '.join(comparison.ends[task])})" if task in comparison.ends else task for task in comparison.regressions]
    more = f", and {len(named) - _TASKS} more" if len(named) > _TASKS else ""
    gains = f"{len(comparison.gains)} tasks gained, {len(named)} regressed"
    return f"  {comparison.b} against {comparison.a}: {gains}: {', '.join(named[:_TASKS])}{more}"


def interval(bounds: tuple[float, float], *, signed: bool = False) -> str:
    """In percent or points."""
    low, high = (100 * bound for bound in bounds)
    return f"{low:+.1f}..{high:+.1f}" if signed else f"{low:.1f} to {high:.1f}"


def markdown(evaluation: Evaluation) -> str:
    """All of it: verdicts, tables, every regression and gain with how both runs ended, and what was played how."""
    report = evaluation.report
    baselines = list(dict.fromkeys(comparison.a for comparison in report.comparisons))
    cells = {(c.b, c.a): f"{100 * c.difference:+.1f} ({interval(c.interval, signed=True)})" for c in report.comparisons}
    rates = [
        [p.name, str(p.tasks), f"{100 * p.rate:.1f} % ({interval(p.interval)})", *(cells.get((p.name, b), "") for b in baselines)]
        for p in report.policies
    ]
    parts = ["# Evaluation", "", *(f"* {comparison.sentence()}" for comparison in report.comparisons), ""]
    parts += [*grid(["agent", "tasks", "success", *(f"over {b}" for b in baselines)], rates), ""]
    parts += ["## What it took", "", *grid(*_costs(report.policies)), ""]
    columns, rows = _failures(report)
    if rows:
        parts += ["## How runs failed", "", "Shares of all attempts; each interval is at 95 % for itself.", "", *grid(columns, rows), ""]
    for comparison in report.comparisons:
        parts += _listed(comparison)
    if evaluation.unplayed:
        unplayed = [[task, error] for task, error in evaluation.unplayed.items()]
        parts += ["## Not played, and left out for all", "", *grid(["task", "error"], unplayed), ""]
    settings = [[name, str(value)] for name, value in evaluation.settings.items()]
    return "\n".join([*parts, "## Settings", "", *grid(["setting", "value"], settings), ""])


def _listed(comparison: Comparison) -> Iterable[str]:
    for title, tasks in (("Regressions", comparison.regressions), ("Gains", comparison.gains)):
        if tasks:
            rows = [[task, *comparison.ends.get(task, ("", ""))] for task in tasks]
            yield from (f"## {title} of {comparison.b} against {comparison.a}", "", *grid(["task", comparison.a, comparison.b], rows), "")


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|").replace("\n", "<br>") for cell in line) + " |" for line in lines]
