"""What a search over many traces came to, counted from trees that are gone again: of each only a few facts are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Step
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.forking import NOT_FOUND

CLOCK = "seconds"
_SOLVED = 1.0


@dataclass(frozen=True)
class Searched:
    """What a search over many traces did. `searches` holds one id a tree, in trace order.

    `resumed` trees were complete in the store already. `improved` trees have a finished branch that scores above the logged one.
    `used` is what the trees' budgets were charged, answers from the journal included; `live_calls` the model calls really made now.
    `failures` counts calls that failed inside searches, by kind, with the first message of each; such searches are tried again, but for
    `closing`: environments that failed when they were let go of.
    `branch_errors` counts branches that could not go on, by their reason, the most frequent eight. `notes` counts what was not as asked
    for or was left to be chosen: another search, a start because a strategy found no step.
    `digest` is 32 hex digits over the trees: equal for equal trees.
    """

    searches: tuple[str, ...]
    traces: int
    skipped: Mapping[str, str]
    resumed: int
    improved: int
    nodes: int
    used: Mapping[str, float]
    live_calls: int
    tally: Mapping[str, Any]
    stopped: Mapping[str, int]
    failures: Mapping[str, Any]
    branch_errors: Mapping[str, int]
    notes: Mapping[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of one tree. `improved`: a branch beats the logged one; `solved`: its score is 1. `used` is without seconds."""

    id: str
    trace: str | None
    improved: bool
    solved: bool
    nodes: int
    used: Mapping[str, float]
    stopped: str
    failures: Mapping[str, Any]
    branch_errors: Mapping[str, int]
    notes: tuple[str, ...]
    digest: str
    live_calls: int = 0
    held: bool = False


def ended(stopped: str) -> bool:
    """Whether a search that stopped for this reason would stop there again: not one that was cut off, or that ran out of time."""
    return bool(stopped) and CLOCK not in stopped


def facts_of(record: SearchRecord, reward: float | None, *, live_calls: int = 0, held: bool = False) -> Facts:
    """The facts of a tree over a trace with this logged `reward`. `live_calls` were really made; `held`: it was complete in the store."""
    return Facts(
        record.id,
        record.trace,
        improved=_improved(record, reward),
        solved=_solved(record),
        nodes=len(record.nodes),
        used={kind: amount for kind, amount in asdict(record.used).items() if amount and kind != CLOCK},
        stopped=record.stopped,
        failures=record.config.get("failures") or {},
        branch_errors=Counter(node.step.error for node in record.nodes if node.step is not None and node.step.error),
        notes=_notes(record),
        digest=_digest(record),
        live_calls=live_calls,
        held=held,
    )


def summary(
    trees: Sequence[Facts],
    *,
    traces: int = 0,
    skipped: Mapping[str, str] | None = None,
    tally: Mapping[str, Any] | None = None,
    unclosed: Sequence[str] = (),
) -> Searched:
    """Many trees as one report. `unclosed` says why environments could not be closed."""
    closing = {"closing": {"count": len(unclosed), "first": unclosed[0]}} if unclosed else {}
    return Searched(
        searches=tuple(tree.id for tree in trees),
        traces=traces,
        skipped=skipped or {},
        resumed=sum(tree.held for tree in trees),
        improved=sum(tree.improved for tree in trees),
        nodes=sum(tree.nodes for tree in trees),
        used=added(tree.used for tree in trees),
        live_calls=sum(tree.live_calls for tree in trees),
        tally=tally or {},
        stopped=dict(Counter(tree.stopped for tree in trees)),
        failures=together([closing, *(tree.failures for tree in trees)]),
        branch_errors=dict(added_up(tree.branch_errors for tree in trees).most_common(8)),
        notes=dict(Counter(note for tree in trees for note in tree.notes)),
        digest=content_key(*(tree.digest for tree in trees)),
    )


def together(failures: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Failures of many searches by kind: how many, and the first message."""
    found: dict[str, dict[str, Any]] = {}
    for one in failures:
        for kind, failed in one.items():
            known = found.setdefault(kind, {"count": 0, "first": failed["first"]})
            known["count"] += failed["count"]
    return found


def added(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Amounts by kind, in all."""
    return dict(added_up(amounts))


def added_up(amounts: Iterable[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in amounts:
        total.update(one)
    return total


def _notes(record: SearchRecord) -> tuple[str, ...]:
    begun = str(record.config.get("begun", ""))
    return tuple(note for note in (str(record.config.get("chosen", "")), begun if begun.endswith(NOT_FOUND) else "") if note)


def _improved(record: SearchRecord, reward: float | None) -> bool:
    ended = _ended(record)
    best, logged = _best(ended), [node.score.value for node in ended if node.logged and node.score is not None]
    return best is not None and best.score is not None and not best.logged and best.score.value > max(logged, default=reward or 0.0)


def _solved(record: SearchRecord) -> bool:
    best = _best(_ended(record))
    return best is not None and best.score is not None and not best.logged and best.score.value >= _SOLVED


def _ended(record: SearchRecord) -> list[NodeRecord]:
    """As `SearchTree.finished`: leaves whose trajectory has ended."""
    inner = {node.parent for node in record.nodes}
    leaves = (node for node in record.nodes if node.index not in inner)
    return [node for node in leaves if (record.root if node.step is None else node.step).finished]


def _best(ended: Sequence[NodeRecord]) -> NodeRecord | None:
    """As `SearchTree.best`: the highest score (ties: higher mean value, then earlier)."""
    scored = [(node.score.value, node.value_sum / node.visits if node.visits else 0.0, node) for node in ended if node.score is not None]
    return max(scored, key=lambda found: (*found[:2], -found[2].index))[2] if scored else None


def _digest(record: SearchRecord) -> str:
    told = [(n.parent, n.prior, n.visits, n.value_sum, n.draws, n.score, None if n.step is None else _told(n.step)) for n in record.nodes]
    return content_key(record.id, repr(told), *(message.wire for n in record.nodes if n.step is not None for message in n.step.messages))


def _told(step: Step) -> tuple[object, ...]:
    """All of a step but its messages' texts."""
    grades = [int(grade) for grade in step.grades]
    return len(step.observations), step.sampled, step.terminated, step.truncated, step.error, step.reward, grades
