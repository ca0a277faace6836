"""Reports and estimates as a person reads them on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.jobs.progress import span
from counterplay.jobs.stops import shown as amount_of
from counterplay.jobs.taken import read_of

if TYPE_CHECKING:
    from counterplay.core.store import UnitRow
    from counterplay.jobs.dry import Estimate
    from counterplay.jobs.report import Report

_REASONS = 8


def report(found: Report) -> list[Any]:
    """A report: what became of the units, why, what it took and what there is now."""
    facts: dict[str, Any] = {"job": found.job, "units": ", ".join(f"{count:,} {state}" for state, count in found.states.items())}
    for name, share in (("improved", found.improved), ("solved", found.solved)):
        if share["of"]:
            low, high = share["interval"]
            facts[name] = f"{share['count']:,} of {share['of']:,} ({low:.0%} to {high:.0%})"
    if found.used:
        limits = found.budget
        amounts = (f"{amount:,.6g} {kind}" + (f" of {limits[kind]:,.6g}" if kind in limits else "") for kind, amount in found.used.items())
        facts["charged"] = ", ".join(amounts)
    if found.read:
        facts["read"] = read_of(found.read)
    if found.seconds:
        facts["this command"] = f"{span(found.seconds)}, {found.live_calls:,} new model calls, {found.settled_before:,} settled before"
    parts: list[Any] = [console.facts(facts), *(stop["said"] for stop in found.stopped), *([found.unspent] if found.unspent else [])]
    if found.reasons:
        rows = [(why["state"], why["error_class"], why["count"], why["reason"][:200]) for why in found.reasons[:_REASONS]]
        parts.append(console.table("why", ["state", "class", "count", "reason"], rows))
    if found.again:
        parts.append(f"for another start of failed and parked units: {found.again}")
    if found.datasets:
        sets = [
            (made["kind"], made["folder"], made["problem"] or ", ".join(f"{n:,} {s}" for s, n in made["rows"].items()))
            for made in found.datasets
        ]
        parts.append(console.table("datasets", ["kind", "folder", "rows"], sets))
    return parts


def why(unit: UnitRow) -> str:
    """Why a unit is in its state; of one that its budget stopped, by which kind of it and how much that was."""
    kinds = unit.result.get("stopped", ())
    shares = (f"{kind} ({amount_of(kind, unit.share[kind])})" if kind in unit.share else kind for kind in kinds)
    return unit.reason or (f"stopped at its share of the budget: {', '.join(shares)}" if kinds else "")


def estimate(found: Estimate) -> list[Any]:
    """What a job would do."""
    facts: dict[str, Any] = {
        "job": found.job,
        "units": ", ".join(f"{count:,} {state}" for state, count in found.units.items()) or "none",
        "search": found.search,
        "datasets": ", ".join(found.datasets) or "none",
    }
    if found.read:
        facts["read"] = read_of(found.read)
    parts: list[Any] = [console.facts(facts)]
    rows = [(one.kind, _plain(one.amount), f"{_plain(one.low)} to {_plain(one.high)}") for one in found.amounts]
    if rows:
        parts.append(console.table("expected to use, answers that are journalled not counted", ["", "about", "range"], rows))
        parts += [f"{', '.join(kinds)}: by {basis}" for basis, kinds in _by_basis(found).items()]
    parts += [stop["said"] for stop in found.stopped]
    parts += [f"{skipped['count']:,} skipped: {skipped['reason']}" for skipped in found.skipped]
    parts += [f"note: {note}" for note in found.notes]
    return parts


def _plain(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:,.3g}"


def _by_basis(found: Estimate) -> dict[str, list[str]]:
    """What each estimate rests on, said once."""
    kinds: dict[str, list[str]] = {}
    for one in found.amounts:
        kinds.setdefault(one.basis, []).append(one.kind)
    return kinds
