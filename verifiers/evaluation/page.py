"""An evaluation as a page that needs nothing else (HTML with inline plots), as markdown, and as rows of text cells for a table."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence

from counterplay.verifiers.evaluation import plots
from counterplay.verifiers.evaluation.discrimination import Discrimination
from counterplay.verifiers.evaluation.evaluate import Evaluation
from counterplay.verifiers.evaluation.intervals import FEWEST, Estimate
from counterplay.verifiers.evaluation.optimisation import Curve
from counterplay.verifiers.evaluation.probes import NEEDS, ProbeResult
from counterplay.verifiers.evaluation.ranking import Siblings

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Verifiers evaluated</title><style>
:root { color-scheme: light dark; --ink: #1f2933; --quiet: #66727f; --line: #e2e6ea; --paper: #fff; --said: #2563eb; --gold: #b7791f;
  --bad: #c2261d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --quiet: #9aa5b1; --line: #333c45; --paper: #14181c; --said: #6ea0ff;
  --gold: #e0a94a; --bad: #ff7a70; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 1.2rem 0.25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
td:first-child { min-width: 11rem; } td small, .quiet { color: var(--quiet); } .bad { color: var(--bad); font-weight: 600; }
.plots { margin-bottom: 1rem; display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.key span { margin-right: 1.2rem; } .key i { display: inline-block; width: 1.6rem;
  border-top: 2px solid; vertical-align: middle; margin-right: 0.4rem; }
svg { max-width: 100%; height: auto; }
@media (max-width: 600px) { body { margin: 1rem auto; } td:first-child { min-width: 7rem; } th, td { padding-right: 0.7rem; } }
"""

_KEY = (
    '<p class="key quiet"><span><i style="border-color:var(--gold)"></i>gold: the truth of what is selected, 95 % interval</span>'
    '<span><i style="border-color:var(--said);border-top-style:dashed"></i>proxy: the score of what is selected</span>'
    '<span><i style="border-color:var(--quiet);border-top-style:dotted"></i>ceiling: selection by gold itself</span></p>'
)

_FEW = "too few to tell"

Cell = tuple[str, Callable[[Evaluation], str]]


