"""A folder of questions and answers in the format of the OpenAI Batch API: what was asked, what waits, what came back.

`questions-0001.jsonl` and so on are input files of batches; every other `*.jsonl` file holds lines of output or error files, whoever put it
there. The folder is all there is to remember: a question waits while it was asked more often than it was answered or refused.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError

ENDPOINT: Final = "/v1/chat/completions"
_MOST_LINES, _MOST_BYTES = 50_000, 190 * 10**6  # what OpenAI takes, with room to spare


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of an output or error file. `status` is 0 where the server never came to the question; `said` is its body or the error."""

    status: int
    said: bytes

    @property
    def answered(self) -> bool:
        return self.status == 200


class BatchFolder:
    """The questions and verdicts in `folder`, which is made where there is none."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises UserError where a file in it holds something else."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._asked: Counter[str] = Counter()
        self._verdicts: dict[str, list[tuple[Path, int]]] = {}
        self._new: BinaryIO | None = None
        self._part = self.folder
        self._lines = self._bytes = 0
        self._known: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in the files that came since. Raises UserError where one holds something else."""
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.name not in self._known:
                self._read(path)
                self._known.add(path.name)

    def verdicts(self, key: str) -> list[Verdict]:
        """What came back for a question, the files in the order of their names."""
        return [_verdict(_line_at(path, offset)) for path, offset in self._verdicts.get(key, ())]

    def knows(self, key: str) -> bool:
        """Whether a question was ever asked."""
        return self._asked[key] > 0

    def waits(self, key: str) -> bool:
        """Whether a question was asked and nothing has come back yet."""
        return self._asked[key] > len(self._verdicts.get(key, ()))

    @property
    def waiting(self) -> list[str]:
        """The questions that wait."""
        return [key for key in self._asked if self.waits(key)]

    def ask(self, key: str, body: bytes) -> None:
        """Write a question down; it is in a file of its own name once `close` was called or the file is full."""
        line = b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (key.encode(), ENDPOINT.encode(), body)
        if self._new is not None and (self._lines >= _MOST_LINES or self._bytes + len(line) > _MOST_BYTES):
            self.close()
        if self._new is None:
            self._part = self.folder / f"questions-{uuid.uuid4().hex}.part"
            self._new = self._part.open("xb")
        self._new.write(line)
        self._lines, self._bytes = self._lines + 1, self._bytes + len(line)
        self._asked[key] += 1

    def close(self) -> None:
        """Give the new questions their file. What a killed process had not closed is asked again by the next."""
        if self._new is None:
            return
        self._new.close()
        self._new, self._lines, self._bytes = None, 0, 0
        number = 1
        while True:
            path = self.folder / f"questions-{number:04d}.jsonl"
            with suppress(FileExistsError):
                os.link(self._part, path)  # no other process can have the same name
                break
            number += 1
        self._part.unlink()
        self._known.add(path.name)

    def _read(self, path: Path) -> None:
        asking = is_questions(path)
        for number, (offset, line) in enumerate(lines_of(path), 1):
            try:
                fields = orjson.loads(line)
                key = fields["custom_id"]
                if not asking and not fields.keys() & {"response", "error"}:
                    raise KeyError("response")  # noqa: TRY301
            except (ValueError, KeyError, TypeError) as error:
                got = f"{path} holds something else in line {number} ({error})"
                raise UserError(got, "lines of a batch's input, output or error file", "Take it out of the folder.") from None
            if asking:
                self._asked[key] += 1
            else:
                self._verdicts.setdefault(key, []).append((path, offset))


def is_questions(path: Path) -> bool:
    return path.name.startswith("questions-")


def key_of(body: bytes, start: int) -> str:
    """The custom id of a question: by its bytes and the number of its first draw, the same in every run."""
    return f"cp-{content_key(body.decode(), str(start))}"


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, each with its offset."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield offset, line
            offset += len(line)


def _line_at(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.readline()


def _verdict(line: bytes) -> Verdict:
    fields: dict[str, Any] = orjson.loads(line)
    response, error = fields.get("response"), fields.get("error")
    if response and not error:
        return Verdict(int(response.get("status_code") or 0), orjson.dumps(response.get("body")))
    status = int((response or {}).get("status_code") or 0)
    return Verdict(0 if status == 200 else status, orjson.dumps(error or (response or {}).get("body")))
