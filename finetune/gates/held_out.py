"""Contamination: rows that repeat what is held out for evaluation, by whole task texts and by runs of 13 words.

Runs of 13 words as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C), whatever their case and punctuation. What more than ten
tasks of the data have in common, or more than ten held-out ones, is no match: it is the form that tasks are written in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import content_key, loads
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message
from counterplay.finetune.card import MANIFEST
from counterplay.finetune.gates.protocol import RowOf, Sketches, through
from counterplay.finetune.gates.words import opening, opening_of, plain, runs, text_of
from counterplay.finetune.rows import Drop, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from counterplay.finetune.gates.words import Hashes

RUN, COMMON = 13, 10
_ASKED = ("task", "task_id", "instance_id", "prompt", "question", "problem", "problem_statement", "instruction", "input", "query", "text")
_REMEMBERED = 2048


@dataclass(frozen=True)
class HeldOutText:
    """One entry of a held-out file. `name` is where it stands; `asked` are names and texts of its task, compared as wholes; `texts` all
    that it says, compared by runs of words.
    """

    name: str
    asked: tuple[str, ...]
    texts: tuple[str, ...]


def read_held_out(path: str | Path) -> list[HeldOutText]:
    """The entries of a file or dataset folder.

    A dataset folder of counterplay has an entry a row, of all splits. A `.jsonl` file has one a line: a text, a list of chat messages,
    or an object, whose fields such as `task`, `prompt` and `question`, and whose user messages before the first answer, are its task.
    `.json` is a list of these. Of any other file each line that is not empty is a task. Raises UserError where there is nothing to read.
    """
    file = Path(path)
    if file.is_dir():
        entries = list(_of_folder(file))
    elif file.is_file():
        entries = list(_of_file(file))
    else:
        raise UserError(f"got no held-out file {file}", "a file of tasks or prompts, or a dataset folder")
    if not entries:
        raise UserError(f"got nothing that is held out in {file}", "at least one task or prompt")
    return entries


def _of_folder(folder: Path) -> Iterator[HeldOutText]:
    from counterplay.finetune.write import read_dataset

    if not (folder / MANIFEST).is_file():
        raise UserError(f"got {folder} with held-out tasks", f"a file, or a dataset folder with {MANIFEST}")
    for split in sorted({path.stem for path in folder.glob("*/*.*") if path.suffix in {".parquet", ".jsonl"}}):
        for record in read_dataset(folder, split)[1]:
            yield entry(f"{folder.name}/{split}/{record['name']}", record)


def _of_file(file: Path) -> Iterator[HeldOutText]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"got {file}, which is no UTF-8 text ({error})", "a file of tasks or prompts") from None
    except OSError as error:
        raise UserError(f"got {file}, which can't be read: {error.strerror}", "a file of tasks or prompts") from None
    if file.suffix == ".json":
        value = _parsed(text, str(file))
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            yield entry(f"{file.name}[{index}]", item)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield entry(f"{file.name}:{number}", _parsed(line, f"{file}:{number}") if file.suffix == ".jsonl" else line.strip())


def _parsed(text: str, place: str) -> Any:
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"got {place}, which is no JSON ({error})", "one JSON value a line, or a list of them in a .json file") from None


def entry(name: str, value: Any) -> HeldOutText:
    """What a JSON value holds out; nothing where it is neither text nor a list nor an object."""
    if isinstance(value, str):
        return HeldOutText(name, (value,), (value,))
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, Mapping):
        return HeldOutText(name, (), ())
    asked = [text for name in _ASKED if isinstance(text := value.get(name), str)]
    said: list[str] = list(asked)
    for column, part in value.items():
        if isinstance(part, str) and column not in _ASKED:
            said.append(part)
        elif isinstance(part, list) and (messages := _messages(part)):
            asked += [opening(messages)] if column in ("messages", "prompt") else []
            said += map(text_of, messages)
    return HeldOutText(name, tuple(filter(None, asked)), tuple(filter(None, said)))


def _messages(values: Sequence[Any]) -> list[Message]:
    return [Message.from_openai(v) for v in values if isinstance(v, Mapping) and isinstance(v.get("role"), str)]


@dataclass(frozen=True)
class HeldOut:
    """A gate that leaves out rows of held-out tasks: their task's name or its text is one of `entries`', or they share a run of 13 words.

    Texts are compared by their words, in small letters. System prompts and tool definitions are not compared.
    """

    entries: Sequence[HeldOutText]
    name = "contamination"
    reason = "held out"

    def __call__(self, rows: Sequence[Row]) -> tuple[list[Row], list[Drop]]:
        return through(self, rows)

    def begin(self, _: Path) -> Sketches:
        return _Matches(self)

    def whole(self, row: Row) -> str:
        for text in (row.lineage.task or "", opening_of(row)):
            if text and (name := self._tasks.get(plain(text))):
                return f"the task of {name}"
        return ""

    def matched(self, places: NDArray[np.int32]) -> str:
        if not len(places):
            return ""
        counts = Counter(int(self._owners[place]) for place in places)
        first, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        return f"{count} run{'s' if count > 1 else ''} of {RUN} words with {self.entries[first].name}"

    def shared(self, row: Row) -> list[int]:
        """The places in `_known` of the held-out runs that a row has."""
        found: set[int] = set()
        for message in {m.wire: m for messages in row.parts.values() for m in messages}.values():
            found.update(self._places(text_of(message)))
        return sorted(found)

    @cached_property
    def _places(self) -> Any:
        import numpy as np

        @lru_cache(maxsize=_REMEMBERED)
        def places(text: str) -> tuple[int, ...]:
            hashes = np.unique(_whole_runs(text))
            at = np.searchsorted(self._known, hashes)
            at[at == len(self._known)] = 0
            return tuple(at[self._known[at] == hashes].tolist()) if len(self._known) and len(hashes) else ()

        return places

    @cached_property
    def _tasks(self) -> Mapping[str, str]:
        """Where each task stands first, by its words."""
        found: dict[str, str] = {}
        for item in self.entries:
            for text in item.asked:
                if words := plain(text):
                    found.setdefault(words, item.name)
        return found

    @cached_property
    def _index(self) -> tuple[Hashes, NDArray[np.int64]]:
        """The held-out runs in order of their hashes, without those of many tasks, and the entry that each stands in first."""
        import numpy as np

        tasks: dict[str, tuple[int, list[Hashes]]] = {}
        for number, item in enumerate(self.entries):
            _, parts = tasks.setdefault(plain(item.asked[0]) if item.asked else item.name, (number, []))
            parts += map(_whole_runs, item.texts)
        each = [np.unique(np.concatenate(parts or [np.empty(0, np.uint64)])) for _, parts in tasks.values()]
        owners = np.repeat([number for number, _ in tasks.values()], [len(hashes) for hashes in each])
        values, first, counts = np.unique(np.concatenate(each), return_index=True, return_counts=True)
        own = counts <= COMMON
        return values[own], owners[first[own]]

    @property
    def _known(self) -> Hashes:
        return self._index[0]

    @property
    def _owners(self) -> NDArray[np.int64]:
        return self._index[1]


def _whole_runs(text: str) -> Hashes:
    """Runs of the full length alone: a shorter text is no match by runs."""
    found = runs(text, RUN)
    return found if len(found) > 1 or plain(text).count(" ") + 1 >= RUN else found[:0]


@dataclass
class _Matches:
    """Of every row that has something of what is held out: the runs, the whole text that it is, and the task that it belongs to."""

    gate: HeldOut
    _found: dict[int, tuple[bytes, str, str]] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _equal: dict[bytes, bytes] = field(default_factory=dict)

    def add(self, number: int, row: Row) -> None:
        import numpy as np

        places, whole = self.gate.shared(row), self.gate.whole(row)
        if places or whole:
            kept = np.array(places, np.int32).tobytes()
            unit = (
                row.lineage.task or plain(opening_of(row)) or row.lineage.unit or row.name
            )  # traces of one text are no tasks of their own
            self._found[number] = self._equal.setdefault(kept, kept), whole, content_key(unit)
            self._names[number] = row.name

    def refused(self, numbers: Sequence[int], _: RowOf) -> Mapping[int, Drop]:
        import numpy as np

        found = {number: self._found[number] for number in numbers if number in self._found}
        common, drops = self._in_many_tasks(found.values()), dict[int, Drop]()
        for number, (kept, whole, _unit) in found.items():
            places = np.frombuffer(kept, np.int32)
            matched = whole or self.gate.matched(places[~np.isin(places, common)])
            if matched:
                drops[number] = Drop(self.gate.reason, self._names[number], matched)
        return drops

    @staticmethod
    def _in_many_tasks(found: Iterable[tuple[bytes, str, str]]) -> NDArray[np.int32]:
        """The places that more than `COMMON` tasks of the data have."""
        import numpy as np

        by_unit: dict[str, set[bytes]] = {}
        for kept, _, unit in found:
            by_unit.setdefault(unit, set()).add(kept)
        counts: Counter[int] = Counter()
        for each in by_unit.values():
            counts.update({place for kept in each for place in np.frombuffer(kept, np.int32).tolist()})
        return np.array([place for place, count in counts.items() if count > COMMON], np.int32)