def rows(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """A row a figure: its name, then one cell a verifier. Figures that no verifier has are left out."""
    table = [[name, *(cell(evaluation) for evaluation in evaluations)] for name, cell in _CELLS]
    return [row for row in table if any(cell not in ("", "-") for cell in row[1:])]


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """The table, the probes and the notes."""
    lines = ["# Verifiers evaluated", "", _data(evaluations), ""]
    lines += _table(["", *(named(e) for e in evaluations)], rows(evaluations))
    for evaluation in evaluations:
        lines += ["", f"## {named(evaluation)}", "", verdict(evaluation), ""]
        lines += _table(["probe", "trajectories", "share that rises", "mean change"], probe_rows(evaluation))
        lines += ["", *(f"- {note}" for note in evaluation.notes)]
    return "\n".join(lines).rstrip() + "\n"


def page(evaluations: Sequence[Evaluation]) -> str:
    """The report as one HTML page without outside references."""
    parts = [
        f"{_HEAD}{plots.STYLE}</style></head><body>",
        f'<h1>Verifiers evaluated</h1><p class="quiet">{html.escape(_data(evaluations))}</p>',
        _html_table(["", *(named(e) for e in evaluations)], rows(evaluations)),
        *(_section(evaluation) for evaluation in evaluations),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(evaluation: Evaluation) -> str:
    drawn = list(_plots(evaluation))
    bad = ' class="bad"' if evaluation.failed_probes else ""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in evaluation.notes)
    errors = "".join(f"<li>failed {count} times: {html.escape(text)}</li>" for text, count in evaluation.answers.errors.items())
    return "\n".join(
        [
            f"<h2>{html.escape(named(evaluation))}</h2><p{bad}>{html.escape(verdict(evaluation))}</p>",
            _KEY if evaluation.natural or evaluation.attacked else "",
            f'<div class="plots">{"".join(drawn)}</div>' if drawn else "",
            _html_table(["probe", "trajectories", "share that rises", "mean change"], probe_rows(evaluation)),
            f'<ul class="quiet">{errors}{notes}</ul>' if errors or notes else "",
        ]
    )


def _plots(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.natural:
        yield plots.optimisation(evaluation.natural, "Best of N, trajectories as they are")
    if evaluation.attacked:
        yield plots.optimisation(evaluation.attacked, "Best of N, with attacked versions")
    if evaluation.outcomes:
        yield plots.reliability(evaluation.outcomes, "Reliability, whole trajectories")
    if evaluation.steps:
        yield plots.reliability(evaluation.steps, "Reliability, steps")
    if any(result.change for result in evaluation.probes):
        yield plots.probes(evaluation.probes, "Mean change of the score by probe")


def verdict(evaluation: Evaluation) -> str:
    """In words whether it can be gamed, and what selecting by it buys."""
    tried = [result for result in evaluation.probes if result.change is not None]
    told, paying = [result for result in tried if result.told], evaluation.failed_probes
    said = f"None of {len(told)} probes pays." if told else "No probe could be tried."
    if paying:
        said = f"It can be gamed: {', '.join(paying)} {'pays' if len(paying) == 1 else 'pay'}."
    if tried and not told:
        said = f"{_FEW[0].upper()}{_FEW[1:]} whether it can be gamed: that takes at least {FEWEST} tasks."
    curves = ((evaluation.natural, "as they are"), (evaluation.attacked, "with attacked versions"))
    return " ".join([said, *(_bought(curve, what) for curve, what in curves if curve is not None)])


def _bought(curve: Curve, what: str) -> str:
    effect = "costs gold" if curve.over_optimised else "pays" if curve.pays else "buys nothing that can be seen"
    return f"Selecting by it among trajectories {what} {effect}: {_signed(*curve.gain)} at N = {curve.points[-1].n}."


def probe_rows(evaluation: Evaluation) -> list[list[str]]:
    """A row a probe; one that pays is marked, one that was tried on too few tasks, and one that could not be tried, with the reason."""
    return [[f"{r.name}{_remark(r)}", str(r.n), percent(r.rises), _moved(r.change)] for r in evaluation.probes]


def _remark(result: ProbeResult) -> str:
    if result.change is None:
        return f" (not tried: it takes {NEEDS.get(result.name, 'a step')}, and opinions before and after)"
    return " (pays)" if result.failed else "" if result.told else f" ({_FEW})"


def named(evaluation: Evaluation) -> str:
    """Name and version."""
    return f"{evaluation.name} {evaluation.version}".strip()


def figure(estimate: Estimate | None) -> str:
    """A figure and its interval with three digits; a dash where there is none."""
    if estimate is None:
        return "-"
    return f"{estimate.value:.3f}{_between(estimate.low, estimate.high, '.3f')}"


def percent(estimate: Estimate | None) -> str:
    """A share and its interval in percent."""
    if estimate is None:
        return "-"
    ends = None if estimate.low is None or estimate.high is None else (100 * estimate.low, 100 * estimate.high)
    return f"{100 * estimate.value:.1f} %" + ("" if ends is None else f" ({ends[0]:.1f} to {ends[1]:.1f})")


def _moved(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:+.3f}{_between(estimate.low, estimate.high, '+.3f')}"


def _signed(value: float, low: float | None, high: float | None) -> str:
    return f"{value:+.3f}{_between(low, high, '+.3f')}"


def _between(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _of(
    part: Callable[[Evaluation], Discrimination | None], figure_of: Callable[[Discrimination], Estimate | None]
) -> Callable[[Evaluation], str]:
    def cell(evaluation: Evaluation) -> str:
        found = part(evaluation)
        return "-" if found is None else figure(figure_of(found))

    return cell


def _calibrated(part: Callable[[Evaluation], Discrimination | None]) -> Callable[[Evaluation], str]:
    def cell(evaluation: Evaluation) -> str:
        found = part(evaluation)
        return "-" if found is None else f"{figure(found.ece)}, floor {found.ece_floor:.3f}"

    return cell


def _ranked(part: Callable[[Evaluation], Siblings | None], figure_of: Callable[[Siblings], Estimate]) -> Callable[[Evaluation], str]:
    def cell(evaluation: Evaluation) -> str:
        found = part(evaluation)
        return "-" if found is None else percent(figure_of(found))

    return cell


def _chosen(curve: Callable[[Evaluation], Curve | None]) -> Callable[[Evaluation], str]:
    def cell(evaluation: Evaluation) -> str:
        found = curve(evaluation)
        if found is None:
            return "-"
        falls = f", falls {_signed(*found.fall)} from its peak" if found.over_optimised else ""
        return f"{_signed(*found.gain)} at N = {found.points[-1].n}{falls}"

    return cell


def _none_paying(evaluation: Evaluation) -> str:
    if any(result.told for result in evaluation.probes):
        return "none"
    return _FEW if any(result.change for result in evaluation.probes) else "-"


def _spent(evaluation: Evaluation) -> str:
    answers = evaluation.answers
    cost = "" if answers.cost_usd is None or not answers.questions else f", {answers.cost_usd / answers.questions:.2g} US dollars"
    tokens = "" if answers.tokens is None or not answers.questions else f", {answers.tokens / answers.questions:.0f} tokens"
    return f"{1000 * answers.seconds_per_question:.2g} ms{tokens}{cost}"


_CELLS: tuple[Cell, ...] = (
    ("whole trajectories: AUROC", _of(lambda e: e.outcomes, lambda d: d.auroc)),
    ("whole trajectories: Brier", _of(lambda e: e.outcomes, lambda d: d.brier)),
    ("whole trajectories: ECE", _calibrated(lambda e: e.outcomes)),
    ("steps: AUROC", _of(lambda e: e.steps, lambda d: d.auroc)),
    ("steps: Brier", _of(lambda e: e.steps, lambda d: d.brier)),
    ("steps: ECE", _calibrated(lambda e: e.steps)),
    ("first errors: F1", lambda e: "-" if e.first_errors is None else figure(e.first_errors.f1)),
    ("first errors: found where there is one", lambda e: "-" if e.first_errors is None else percent(e.first_errors.erroneous)),
    ("first errors: none said where there is none", lambda e: "-" if e.first_errors is None else percent(e.first_errors.correct)),
    ("steps marked +1, 0, -1 right", lambda e: "-" if e.ternary is None else percent(e.ternary.accuracy)),
    ("steps: the commonest mark alone", lambda e: "-" if e.ternary is None else f"{100 * e.ternary.majority:.1f} %"),
    ("steps right before the first mistake", lambda e: "-" if e.ternary is None else percent(e.ternary.prefix)),
    ("siblings of a task: pairs in order", _ranked(lambda e: e.task_siblings, lambda s: s.pairs)),
    ("siblings of a task: one against many", _ranked(lambda e: e.task_siblings, lambda s: s.one_against_many)),
    ("siblings of a state: pairs in order", _ranked(lambda e: e.step_siblings, lambda s: s.pairs)),
    ("siblings of a state: one against many", _ranked(lambda e: e.step_siblings, lambda s: s.one_against_many)),
    ("score per doubling of steps", lambda e: _moved(e.length_steps)),
    ("score per doubling of characters", lambda e: _moved(e.length_text)),
    ("gold gained by selection", _chosen(lambda e: e.natural)),
    ("gold gained, with attacked versions", _chosen(lambda e: e.attacked)),
    ("same score in any order", lambda e: "-" if e.consistency is None else percent(e.consistency.same)),
    ("probes that pay", lambda e: ", ".join(e.failed_probes) or _none_paying(e)),
    ("no opinion", lambda e: percent(e.answers.abstained)),
    ("failed", lambda e: percent(e.answers.failed)),
    ("a question takes", _spent),
)


def _data(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    return f"{first.trajectories} trajectories of {first.tasks} tasks, {first.labelled_steps} labelled steps. Intervals are 95 %."


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    if not body:
        return []
    lines = [list(head), ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    if not body:
        return ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(_html_cell(cell) for cell in line) + "</tr>" for line in body)
    return f'<div class="scroll"><table><tr>{top}</tr>{lines}</table></div>'


def _html_cell(cell: str) -> str:
    value, bracket, rest = html.escape(cell).partition(" (")
    return f"<td>{value}<small> ({rest}</small></td>" if bracket else f"<td>{value}</td>"
