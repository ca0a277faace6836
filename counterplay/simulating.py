"""How true a simulation is, by tool: the front door to `replay.holdout`, with intervals, for people and as a gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterplay import console
from counterplay.core.beta import wilson
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace, parse_json_object
from counterplay.finetune.evaluate import Interval
from counterplay.replay.holdout import Agreement, Trial, holdout
from counterplay.replay.simulators import simulation_from_spec

_RESAMPLES = 2000
_ROWS = 40


@dataclass(frozen=True)
class Share:
    """A mean in [0, 1] over `n` calls, with its 95 % interval; None where there was none."""

    n: int
    value: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class ToolTruth:
    """One tool (empty: all together). `asked` calls were held out; `answered` is the share that got a result. Of those:

    `exact` is the share of results that were right, `fields` the mean F1 of their JSON leaves (or words), `errors` the share where
    error and success agreed. `baseline` is `exact`, and `baseline_fields` `fields`, of the tool's most frequent result given to the
    same calls. `same` and `similar` split `exact` by whether the log holds the very call under equal writes.
    """

    tool: str
    asked: int
    answered: Share
    exact: Share
    fields: Share
    errors: Share
    baseline: Share
    baseline_fields: Share
    same: Share
    similar: Share


@dataclass(frozen=True)
class SimulationCheck:
    """What the check found. `groups` of runs were held out as wholes; `unanswered` counts why there was no result, most frequent first."""

    simulator: str
    traces: int
    groups: int
    tools: tuple[ToolTruth, ...]
    total: ToolTruth
    unanswered: Mapping[str, int]

    @property
    def fidelity(self) -> dict[str, float]:
        """For each tool the lower end of the interval of `exact`: a few lucky calls open no gate."""
        return {tool.tool: tool.exact.interval[0] for tool in self.tools if tool.exact.interval is not None}


async def check(
    traces: Sequence[Trace],
    spec: str = "nearest",
    *,
    effects: Mapping[str, Effect] | None = None,
    base_url: str | None = None,
    min_likeness: float | None = None,
    simulate_writes: bool = False,
    folds: int = 5,
    within_task: bool = False,
    max_calls: int | None = None,
    seed: int = 0,
    on_call: Callable[[], None] = lambda: None,
) -> SimulationCheck:
    """Hold out the runs of `traces` in turn and ask the simulation that `spec` names, built of the others, for their results.

    `within_task` leaves it the other attempts at the same task; `max_calls` limits how often it is asked, in all.
    Raises UserError where nothing could be asked: no runs to hold out, or no tool that may be simulated.
    """
    rules: dict[str, Any] = {
        "effects": effects, "base_url": base_url, "min_likeness": min_likeness, "simulate_writes": simulate_writes,
    }  # fmt: skip
    trials = await holdout(
        traces,
        lambda shown: simulation_from_spec(spec, shown, **rules),
        folds=folds,
        seed=seed,
        within_task=within_task,
        max_calls=max_calls,
        on_call=on_call,
    )
    if not trials:
        do = "Declare effects: tools that are not declared count as external."
        raise UserError(f"got {len(traces)} traces in which no tool may be simulated", "tools that read", do)
    return summary(trials, spec, len(traces))


def summary(trials: Sequence[Trial], spec: str, traces: int) -> SimulationCheck:
    """Trials as figures by tool, the most asked first."""
    by_tool: dict[str, list[Trial]] = {}
    for trial in trials:
        by_tool.setdefault(trial.tool, []).append(trial)
    ranked = sorted(by_tool.items(), key=lambda item: (-len(item[1]), item[0]))
    reasons = Counter(trial.reason.partition(":")[0] if ":" in trial.reason else trial.reason for trial in trials if trial.got is None)
    return SimulationCheck(
        spec,
        traces,
        len({trial.group for trial in trials}),
        tuple(_truth(tool, of) for tool, of in ranked),
        _truth("", trials),
        dict(reasons.most_common()),
    )


def _truth(tool: str, trials: Sequence[Trial]) -> ToolTruth:
    answered = [(trial, trial.got) for trial in trials if trial.got is not None]
    usual = [trial.baseline for trial, _ in answered if trial.baseline is not None]
    same = [got.exact for trial, got in answered if trial.likeness == 1.0]
    similar = [got.exact for trial, got in answered if trial.likeness != 1.0]
    return ToolTruth(
        tool,
        len(trials),
        _share(trial.got is not None for trial in trials),
        _share(got.exact for _, got in answered),
        _mean([(trial.group, got.fields) for trial, got in answered]),
        _share(got.errors for _, got in answered),
        _share(each.exact for each in usual),
        _plain_mean(usual),
        _share(same),
        _share(similar),
    )


def _share(outcomes: Iterable[bool]) -> Share:
    counted = list(outcomes)
    if not counted:
        return Share(0)
    rate = sum(counted) / len(counted)
    return Share(len(counted), rate, wilson(rate, len(counted)))


def _plain_mean(agreements: Sequence[Agreement]) -> Share:
    return Share(len(agreements), sum(each.fields for each in agreements) / len(agreements)) if agreements else Share(0)


def _mean(values: Sequence[tuple[int, float]]) -> Share:
    """A mean whose interval comes from resampling whole groups: calls of one run are not independent. One group gives none."""
    if not values:
        return Share(0)
    import numpy as np

    groups = sorted({group for group, _ in values})
    place = {group: index for index, group in enumerate(groups)}
    sums, counts = np.zeros(len(groups)), np.zeros(len(groups))
    for group, value in values:
        sums[place[group]] += value
        counts[place[group]] += 1
    mean = float(sums.sum() / counts.sum())
    if len(groups) < 2:
        return Share(len(values), mean)
    drawn = np.random.default_rng(0).integers(0, len(groups), (_RESAMPLES, len(groups)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return Share(len(values), mean, (float(low), float(high)))


def fidelity_from(path: str | Path) -> dict[str, float]:
    """The gate that a check printed with `--json` and kept in a file. Raises UserError where the file holds none."""
    try:
        report = parse_json_object(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}", "what `counterplay simulate check --json` printed") from error
    gate = (report or {}).get("fidelity")
    if not isinstance(gate, dict) or not all(isinstance(value, int | float) for value in gate.values()):
        raise UserError(f"{path} holds no fidelity by tool", "what `counterplay simulate check --json` printed")
    return {str(tool): float(value) for tool, value in gate.items()}


def plain(report: SimulationCheck) -> dict[str, Any]:
    """The report as JSON, with its gate."""
    return {**console.plain(report), "fidelity": report.fidelity}


def view(report: SimulationCheck) -> list[Any]:
    """The report as a person reads it: a row for each tool, then why there was no answer."""
    columns = ["tool", "asked", "answered", "exact", "fields (F1)", "error or not", "same call", "similar", "usual result: exact", "fields"]
    rows = [_row(tool) for tool in (*report.tools[:_ROWS], report.total)]
    title = f"{report.simulator} on {report.groups} held-out groups of {report.traces} runs; shares of answered calls with 95 % intervals"
    shown: list[Any] = [console.table(title, columns, rows)]
    if report.unanswered:
        shown.append(console.table("no answer", ["calls", "why"], [(n, why) for why, n in list(report.unanswered.items())[:_ROWS]]))
    return shown


def _row(tool: ToolTruth) -> list[str | int]:
    parts = (tool.answered, tool.exact, tool.fields, tool.errors, tool.same, tool.similar, tool.baseline, tool.baseline_fields)
    return [tool.tool or "all", tool.asked, *(_percent(part) for part in parts)]


def _percent(share: Share) -> str:
    if share.value is None:
        return "-"
    spread = "" if share.interval is None else f" ({share.interval[0]:.0%}-{share.interval[1]:.0%})"
    return f"{share.value:.0%}{spread}"
