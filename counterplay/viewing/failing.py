"""Where runs go wrong: the pivotal step of every failed trace of which one is known, by tool, by agent and by how it ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterplay.core.beta import wilson
from counterplay.core.store.viewing import TraceIndex, Wanted
from counterplay.viewing.conversation import View

if TYPE_CHECKING:
    from counterplay.core.store import Store

EXAMPLES = 20
READ = 200
ANSWER = "(answer)"


@dataclass(frozen=True)
class Pivotal:
    """The step at which a failed trace went wrong, as far as is known, who says so, and why."""

    trace: str
    task: str | None
    agent: str
    step: int
    found_by: str
    why: str
    search: str | None = None


def failures(store: Store, index: TraceIndex, agent: str | None = None) -> View:
    """Pivotal steps of failed traces, of one agent or of all. How runs ended is read from at most 200 of them, evenly spread."""
    failed = index.failed(agent)
    found = pivotal_steps(index, failed)
    tools = index.tools_at({each.trace: each.step for each in found})
    by_tool: dict[str, list[Pivotal]] = defaultdict(list)
    for each in found:
        for name in dict.fromkeys(tools.get(each.trace) or [ANSWER]):
            by_tool[name].append(each)
    counts = {name: count for name, count in index.facets(Wanted())["agent"] if agent is None or name == agent}
    by_agent: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in failed:
        by_agent[row["agent"] or ""].append(row)
    known = {each.trace: each for each in found}

    def shown(row: Mapping[str, Any]) -> View:
        return _example(known[row["id"]]) if row["id"] in known else _unlocated(row, "")

    return {
        "traces": sum(counts.values()),
        "failed": len(failed),
        "located": len(found),
        "found_by": dict(Counter(each.found_by for each in found).most_common()),
        "by_tool": _groups(by_tool, lambda _: len(found), _example),
        "by_agent": _groups(by_agent, lambda name: counts.get(name, len(by_agent[name])), shown),
        "by_class": _classes(store, failed),
    }


def pivotal_steps(index: TraceIndex, failed: Iterable[Mapping[str, Any]]) -> list[Pivotal]:
    """The first of these that there is: the last step whose alternative ended well in a search, the first step with a low logged
    score, and the last step with an error.
    """
    better, low, errors = index.better_steps(), index.low_scores(), index.error_steps()
    found = []
    for row in failed:
        trace, who = row["id"], (row["task"], row["agent"] or "")
        if trace in better:
            step, search, score = better[trace]
            found.append(Pivotal(trace, *who, step, "search", f"another way on from here ended with score {score:.2f}", search))
        elif trace in low:
            step, name = low[trace]
            found.append(Pivotal(trace, *who, step, "step score", f"the first low {name}"))
        elif trace in errors:
            step, own = errors[trace]
            found.append(Pivotal(trace, *who, step, "error" if own else "tool error", "the last error"))
    return found


def _groups(groups: Mapping[str, Sequence[Any]], of: Callable[[str], int], shown: Callable[[Any], View]) -> list[View]:
    made = []
    for name, members in groups.items():
        whole = max(of(name), len(members))
        share = len(members) / whole
        low, high = wilson(share, whole)
        told = {"name": name, "count": len(members), "of": whole, "share": share, "low": low, "high": high}
        made.append({**told, "examples": [shown(member) for member in members[:EXAMPLES]]})
    return sorted(made, key=lambda group: (-group["count"], group["name"]))


def _classes(store: Store, failed: Sequence[Mapping[str, Any]]) -> list[View]:
    from counterplay.finetune.failures import failure_class

    read = [failed[place * len(failed) // READ] for place in range(READ)] if len(failed) > READ else failed
    by_class: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row, trace in zip(read, store.load([row["id"] for row in read]), strict=True):
        by_class[failure_class(trace.trajectory)].append(row)
    return _groups(by_class, lambda _: len(read), lambda row: _unlocated(row, "", row["steps"] - 1 if row["steps"] else None))


def _example(found: Pivotal) -> View:
    return {"trace": found.trace, "task": found.task, "step": found.step, "search": found.search, "why": found.why}


def _unlocated(row: Mapping[str, Any], why: str, step: int | None = None) -> View:
    return {"trace": row["id"], "task": row["task"], "step": step, "search": None, "why": why}
