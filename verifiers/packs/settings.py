"""Settings of packs in TOML files, and the lines on which their keys stand, so that an error can name its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from counterplay.core.errors import UserError

_HEADER = re.compile(r"\s*(\[{1,2})\s*([^\[\]]+?)\s*\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([\w-]+))(?:\s*\.\s*[\w."'-]+)?\s*=""")


def read(path: str | Path) -> str:
    """The text of a settings file. Raises UserError where it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"got {path}, which can't be read: {error}", "a TOML file in UTF-8") from error


def loaded(text: str, where: str, do: str) -> tuple[dict[str, Any], Lines]:
    """The parsed TOML and the lines of its keys. Raises UserError where it is not TOML; `do` says where its form is explained."""
    try:
        return tomllib.loads(text), Lines(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: {error}", "TOML", do) from error


class Lines:
    """Where keys stand in a TOML text: 1-based lines of top-level keys, of tables, and of the keys in each table of an array."""

    def __init__(self, text: str) -> None:
        self._at: dict[tuple[str, int], dict[str, int]] = {}
        counts: dict[str, int] = {}
        section, closing = ("", 0), ""
        for number, line in enumerate(text.splitlines(), start=1):
            if closing:
                closing = "" if closing in line else closing
                continue
            header, key = _HEADER.match(line), _KEY.match(line)
            if header:
                section = self._open(header, counts, number)
            elif key:
                self._at.setdefault(section, {}).setdefault(key[1] or key[2] or key[3], number)
            opened = re.search(r"'''|\"\"\"", line)
            if opened and line.count(opened[0]) % 2:
                closing = opened[0]

    def of(self, key: str, section: str = "", number: int = 0) -> int:
        """The line of a key, of its section where the key can't be found, else 1."""
        known = self._at.get((section, number), {})
        return known.get(key) or known.get("") or self._at.get((key, 0), {}).get("") or 1

    def _open(self, header: re.Match[str], counts: dict[str, int], number: int) -> tuple[str, int]:
        name, _, inner = (part.strip() for part in header[2].partition("."))
        if header[1] == "[[" and not inner:
            counts[name] = counts.get(name, -1) + 1
        section = (name, counts.get(name, 0))
        self._at.setdefault(section, {}).setdefault("", number)
        if inner:
            self._at[section].setdefault(inner, number)
        return section


def fail(where: str, line: int, got: str, wanted: str | Sequence[str], key: str = "") -> NoReturn:
    """Raise a UserError that names file and line; where `wanted` are names, it lists them and suggests the one closest to `key`."""
    if isinstance(wanted, str):
        raise UserError(f"{where}, line {line}: {got}", wanted)
    close = get_close_matches(key, wanted)
    raise UserError(f"{where}, line {line}: {got}", f"one of {', '.join(wanted)}", f"Did you mean {close[0]}?" if close else "")
