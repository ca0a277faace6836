"""Unified diffs: read strictly, applied exactly, and how alike two of them are (SWE-RL)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_EXACT_UP_TO = 4_000_000  # pairs of characters; above, lines are compared, for the matcher is quadratic


class WrongFormatError(ValueError):
    """A text that is not a unified diff, or one that does not fit the files it is applied to."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """`lines` with their first sign (blank, - or +), starting at line `start` (1-based) of the old file."""

    start: int
    lines: tuple[str, ...]

    @property
    def old(self) -> list[str]:
        return [line[1:] for line in self.lines if line[0] in " -"]

    @property
    def new(self) -> list[str]:
        return [line[1:] for line in self.lines if line[0] in " +"]


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What a diff does to one file: `old` is None for one it makes, `new` is None for one it removes."""

    old: str | None
    new: str | None
    hunks: tuple[Hunk, ...]

    @property
    def path(self) -> str:
        return self.new or self.old or ""

    @property
    def change(self) -> str:
        """The changed and surrounding lines alone: what is compared."""
        return "\n".join("\n".join(hunk.lines) for hunk in self.hunks)


def parse(text: str) -> list[FilePatch]:
    """The files of a unified diff. Raises WrongFormatError where a hunk's counts are wrong or there is no hunk at all."""
    lines = text.splitlines()
    patches: list[FilePatch] = []
    at = 0
    while at < len(lines):
        if not (lines[at].startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ ")):
            at += 1  # `diff --git`, `index` and mail headers
            continue
        old, new = _path(lines[at]), _path(lines[at + 1])
        if old is None and new is None:
            raise WrongFormatError("a file that is neither before nor after")
        at += 2
        hunks: list[Hunk] = []
        while at < len(lines) and (header := _HUNK.match(lines[at])):
            hunk, at = _hunk(lines, at + 1, header)
            hunks.append(hunk)
        if not hunks:
            raise WrongFormatError(f"no hunk for {new or old}")
        patches.append(FilePatch(old, new, tuple(hunks)))
    if not patches:
        raise WrongFormatError("no file with a hunk")
    return patches


def _path(line: str) -> str | None:
    path = line[4:].partition("\t")[0].strip().strip('"')
    if path == "/dev/null":
        return None
    return path[2:] if path[:2] in {"a/", "b/"} else path


def _hunk(lines: list[str], at: int, header: re.Match[str]) -> tuple[Hunk, int]:
    start, olds, _, news = (1 if group is None else int(group) for group in header.groups())
    taken: list[str] = []
    while olds > 0 or news > 0:
        line = (lines[at] or " ") if at < len(lines) else "end"  # editors strip the blank of an empty context line
        if line[0] not in " -+":
            if line.startswith("\\"):
                at += 1
                continue
            raise WrongFormatError(f"a hunk that ends {olds} old and {news} new lines early")
        olds -= line[0] in " -"
        news -= line[0] in " +"
        taken.append(line)
        at += 1
    if olds or news:
        raise WrongFormatError("a hunk of other length than its header says")
    while at < len(lines) and lines[at].startswith("\\"):
        at += 1
    return Hunk(start, tuple(taken)), at


def apply(text: str, files: Mapping[str, str]) -> dict[str, str]:
    """`files` as the unified diff `text` leaves them. A hunk must fit exactly, at its line or the nearest other place.

    Raises WrongFormatError where the diff is none, or does not fit.
    """
    result = dict(files)
    for patch in parse(text):
        before = ""
        if patch.old is not None:
            if patch.old not in result:
                raise WrongFormatError(f"no file {patch.old!r}")
            before = result.pop(patch.old)
        after = _applied(patch, before)
        if patch.new is not None:
            result[patch.new] = after
    return result


def _applied(patch: FilePatch, before: str) -> str:
    lines = before.splitlines()
    shift = 0
    for hunk in patch.hunks:
        old, new = hunk.old, hunk.new
        wanted = max(0, hunk.start - 1 + shift) if old else min(len(lines), hunk.start + shift if before else 0)
        places = sorted(range(len(lines) - len(old) + 1), key=lambda place: abs(place - wanted)) if old else [wanted]
        place = next((place for place in places if lines[place : place + len(old)] == old), None)
        if place is None:
            raise WrongFormatError(f"{patch.path}: the hunk at line {hunk.start} does not fit")
        lines[place : place + len(old)] = new
        shift += len(new) - len(old) + (place - wanted if old else 0)
    return "".join(f"{line}\n" for line in lines)


def similarity(one: str, other: str) -> float:
    """How alike two diffs are, in [0, 1]: the mean over all files that either touches of the ratio of matching characters, 0 for a file
    that only one touches. Compared line by line where the two are large.

    Wei et al. 2025, SWE-RL. Raises WrongFormatError where one of them is not a unified diff.
    """
    ours, theirs = ({patch.path: patch.change for patch in parse(text)} for text in (one, other))
    paths = ours.keys() | theirs.keys()
    return sum(_alike(ours[path], theirs[path]) for path in paths if path in ours and path in theirs) / len(paths)


def _alike(one: str, other: str) -> float:
    if one == other:
        return 1.0
    if len(one) * len(other) <= _EXACT_UP_TO:
        return SequenceMatcher(None, one, other, autojunk=False).ratio()
    ours, theirs = one.splitlines(), other.splitlines()
    blocks = SequenceMatcher(None, ours, theirs).get_matching_blocks()
    same = sum(len(line) + 1 for block in blocks for line in ours[block.a : block.a + block.size])
    return 2 * same / (len(one) + len(other) + 2)
