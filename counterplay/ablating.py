"""Leaving calls of logged successes out, one at a time: the front door to `finetune.ablation`, with the trees kept in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from counterplay.core.nouns import Trace

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.parts import Asked


@dataclass(frozen=True)
class Ablated:
    """What was played. `calls` were left out in `searches`, `spared` of them without harm; `tools` says both by tool.

    `skipped` counts by reason the traces without a tree.
    """

    searches: tuple[str, ...]
    calls: int
    spared: int
    tools: Mapping[str, str]
    skipped: Mapping[str, int]


async def ablate(
    store: Store, traces: Sequence[Trace], asked: Asked, *, reads_only: bool = False, on_trace: Callable[[], object] = lambda: None
) -> Ablated:
    """Play every logged success again without each of its calls, and keep the trees as searches by the name of ablation.

    The parts are those of `asked`: an environment that executes, and a verifier. `reads_only` leaves out no call of a tool that may
    write or reach outside. A trace that is ablated again replaces its tree.
    """
    from counterplay.finetune.ablation import ablate as leave_out
    from counterplay.finetune.ablation import ablations

    environment_of, verifier = asked.make_environment(traces), asked.make_verifier()
    tried, spared, skipped, searches = Counter[str](), Counter[str](), Counter[str](), []
    for trace in traces:
        found, drops = await leave_out([trace], environment_of, verifier, reads_only=reads_only)
        skipped.update(drop.reason for drop in drops)
        for source in found:
            store.put_search(source.tree.to_record(source.search, trace=trace.id, task=trace.task, fork_step=0))
            searches.append(source.search)
            judged = [one for one in ablations(source) if one.needed is not None]
            tried.update(one.call.name for one in judged)
            spared.update(one.call.name for one in judged if not one.needed)
        on_trace()
    tools = {name: f"{spared[name]} of {count} were not needed" for name, count in tried.most_common()}
    return Ablated(tuple(searches), tried.total(), spared.total(), tools, dict(skipped.most_common()))
