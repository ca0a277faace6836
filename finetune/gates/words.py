"""Texts as words and as hashed runs of words: what near-duplicates and held-out texts are recognised by.

Letter case, punctuation and white space do not count; scripts without spaces count by character. System prompts and tool definitions
are left out, because all rows of one agent share them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias

from counterplay.core.nouns import Message
from counterplay.finetune.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes: TypeAlias = NDArray[np.uint64]

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
READ = ", read"
"""What the names of groups end in that are only read."""

_ROLES = ("user", "assistant", "tool")
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing modulo 2**64


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def plain(text: str) -> str:
    """The words of a text with single spaces between them: equal for texts that differ in case, punctuation and white space alone."""
    return " ".join(words(text))


def text_of(message: Message) -> str:
    """Everything a message says: reasoning, content, and what its tool calls do, whatever their ids; empty for a system prompt."""
    if message.role not in _ROLES:
        return ""
    called = message.signature if message.tool_calls else ""
    return "\n".join(filter(None, (message.reasoning, message.content_text, called)))


def opening(messages: Iterable[Message]) -> str:
    """What the task says: the text of the user messages before the first answer."""
    said = []
    for message in messages:
        if message.role == "assistant":
            break
        if message.role == "user":
            said.append(message.content_text)
    return "\n".join(said)


def opening_of(row: Row) -> str:
    return opening(message for column in row.conversations[0] for message in row.parts[column])


def sides(row: Row) -> Mapping[str, list[Message]]:
    """The messages that a row is compared by, in groups that must each be alike: by column, what is read apart from what is trained on."""
    groups: dict[str, list[Message]] = {}
    flags = _flags(row)
    for column, messages in row.parts.items():
        for message, trained in zip(messages, flags[column], strict=True):
            groups.setdefault(f"{column}{'' if trained else READ}", []).append(message)
    return groups


def _flags(row: Row) -> Mapping[str, Sequence[bool]]:
    """For every column, which messages are trained on; a column without flags of its own is read."""
    values = row.values
    flags: dict[str, Sequence[bool]] = {}
    for column, messages in row.parts.items():
        known: Any = values.get(f"{column}_trained", values.get("trained") if len(row.parts) == 1 else None)
        flags[column] = known if isinstance(known, list) and len(known) == len(messages) else [False] * len(messages)
    return flags


def runs(text: str, length: int) -> Hashes:
    """A hash of every run of `length` words, in the order of the text; of the whole text where it has fewer; none of an empty one."""
    import numpy as np

    found = words(text)
    if not found:
        return np.empty(0, np.uint64)
    coded = np.fromiter(map(_coded, found), np.uint64, len(found))
    size = min(length, len(found))
    total = np.zeros(len(found) - size + 1, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(size):
            total = total * np.uint64(_BASE) + coded[offset : offset + len(total)]
        return mixed(total)


def mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of a sum of words reaches every bit of its hash."""
    import numpy as np

    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1 << 17)
def _coded(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
