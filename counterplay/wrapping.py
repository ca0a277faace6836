"""Texts in columns: where a long word may be broken, and how wide each column of a table is on a narrow terminal.

Ids, figures and short words are never broken; what is longer than any id (paths, URLs, lists without spaces) is broken behind a mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

_WHOLE = 32
"""The longest word that is never broken: an id has 32 hex digits, and one with a name in front is broken behind that."""
_SHORT = 12
"""A text that stays on one line where there is room for it at all."""
_PIECES = re.compile(r".*?[/\\_.,:;=&?|-]+|.+", re.DOTALL)


def atoms(text: str) -> Iterator[str]:
    """What a text is broken into and no further, with the spaces that stand before it."""
    for spaces, word in re.findall(r"(\s*)(\S+)", text):
        pieces = [word] if len(word) <= _WHOLE else _joined(_PIECES.findall(word))
        yield spaces + pieces[0]
        yield from pieces[1:]


def folded(text: str, width: int) -> str:
    """`text` in lines of at most `width` cells of a terminal, as far as its atoms are no longer; its own line ends stay."""
    return "\n".join(line for part in text.split("\n") for line in _lines(part, width))


def least(text: str) -> int:
    """The width of the longest atom."""
    return max((cell_len(atom.strip()) for atom in atoms(text)), default=0)


def widths(columns: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """How wide each column of texts is so that all fit into `width`, those with more to say given more; None where they can't."""
    natural = [max((cell_len(line) for text in column for line in text.split("\n")), default=0) for column in columns]
    if sum(natural) <= width:
        return natural
    low = [max((cell_len(text) if cell_len(text) <= _SHORT else least(text) for text in column), default=0) for column in columns]
    if sum(low) > width:
        low = [max(map(least, column), default=0) for column in columns]
    if sum(low) > width:
        return None
    spare, wanted = width - sum(low), sum(natural) - sum(low)
    found = [least_ + spare * (whole - least_) // wanted for least_, whole in zip(low, natural, strict=True)]
    for at, whole in enumerate(natural):
        found[at] += min(width - sum(found), whole - found[at])
    return found


def _joined(pieces: Sequence[str]) -> list[str]:
    """Pieces of a word, those too long for a column cut, and those too short to stand alone put together."""
    found = [""]
    for piece in pieces:
        for start in range(0, len(piece), _WHOLE):
            part = piece[start : start + _WHOLE]
            if len(found[-1]) + len(part) <= _WHOLE // 2:
                found[-1] += part
            else:
                found.append(part)
    return [piece for piece in found if piece]


def _lines(text: str, width: int) -> Iterator[str]:
    line = ""
    for atom in atoms(text):
        if line and cell_len(line + atom) > width:
            yield line
            line = atom.lstrip()
        else:
            line += atom if line or cell_len(atom) <= width else atom.lstrip()
    yield line
