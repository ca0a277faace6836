"""Splits that share no task, no session and no trace, and rows that are there once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from hashlib import blake2b

from counterplay.core.canonical import content_key, dumps
from counterplay.finetune.rows import AnyRow, Drop, Lineage, Row


def distinct(rows: Iterable[AnyRow]) -> tuple[list[AnyRow], list[Drop]]:
    """The rows without repetitions, first come first kept. Rows that differ in white space, letter case and call ids alone are one."""
    seen: set[str] = set()
    kept, drops = [], []
    for row in rows:
        key = _gist(row)
        if key in seen:
            drops.append(Drop("a duplicate", row.name))
        else:
            seen.add(key)
            kept.append(row)
    return kept, drops


def _gist(row: Row) -> str:
    messages = (message for part in row.parts.values() for message in part)
    texts = (f"{m.role}:{m.content_text}:{m.signature if m.tool_calls else ''}" for m in messages)
    return content_key(dumps([" ".join(text.split()).casefold() for text in texts]))


def assign(lineages: Sequence[Lineage], shares: Mapping[str, float], seed: int) -> list[str]:
    """A split for every row. Rows connected by a task, a session or a trace, however indirectly, go to one split.

    A group's split follows from its smallest name and `seed` alone, so it stays when other groups come and go. The split with
    the largest share is never left empty: where all groups would go elsewhere, they go there.
    """
    groups = _connected([list(_ties(lineage, row)) for row, lineage in enumerate(lineages)])
    chosen = [_draw(group, shares, seed) for group in groups]
    main = max(shares, key=lambda name: shares[name])
    return chosen if main in chosen else [main] * len(chosen)


def _ties(lineage: Lineage, row: int) -> Iterable[str]:
    names = [*(f"session:{s}" for s in lineage.sessions), *(f"trace:{t}" for t in lineage.traces)]
    if lineage.task is not None:
        names.append(f"task:{lineage.task}")
    return names or [f"search:{lineage.search}" if lineage.search else f"row:{row}"]


def _connected(ties: Sequence[Sequence[str]]) -> list[str]:
    """The name of each row's group: the smallest of all names tied together."""
    leader: dict[Hashable, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for names in ties:
        for name in names[1:]:
            low, high = sorted((find(names[0]), find(name)))
            leader[high] = low
    return [find(names[0]) for names in ties]


def _draw(group: str, shares: Mapping[str, float], seed: int) -> str:
    digest = blake2b(f"{seed}\n{group}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64 * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return list(shares)[-1]
