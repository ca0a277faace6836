"""What an export is made of, read unit by unit: the traces of one task and their search trees, in an order that content alone decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING

from counterplay.core.errors import UserError
from counterplay.core.nouns import Trace

if TYPE_CHECKING:
    from counterplay.core.store import SearchRow, Store
    from counterplay.finetune.card import Origin
    from counterplay.finetune.rows import SourcedTree

ABLATION = "ablation"
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Unit:
    """The traces of one task, or one trace that names none, in order of id; and their trees, in order of trace, algorithm and id."""

    traces: Sequence[Trace]
    trees: Sequence[SourcedTree]


@dataclass
class Units:
    """The units of a store, in order of their first trace; only light rows of all are in memory. `agent` and `algorithms` as in exports.

    Trees of calls left out (`counterplay ablate`) are no searches: nobody sampled what follows there. They are given where they are named.
    """

    store: Store
    agent: str | None = None
    algorithms: Sequence[str] | None = None
    origins: dict[str, Origin] = field(default_factory=dict)

    def read(self, *, trees: bool = True, logs: bool = True) -> Iterator[Unit]:
        """Each unit, with its trees where they are wanted; without `logs`, only traces that have one. `origins` tells what was read."""
        from counterplay.finetune.card import Origin
        from counterplay.finetune.rows import SourcedTree

        searches = self._searches if trees else {}
        groups = [[name for name in group if logs or name in searches] for group in self._groups]
        traces = self.store.load(chain.from_iterable(groups), batch=_BATCH)
        wanted = (search for group in groups for name in group for search in searches.get(name, ()))
        records = self.store.load_searches(wanted, batch=_BATCH)
        for group in filter(None, groups):
            mine = {trace.id: trace for trace in islice(traces, len(group))}
            self.origins |= {name: Origin.of(trace) for name, trace in mine.items()}
            count = sum(len(searches.get(name, ())) for name in group)
            yield Unit(list(mine.values()), [SourcedTree.of(record, [mine[record.trace or ""]]) for record in islice(records, count)])

    def sources(self) -> Iterator[Origin]:
        """The traces that were read, in order of id. To be asked after that."""
        for name in sorted(self.origins):
            yield self.origins[name]

    @property
    def searched(self) -> bool:
        """Whether any of the traces has a search that has ended."""
        return bool(self._searches)

    def check_searched(self) -> None:
        """Raises UserError where no search of these traces has ended."""
        if not self.searched:
            unfinished = sum(not row.stopped and row.trace in self._ids for row in self.store.every_search())
            raise no_search(self.store, self.algorithms, unfinished)

    @cached_property
    def _groups(self) -> list[list[str]]:
        from counterplay.core.store import Selection

        groups: dict[tuple[str | None, str], list[str]] = {}
        for row in self.store.select_ids(Selection(agents=() if self.agent is None else (self.agent,))):
            groups.setdefault((None, row.id) if row.task is None else (row.task, ""), []).append(row.id)
        return list(groups.values())

    @cached_property
    def _ids(self) -> set[str]:
        return set(chain.from_iterable(self._groups))

    @cached_property
    def _searches(self) -> Mapping[str, list[str]]:
        """The finished searches of each trace, in order: what is still under way, or was killed, is no evidence yet."""
        found: dict[str, list[str]] = {}
        for row in wanted_searches(self.store, self.algorithms):
            if row.trace in self._ids:
                found.setdefault(row.trace or "", []).append(row.id)
        return found


def wanted_searches(store: Store, algorithms: Sequence[str] | None) -> Iterable[SearchRow]:
    """The searches that have ended, by these algorithms; None: all but trees of calls left out."""
    rows = store.every_search(algorithms=algorithms or (), stopped=True)
    return rows if algorithms else (row for row in rows if row.algorithm != ABLATION)


def no_search(store: Store, algorithms: Sequence[str] | None, unfinished: int) -> UserError:
    """What is wrong where no search has ended, and so many are `unfinished`."""
    wanted = f"one by {', '.join(algorithms)}" if algorithms else "at least one"
    if unfinished:
        got = f"got no search of these traces in {store.path} that has ended, and {unfinished} under way or killed"
        return UserError(got, wanted, "Run the same search again: it goes on where it stopped.")
    return UserError(f"got no search of these traces in {store.path}", wanted, "Search first: counterplay search.")
