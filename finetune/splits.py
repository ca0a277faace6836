"""Splits that share no task, no session, no trace and, where asked, no user; and rows that are there once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, TypeAlias

from counterplay.core.canonical import canonical, content_key, dumps
from counterplay.core.nouns import Message
from counterplay.finetune.rows import AnyRow, Drop, Lineage, Row

SplitBy: TypeAlias = Literal["task", "session", "user"]
_REFUTED = "the same is labelled the other way elsewhere"
BY: tuple[SplitBy, ...] = ("task", "session")


def distinct(rows: Iterable[AnyRow]) -> tuple[list[AnyRow], list[Drop]]:
    """The rows without repetitions, first come first kept; white space and letter case of texts, and call ids, make no difference.

    Rows that say the same and are labelled otherwise (KTO) contradict each other: none of them is kept.
    """
    found: dict[str, tuple[AnyRow, str]] = {}
    drops, refuted = [], set[str]()
    for row in rows:
        key, label = _gist(row), canonical(row.values.get("label"))
        if key not in found:
            found[key] = row, label
        elif found[key][1] == label:
            drops.append(Drop("a duplicate", row.name))
        else:
            refuted.add(key)
            drops.append(Drop(_REFUTED, row.name))
    drops += [Drop(_REFUTED, row.name) for key, (row, _) in found.items() if key in refuted]
    return [row for key, (row, _) in found.items() if key not in refuted], drops


def _gist(row: Row) -> str:
    trained = {name: value for name, value in row.values.items() if name == "trained" or name.endswith("_trained")}
    said = {column: [_said(message) for message in messages] for column, messages in row.parts.items()}
    state = [row.lineage.task, list(row.lineage.nodes)] if row.kind == "grpo" else []
    return content_key(dumps([row.kind, said, trained, state, [tool.wire for tool in row.tools]]))


def _said(message: Message) -> list[str]:
    content = message.content
    plain = content is None or isinstance(content, str) or all(part.get("type") == "text" for part in content)
    texts = [message.reasoning or "", message.content_text if plain else dumps(content)]
    return [message.role, *(" ".join(text.split()).casefold() for text in texts), message.signature if message.tool_calls else ""]


def assign(
    lineages: Sequence[Lineage],
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
    more = ties or [()] * len(lineages)
    groups = _connected([[*_ties(lineage, row, by), *also] for row, (lineage, also) in enumerate(zip(lineages, more, strict=True))])
    chosen = [_draw(group, shares, seed) for group in groups]
    main = max(shares, key=lambda name: shares[name])
    return chosen if main in chosen else [main] * len(chosen)


def _ties(lineage: Lineage, row: int, by: Sequence[SplitBy]) -> Iterable[str]:
    kinds = {"session": lineage.sessions, "user": lineage.users, "task": () if lineage.task is None else (lineage.task,)}
    names = [
        *(f"trace:{trace}" for trace in lineage.traces),
        *(f"{kind}:{name}" for kind in dict.fromkeys(("task", *by)) for name in kinds[kind]),
    ]
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
