"""What a job came to, for a machine and for a person: report.json and report.md."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.beta import wilson
from counterplay.core.budget import KINDS
from counterplay.core.errors import CounterplayError
from counterplay.jobs.planning import units_of
from counterplay.jobs.progress import span
from counterplay.jobs.stops import Stop
from counterplay.jobs.stops import shown as amount_of
from counterplay.jobs.taken import Taken, listing, read_of
from counterplay.jobs.totals import Totals, limits_of
from counterplay.replay.openai_tally import MEANINGS

if TYPE_CHECKING:
    from counterplay.core.nouns import Trace
    from counterplay.core.store import Store
    from counterplay.jobs.datasets import Made
    from counterplay.jobs.spec import Job

_SHOWN = 30
_CHARGED = {
    "model_calls": "draws that searches were charged, those that the journal answered among them",
    "tokens": "tokens of those draws, read and written",
    "usd": "US dollars of those draws",
}
_MOSTLY = 0.5


@dataclass(frozen=True)
class Report:
    """What came of a job. `ended` is why it ended, empty where every unit has settled.

    `states` counts units, `reasons` are why units are not simply done: state, error class, words, how many, ids of some. `used` is what
    all units were charged, by kind, `budget` what they might be; `models` what each model was asked for, as far as it said. `improved` and
    `solved` count units that are done, with Wilson's 95 % interval of their share. `settled_before` units had settled before this command
    began, `live_calls` model calls it really made; `seconds` is this command's time. `read` is what was taken in first,
    `unreadable` the first of what could not be, and `unreadable_in` how to see all of that. `stopped` are the kinds of the budget that
    stopped units at their share (`stops.Stop`), `unspent` says what was left of a budget that some units had no share of. `again` is the
    command that gives failed and parked units another start; empty where there is none.
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
    stopped: Sequence[Mapping[str, Any]] = ()
    unspent: str = ""
    unreadable: Sequence[Mapping[str, Any]] = ()
    unreadable_in: str = ""
    again: str = ""

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
    read: Taken | None = None,
) -> Report:
    """The report of a job as it stands in the store."""
    totals, read = Totals(own=limits_of(job.budget.per_trace)), read or Taken()
    for unit in units_of(store, job_id):
        totals.add(unit)
    done = totals.states.get("done", 0)
    limits = limits_of(job.budget.total)
    searched = done + totals.states.get("failed", 0) + totals.states.get("parked", 0)
    model = job.policy.spec or "none"
    return Report(
        job_id,
        job.job.name,
        ended,
        dict(totals.states),
        _reasons(totals),
        {kind: totals.used[kind] for kind in KINDS if totals.used[kind]},
        limits,
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
        dict(read.counts),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        [asdict(stop) for stop in _stopped(store, job, totals, searched)],
        _unspent(totals, limits),
        list(read.first),
        listing(job) if read.unreadable else "",
        _again(job, job_id, totals.states),
    )


def _stopped(store: Store, job: Job, totals: Totals, searched: int) -> list[Stop]:
    """What kinds of the budget stopped units at their share, the most frequent first."""
    ranked = sorted(totals.stopped.items(), key=lambda item: (-item[1].count, item[0]))
    return [found.told(kind, searched, job, _held(store, found.units)) for kind, found in ranked]


def _held(store: Store, names: Sequence[str]) -> Iterator[Trace]:
    """Those of the traces that are still in the store."""
    for name in names:
        try:
            yield from store.load([name])
        except CounterplayError:
            continue


def _unspent(totals: Totals, limits: Mapping[str, float]) -> str:
    """What was left of the budget, where units had no share of it and more than half is; empty where it is not so."""
    out = sum(why.count for (state, _, said), why in totals.reasons.items() if state == "skipped" and said.startswith("the budget "))
    open_units = totals.states.get("pending", 0) + totals.states.get("running", 0)
    used = {kind: totals.used[kind] for kind, limit in limits.items() if limit and kind != "seconds"}
    if not out or open_units or not used or max(amount / limits[kind] for kind, amount in used.items()) > _MOSTLY:
        return ""
    told = " and ".join(f"{amount_of(kind, amount)} of {amount_of(kind, limits[kind])}" for kind, amount in used.items())
    do = "A budget is divided before anything is asked: a lower [budget] per_trace gives more units a share"
    return f"{out:,} units had no share of the budget, of which {told} were used. {do}."


def _again(job: Job, job_id: str, states: Mapping[str, int]) -> str:
    store = shlex.quote(str(job.job.store))
    return f"counterplay jobs retry {job_id} --store {store}" if states.get("failed") or states.get("parked") else ""


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
    if report.stopped or report.unspent:
        told = [stop["said"] for stop in report.stopped] + ([report.unspent] if report.unspent else [])
        lines += ["## Stopped by the budget", "", *(f"* {_line(said)}" for said in told), ""]
    if report.used:
        budget = report.budget
        rows = [(kind, f"{amount:,.6g}", f"{budget[kind]:,.6g}" if kind in budget else "no limit") for kind, amount in report.used.items()]
        lines += ["## Used", "", *_table(("", "charged", "of"), rows)]
        meanings = {**MEANINGS, **_CHARGED}
        asked = [
            (model, kind, f"{amount:,.6g}", meanings.get(kind, ""))
            for model, amounts in report.models.items()
            for kind, amount in amounts.items()
        ]
        lines += _table(("model", "", "amount", "which are"), asked)
    if report.reasons:
        found = [(r["state"], r["error_class"], r["count"], _cell(r["reason"]), " ".join(r["units"])) for r in report.reasons[:_SHOWN]]
        lines += ["## Why", "", *_table(("state", "class", "count", "reason, the first", "such as"), found)]
    if report.again:
        lines += ["Failed and parked units are left as they are. Another start:", "", f"    {report.again}", ""]
    lines += _sources(report)
    if report.notes:
        lines += ["## Notes", "", *_table(("note", "count"), [(_cell(note), count) for note, count in report.notes.items()])]
    if report.datasets:
        lines += ["## Datasets", "", *_table(("kind", "folder", "rows", "left out"), [_dataset(made) for made in report.datasets])]
    return "\n".join(lines).rstrip() + "\n"


def _sources(report: Report) -> list[str]:
    """What was read, and what of it could not be."""
    if not report.read:
        return []
    lines = ["## Read", "", f"{_line(read_of(report.read))}.", ""]
    if report.unreadable:
        rows = [
            (_cell(row["uri"]), row["inputs"], "" if row["line"] is None else row["line"], _cell(row["reason"]))
            for row in report.unreadable
        ]
        lines += [
            *_table(("could not be read, the first files", "inputs", "line", "why, the first"), rows),
            "All of it:",
            "",
            f"    {report.unreadable_in}",
            "",
        ]
    return lines


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
    return _line(text).replace("|", "\\|")[:300]


def _line(text: str) -> str:
    return " ".join(text.split())
