"""Why a selection leaves nothing: the filters that no trace passes, with what the store has in their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from counterplay.core.errors import UserError
from counterplay.jobs.beginning import has_traces
from counterplay.jobs.planning import selection_of
from counterplay.jobs.taken import Taken

if TYPE_CHECKING:
    from counterplay.core.store import Selection, Store
    from counterplay.jobs.spec import Job

_ALWAYS_US = -(2**62)
_NAMES: dict[str, Literal["agent", "task", "tag", "format"]] = {"agents": "agent", "tasks": "task", "tags": "tag", "formats": "format"}


def nothing_selected(store: Store, job: Job, read: Taken) -> UserError:
    """What to raise where a job has no unit: there is no trace at all, or none that its [select] leaves."""
    unread = read.said()
    if not has_traces(store):
        but = f" ({unread})" if unread else ""
        do = "See that the paths of [[source]] lead to logs."
        return UserError(f"got no trace in the sources{but}, and none is in {job.job.store}", "at least one", do)
    why = "; ".join(_why(store, job))
    do = f"See what there is: counterplay stats --store {job.job.store}" + (f". {unread}" if unread else "")
    return UserError(f"got no trace that [select] leaves in {job.job.store}: {why}", "at least one", do)


def _why(store: Store, job: Job) -> Iterator[str]:
    """The filters that leave nothing, each alone; where all of them leave something, which do not go together."""
    chosen = selection_of(job)
    if chosen.since_us is not None and chosen.until_us is not None and chosen.since_us >= chosen.until_us:
        yield f"since {job.select.since} is not before until {job.select.until}"
        return
    filters = _filters(job, chosen)
    alone = [found for name, _, one in filters if _count(store, one) == 0 and (found := _alone(store, job, name, one))]
    yield from alone or [_together(store, job, filters)]


def _filters(job: Job, chosen: Selection) -> list[tuple[str, str, Selection]]:
    """Each filter that is given: its name, how it is written, and the selection of it alone."""
    from counterplay.core.store import Selection

    select, found = job.select, list[tuple[str, str, Selection]]()
    if chosen.outcome:
        word = "succeeded" if chosen.outcome == ("success",) else chosen.outcome[0]
        found.append(("which", f"which = {word}", Selection(outcome=chosen.outcome)))
    for name in _NAMES:
        words = getattr(select, name)
        if words:
            found.append((name, f"{name} = {', '.join(words)}", _only(name, words)))
    for name, given in {"cost_above_usd": chosen.cost_above_usd, "steps_above": chosen.steps_above, "sample": chosen.sample}.items():
        if given is not None:
            found.append((name, f"{name} = {given:g}", replace(_only(name, given), seed=chosen.seed)))
    for name in ("since", "until"):
        if getattr(select, name) is not None:
            found.append((name, f"{name} = {getattr(select, name)}", _only(f"{name}_us", getattr(chosen, f"{name}_us"))))
    return found


def _only(name: str, value: Any) -> Selection:
    """The selection of one filter alone."""
    from counterplay.core.store import Selection

    return Selection(**{name: value})


def _count(store: Store, selection: Selection | None = None) -> int:
    return sum(1 for _ in store.select_ids(selection))


def _alone(store: Store, job: Job, name: str, one: Selection) -> str:
    """Why no trace passes this filter."""
    if name in _NAMES:
        return "; ".join(_unknown(store, name, word) for word in _missing(store, name, getattr(one, name)))
    if name == "which":
        return _outcomes(store, one.outcome[0])
    if name == "steps_above":
        return f"steps_above = {one.steps_above}: the longest trace has {max(row.steps for row in store.select_ids())} steps"
    if name == "cost_above_usd":
        costs = [row.cost_usd for row in store.select_ids() if row.cost_usd is not None]
        dearest = f"the dearest trace cost ${max(costs):g}" if costs else "no trace has a cost"
        return f"cost_above_usd = {one.cost_above_usd:g}: {dearest}"
    if name in ("since", "until"):
        timed = next(store.select_ids(replace(one, since_us=_ALWAYS_US, until_us=None)), None) is not None
        given = getattr(job.select, name)
        how = ("no trace is as new" if name == "since" else "no trace is as old") if timed else "no trace has a time"
        return f"{name} = {given}: {how}"
    return f"{name} = {one.sample:g}: too small a share of {_count(store):,} traces"


def _missing(store: Store, name: str, words: tuple[str, ...]) -> list[str]:
    """The words that no trace has; where each is had by some, all of them: tags have to be together."""
    gone = [word for word in words if next(store.select_ids(_only(name, (word,))), None) is None]
    return gone or [" and ".join(words)]


def _unknown(store: Store, name: str, word: str) -> str:
    near = store.nearest(_NAMES[name], word)
    known = f"nearest are {', '.join(near)}" if len(near) > 1 else f"there is {near[0]}" if near else "none has any"
    return f"{name} = {word}: no trace has this {_NAMES[name]} ({known})"


def _outcomes(store: Store, word: str) -> str:
    from counterplay.core.store import Selection

    counts = {other: _count(store, Selection(outcome=(other,))) for other in ("success", "failed", "unknown")}
    said = ", ".join(f"{count:,} {other}" for other, count in counts.items() if count)
    given = "succeeded" if word == "success" else word
    return f"which = {given}: by outcome there are {said}"


def _together(store: Store, job: Job, filters: list[tuple[str, str, Selection]]) -> str:
    """How many traces are left as filter is added to filter, up to the one that leaves none."""
    from counterplay.core.store import Selection

    left, steps = Selection(seed=job.job.seed), list[str]()
    for _, words, one in filters:
        given = {field: getattr(one, field) for field in Selection.__slots__ if getattr(one, field) != getattr(Selection(), field)}
        left = replace(left, **given)
        count = _count(store, left)
        steps.append(f"{words} leaves {count:,}")
        if not count:
            return f"of {_count(store):,} traces " + ", then ".join(steps)
    what = f"traces = {', '.join(job.select.traces)}" if job.select.traces else f"of {_count(store):,} traces none is a unit"
    return ", then ".join([*steps, f"{what} leaves 0" if job.select.traces else what])
