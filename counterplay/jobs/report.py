"""What a job came to, for a machine and for a person: report.json and report.md."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.beta import wilson
from counterplay.core.budget import KINDS, Budget
from counterplay.jobs.planning import units_of
from counterplay.jobs.progress import span
from counterplay.jobs.totals import Totals

if TYPE_CHECKING:
    from counterplay.core.store import IngestReport, Store
    from counterplay.jobs.datasets import Made
    from counterplay.jobs.spec import Job

_SHOWN = 30


@dataclass(frozen=True)
class Report:
    """What came of a job. `ended` is why it ended, empty where every unit has settled.

    `states` counts units, `reasons` are why units are not simply done: state, error class, words, how many, ids of some. `used` is what
    all units were charged, by kind, `budget` what they might be; `models` what each model was asked for, as far as it said. `improved` and
    `solved` count units that are done, with Wilson's 95 % interval of their share. `settled_before` units had settled before this command
    began, `live_calls` calls were made for those that it settled; `seconds` is this command's time. `read` is what was taken in first.
    """

    job: str
    name: str
    ended: str
    states: Mapping[str, int]
    reasons: Sequence[Mapping[str, Any]]
    used: Mapping[str, float]
    budget: Mapping[str, float]
    models: Mapping[str, Mapping[str, float]]
    improved: Mapping[str, Any]
    solved: Mapping[str, Any]
    searches: int
    notes: Mapping[str, int]
    failures: Mapping[str, int]
    datasets: Sequence[Mapping[str, Any]]
    settled_before: int
    live_calls: int
    seconds: float
    read: Mapping[str, int] = field(default_factory=dict)
    at: str = ""

    @property
    def exit_code(self) -> int:
        """0 where everything is done, 3 where something is left, failed, parked or without a row."""
        left = sum(self.states.get(state, 0) for state in ("pending", "running", "failed", "parked"))
        return 3 if left or any(made["problem"] for made in self.datasets) else 0


def reported(
    store: Store,
    job: Job,
    job_id: str,
    *,
    ended: str,
    datasets: Sequence[Made] = (),
    settled_before: int = 0,
    live_calls: int = 0,
    seconds: float = 0.0,
    read: IngestReport | None = None,
) -> Report:
    """The report of a job as it stands in the store."""
    totals = Totals()
    for unit in units_of(store, job_id):
        totals.add(unit)
    done = totals.states.get("done", 0)
    limits = Budget.parse(job.budget.total).limits
    model = job.policy.spec or "none"
    return Report(
        job_id,
        job.job.name,
        ended,
        dict(totals.states),
        _reasons(totals),
        {kind: totals.used[kind] for kind in KINDS if totals.used[kind]},
        {kind: limit for kind in KINDS if (limit := getattr(limits, kind)) is not None},
        {model: {**{kind: totals.used[kind] for kind in ("model_calls", "tokens", "usd") if totals.used[kind]}, **totals.tally}},
        _share(totals.improved, done),
        _share(totals.solved, done),
        totals.searches,
        dict(totals.notes.most_common()),
        dict(totals.failures.most_common()),
        [asdict(made) for made in datasets],
        settled_before,
        live_calls,
        round(seconds, 1),
        {name: count for name, count in asdict(read).items() if count} if read is not None else {},
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _reasons(totals: Totals) -> list[dict[str, Any]]:
    ranked = sorted(totals.reasons.items(), key=lambda item: (-item[1].count, item[0]))
    return [
        {"state": state, "error_class": error_class, "reason": reason.first, "count": reason.count, "units": reason.examples}
        for (state, error_class, _), reason in ranked
    ]


def _share(count: int, of: int) -> dict[str, Any]:
    return {"count": count, "of": of, "interval": list(wilson(count / of, of)) if of else None}


def write(report: Report, folder: Path) -> None:
    """report.json and report.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """The report as a page."""
    settled = sum(report.states.get(state, 0) for state in ("done", "failed", "skipped", "parked"))
    lines = [f"# {report.name}", "", f"Job `{report.job}`, {report.at}: {report.ended or 'every unit has settled'}.", ""]
    lines += _table(("units", "count"), [*report.states.items(), ("in all", sum(report.states.values()))])
    if report.settled_before:
        lines += [f"{report.settled_before:,} units had settled before; this command settled {settled - report.settled_before:,}.", ""]
    lines += [f"It took {span(report.seconds)} and {report.live_calls:,} model calls that nobody had answered before.", ""]
    if report.states.get("done"):
        lines += [f"{_told(report.improved)} got a branch better than their log, {_told(report.solved)} one that is right.", ""]
    if report.used:
        budget = report.budget
        rows = [(kind, f"{amount:,.6g}", f"{budget[kind]:,.6g}" if kind in budget else "no limit") for kind, amount in report.used.items()]
        lines += ["## Used", "", *_table(("", "charged", "of"), rows)]
        rows = [(model, kind, f"{amount:,.6g}") for model, amounts in report.models.items() for kind, amount in amounts.items()]
        lines += _table(("model", "", "amount"), rows)
    if report.reasons:
        found = [(r["state"], r["error_class"], r["count"], _cell(r["reason"]), " ".join(r["units"])) for r in report.reasons[:_SHOWN]]
        lines += ["## Why", "", *_table(("state", "class", "count", "reason, the first", "such as"), found)]
    if report.notes:
        lines += ["## Notes", "", *_table(("note", "count"), [(_cell(note), count) for note, count in report.notes.items()])]
    if report.datasets:
        lines += ["## Datasets", "", *_table(("kind", "folder", "rows", "left out"), [_dataset(made) for made in report.datasets])]
    return "\n".join(lines).rstrip() + "\n"


def _told(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['count']:,} of {share['of']:,} units ({share['count'] / share['of']:.0%}, 95 % interval {low:.0%} to {high:.0%})"


def _dataset(made: Mapping[str, Any]) -> tuple[str, ...]:
    rows = made["problem"] or ", ".join(f"{count:,} {split}" for split, count in made["rows"].items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in made["dropped"].items())
    return made["kind"], Path(made["folder"]).name, _cell(rows), _cell(dropped)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |"

    return [line(columns), line(["---"] * len(columns)), *map(line, rows), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
