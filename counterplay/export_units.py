"""What an export is made of, read unit by unit: the traces of one task and their search trees, in an order that content alone decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class Unit:
    """The traces of one task, or one trace that names none, in order of id; and their trees, in order of trace, algorithm and id."""

    traces: Sequence[Trace]
    trees: Sequence[SourcedTree]


@dataclass
class Units:
    """The units of a store, in order of their first trace, read some thousand traces at a time: nothing but `origins` is kept of all.

    `agent` and `algorithms` as in exports. `jobs` are ids: only traces in units of these jobs, with the trees that those units came to.
    Trees of calls left out (`counterplay ablate`) are no searches: nobody sampled what follows there. They are given where they are named,
    whoever made them.
    """

    store: Store
    agent: str | None = None
    algorithms: Sequence[str] | None = None
    jobs: Sequence[str] = ()
    origins: dict[str, Origin] = field(default_factory=dict)

    def read(self, *, trees: bool = True, logs: bool = True) -> Iterator[Unit]:
        """Each unit, with its trees where they are wanted; without `logs`, only traces that have one. `sources` tells what was read."""
        for groups in self._windows():
            searches = self._searches(groups) if trees else {}
            wanted = [[name for name in group if logs or name in searches] for group in groups]
            yield from self._read([group for group in wanted if group], searches)

    def _read(self, groups: Sequence[Sequence[str]], searches: Mapping[str, Sequence[str]]) -> Iterator[Unit]:
        from counterplay.finetune.card import Origin
        from counterplay.finetune.rows import SourcedTree

        names = list(chain.from_iterable(groups))
        traces = self.store.load(names, batch=_BATCH)
        records = self.store.load_searches(chain.from_iterable(searches.get(name, ()) for name in names), batch=_BATCH)
        for group in groups:
            mine = {trace.id: trace for trace in islice(traces, len(group))}
            for name, trace in mine.items():
                origin = replace(Origin.of(trace), id="")
                self.origins[name] = self._alike.setdefault(origin, origin)
            count = sum(len(searches.get(name, ())) for name in group)
            yield Unit(list(mine.values()), [SourcedTree.of(record, [mine[record.trace or ""]]) for record in islice(records, count)])

    def sources(self) -> Iterator[Origin]:
        """The traces that were read, in order of id. To be asked after that."""
        for name in sorted(self.origins):
            yield replace(self.origins[name], id=name)

    @cached_property
    def searched(self) -> bool:
        """Whether any of the traces has a search that has ended."""
        return any(self._searches(groups) for groups in self._windows())

    def check_searched(self) -> None:
        """Raises UserError where no search of these traces has ended."""
        if not self.searched and self.jobs:
            raise UserError("got no search that the job's units came to", "at least one", "See why: counterplay jobs units ID")
        if not self.searched:
            unfinished = sum(not row.stopped for groups in self._windows() for row in self._held(groups))
            raise no_search(self.store, self.algorithms, unfinished)

    def _windows(self) -> Iterator[list[list[str]]]:
        """The ids of the traces by unit, as many units at a time as have some thousand together."""
        from counterplay.core.store import Selection

        chosen = Selection(agents=() if self.agent is None else (self.agent,), jobs=tuple(self.jobs))
        window: list[list[str]] = []
        count = 0
        for group in self.store.groups_of(chosen):
            window.append(group)
            count += len(group)
            if count >= _WINDOW:
                yield window
                window, count = [], 0
        if window:
            yield window

    def _searches(self, groups: Sequence[Sequence[str]]) -> Mapping[str, list[str]]:
        """The finished searches of each trace, in order: what is still under way, or was killed, is no evidence yet."""
        found: dict[str, list[str]] = {}
        for row in sorted(finished(self._held(groups), self.algorithms), key=lambda row: (row.algorithm, row.id)):
            found.setdefault(row.trace or "", []).append(row.id)
        return found

    def _held(self, groups: Sequence[Sequence[str]]) -> Iterator[SearchRow]:
        """The searches of these traces; of a job's, those that its units came to."""
        names = list(chain.from_iterable(groups))
        own = self.store.searches_by(self.jobs, names) if self.jobs else None
        for row in self.store.searches(traces=names):
            if own is None or row.id in own or row.algorithm == ABLATION:
                yield row

    @cached_property
    def _alike(self) -> dict[Origin, Origin]:
        """One of each kind of origin: a log has few agents and models, and many traces."""
        return {}


def finished(rows: Iterable[SearchRow], algorithms: Sequence[str] | None) -> Iterator[SearchRow]:
    """Those of the searches that have ended, by these algorithms; None: all but trees of calls left out."""
    for row in rows:
        if row.stopped and (row.algorithm in algorithms if algorithms else row.algorithm != ABLATION):
            yield row


def no_search(store: Store, algorithms: Sequence[str] | None, unfinished: int) -> UserError:
    """What is wrong where no search has ended, and so many are `unfinished`."""
    wanted = f"one by {', '.join(algorithms)}" if algorithms else "at least one"
    if unfinished:
        got = f"got no search of these traces in {store.path} that has ended, and {unfinished} under way or killed"
        return UserError(got, wanted, "Run the same search again: it goes on where it stopped.")
    return UserError(f"got no search of these traces in {store.path}", wanted, "Search first: counterplay search.")
