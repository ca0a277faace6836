"""Splits that share no task, no session, no trace and, where asked, no user; and rows that are there once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, Protocol, TypeAlias

from counterplay.core.canonical import canonical, content_key, dumps
from counterplay.core.nouns import Message
from counterplay.finetune.rows import AnyRow, Drop, Row

SplitBy: TypeAlias = Literal["task", "session", "user"]
REFUTED = "the same is labelled the other way elsewhere"
_REMEMBERED = 4096
BY: tuple[SplitBy, ...] = ("task", "session")


class Distinct:
    """Which rows say what an earlier one has said; white space and letter case of texts, and call ids, make no difference.

    Rows that say the same and are labelled otherwise (KTO) contradict each other: none of them is kept.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self._labels: dict[int, str] = {}
        self._refuted: set[int] = set()
        self._said: dict[str, bytes] = {}

    def reason(self, number: int, row: Row) -> str:
        """Why the row is left out, as one that repeats or contradicts another; empty where it is the first of its kind."""
        key, label = self._gist(row), canonical(row.values.get("label"))
        first = self._first.setdefault(key, number)
        if first == number:
            if label != "null":
                self._labels[number] = label
            return ""
        if self._labels.get(first, "null") == label:
            return "a duplicate"
        self._refuted.add(first)
        return REFUTED

    def _gist(self, row: Row) -> bytes:
        trained = {name: value for name, value in row.values.items() if name == "trained" or name.endswith("_trained")}
        said = {column: b"".join(map(self._digest, messages)).hex() for column, messages in row.parts.items()}
        state = [row.lineage.task, list(row.lineage.nodes)] if row.kind == "grpo" else []
        return bytes.fromhex(content_key(dumps([row.kind, said, trained, state, [tool.wire for tool in row.tools]])))

    def _digest(self, message: Message) -> bytes:
        """Equal for messages that say the same. The rows of a trace share messages."""
        known = self._said.get(message.wire)
        if known is None:
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            known = self._said[message.wire] = bytes.fromhex(content_key(*_said(message)))
        return known

    @property
    def refuted(self) -> list[int]:
        """The first ones that later ones contradict."""
        return sorted(self._refuted)


def distinct(rows: Iterable[AnyRow]) -> tuple[list[AnyRow], list[Drop]]:
    """The rows without repetitions (`Distinct`), first come first kept."""
    found, kept, drops = Distinct(), dict[int, AnyRow](), list[Drop]()
    for number, row in enumerate(rows):
        reason = found.reason(number, row)
        if reason:
            drops.append(Drop(reason, row.name))
        else:
            kept[number] = row
    drops += [Drop(REFUTED, kept.pop(number).name) for number in found.refuted]
    return list(kept.values()), drops


def _said(message: Message) -> list[str]:
    content = message.content
    plain = content is None or isinstance(content, str) or all(part.get("type") == "text" for part in content)
    texts = [message.reasoning or "", message.content_text if plain else dumps(content)]
    return [message.role, *(" ".join(text.split()).casefold() for text in texts), message.signature if message.tool_calls else ""]


class Sourced(Protocol):
    """What ties a row to others: a `Lineage`, or what is kept of one."""

    @property
    def task(self) -> str | None: ...
    @property
    def traces(self) -> tuple[str, ...]: ...
    @property
    def sessions(self) -> tuple[str, ...]: ...
    @property
    def users(self) -> tuple[str, ...]: ...
    @property
    def search(self) -> str: ...


def assign(
    lineages: Sequence[Sourced],
    shares: Mapping[str, float],
    seed: int,
    *,
    by: Sequence[SplitBy] = BY,
    ties: Sequence[Sequence[str]] = (),
) -> list[str]:
    """A split for every row. Rows connected by a task, a trace, what `by` names or their `ties`, however indirectly, go to one split.

    `ties` aligns with `lineages` where it is given (`gates.near.near_ties`). Where one session or user is behind all rows, leave it
    out of `by`. A group's split follows from its smallest name and `seed` alone, so it stays when other groups come and go. The split with
    the largest share is never left empty: where all groups would go elsewhere, they go there.
    """
    main = max(shares, key=lambda name: shares[name])
    if len(shares) == 1:
        return [main] * len(lineages)

    def named() -> Iterator[list[str]]:
        for row, lineage in enumerate(lineages):
            yield [*_ties(lineage, row, by), *(ties[row] if ties else ())]

    first = _connected(named)
    name_of: dict[int, str] = {}
    for group, names in zip(first, named(), strict=True):
        name_of[group] = min(*names, name_of.get(group, names[0]))
    drawn = {group: _draw(name, shares, seed) for group, name in name_of.items()}
    return [drawn[group] for group in first] if main in drawn.values() else [main] * len(first)


def _ties(lineage: Sourced, row: int, by: Sequence[SplitBy]) -> Iterable[str]:
    kinds = {"session": lineage.sessions, "user": lineage.users, "task": () if lineage.task is None else (lineage.task,)}
    names = [
        *(f"trace:{trace}" for trace in lineage.traces),
        *(f"{kind}:{name}" for kind in dict.fromkeys(("task", *by)) for name in kinds[kind]),
    ]
    return names or [f"search:{lineage.search}" if lineage.search else f"row:{row}"]


def _connected(named: Callable[[], Iterable[Sequence[str]]]) -> array[int]:
    """For each row the first one that a name ties it to, however indirectly. Equal names are found by their hashes: what names need in
    memory is 16 bytes each, and a confusion would only keep two groups together.
    """
    import numpy as np

    keys, rows = array("Q"), array("Q")
    count = 0
    for row, names in enumerate(named()):
        count = row + 1
        for name in names:
            keys.append(_hashed(name))
            rows.append(row)
    hashes = np.frombuffer(keys, np.uint64)
    order = np.argsort(hashes, kind="stable")
    leader = array("Q", range(count))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    for at in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
        low, high = sorted((find(rows[order[at]]), find(rows[order[at + 1]])))
        leader[high] = low
    return array("Q", map(find, range(count)))


def _hashed(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _draw(group: str, shares: Mapping[str, float], seed: int) -> str:
    digest = blake2b(f"{seed}\n{group}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64 * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return list(shares)[-1]
