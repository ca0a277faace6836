"""Near-duplicates: rows that say the same in nearly the same words, left out once; and tasks that are alike, kept in one split.

Two rows are near-duplicates where every group of their messages (by column, and what is read apart from what is trained on) shares at least
`threshold` of its runs of five words, they are trained on the same tool calls, and their labels agree (NearDup of Lee et al. 2022,
arXiv:2107.06499, group by group). So two pairs of successive steps, which share nearly all of their prompts, are none; nor are two runs of
which one is the good example and one the bad, nor two calls that differ in one argument. Mere prompts are alike only in one state.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Protocol, TypeAlias, overload

from counterplay.core.canonical import canonical, content_key
from counterplay.finetune.gates.minhash import Bands, jaccard
from counterplay.finetune.gates.protocol import RowOf, Sketches, through
from counterplay.finetune.gates.words import READ, opening_of, plain, runs, sides, text_of
from counterplay.finetune.rows import Drop, Row
from counterplay.finetune.spool import Objects

if TYPE_CHECKING:
    from counterplay.finetune.gates.words import Hashes

    Groups: TypeAlias = Mapping[str, Hashes]

RUN = 5
LEAST_WORDS = 13
_COMMON_TASKS, _COMMON_SHARE = 3, 0.1
_COUNTERS = 1 << 20
_REMEMBERED = 2048
_COMPARED = 64
_NOTHING = -1


@dataclass(frozen=True)
class NearDuplicates:
    """A gate that keeps one of rows that are alike: the surest (by `probability`, then `score`), and of equals the first.

    `threshold` is a Jaccard similarity in (0, 1]. Deterministic; time grows with the rows and with how many are alike.
    """

    threshold: float = 0.8
    name = "near-duplicates"
    reason = "a near-duplicate"

    def __post_init__(self) -> None:
        check(self.threshold)

    def __call__(self, rows: Sequence[Row]) -> tuple[list[Row], list[Drop]]:
        return through(self, rows)

    def begin(self, folder: Path) -> Sketches:
        return _Likenesses(self, folder)


class _Likenesses:
    """Of every row the bands of its signature and how sure it is. Rows that may be alike are read again and compared exactly."""

    def __init__(self, gate: NearDuplicates, folder: Path) -> None:
        self._gate, self._bands = gate, Bands(gate.threshold, folder)
        self._sure = array("d")

    def add(self, number: int, row: Row) -> None:
        self._bands.add(number, _tagged(_groups(row), _labels(row)))
        self._sure.extend([0.0] * (2 * number - len(self._sure)))
        self._sure.extend(_sureness(row))

    def refused(self, numbers: Sequence[int], row_of: RowOf) -> Mapping[int, Drop]:
        shared, drops = self._bands.shared(numbers), dict[int, Drop]()
        kept: defaultdict[int, list[int]] = defaultdict(list)
        groups_of = lru_cache(maxsize=_COMPARED)(lambda number: _groups(row_of(number)))
        for number in sorted(shared, key=lambda n: tuple(self._sure[2 * n : 2 * n + 2]), reverse=True):
            rivals = sorted({other for band in shared[number] for other in kept.get(band, ())})
            twin = next((other for other in rivals if _alike(groups_of(number), groups_of(other), self._gate.threshold)), None)
            if twin is None:
                for band in shared[number]:
                    kept[band].append(number)
            else:
                drops[number] = Drop(self._gate.reason, row_of(number).name, f"of {row_of(twin).name}")
        return drops


def check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        msg = f"got threshold {threshold}, wanted a similarity above 0 and at most 1"
        raise ValueError(msg)


def near_ties(rows: Sequence[Row], *, threshold: float = 0.8) -> list[tuple[str, ...]]:
    """For every row, names that it shares with the rows of other tasks that ask nearly the same; `splits.assign` ties rows by them.

    What a row asks is the text of the user messages before the first answer, from 13 words on. Equal texts are tied, and texts that share
    at least `threshold` of their runs of five words, of which those that more than a tenth of the tasks share (and more than 3) don't
    count: a form that all tasks are written in makes no two of them alike. Rows that name no task are tied by equal texts of any length.
    """
    ties = NearTies(threshold).begin(Path(gettempdir()))
    for number, row in enumerate(rows):
        ties.add(number, row)
    return [tuple(names) for names in ties.names(range(len(rows)))]


@dataclass(frozen=True)
class NearTies:
    """`near_ties` of rows that are not all in memory."""

    threshold: float = 0.8

    def __post_init__(self) -> None:
        check(self.threshold)

    def begin(self, folder: Path) -> _Asked:
        return _Asked(self.threshold, folder)


class _Asked:
    """Of every text that rows ask, each once, the runs of words, set aside; of every row, which text it asks."""

    def __init__(self, threshold: float, folder: Path) -> None:
        self._threshold, self._folder, self._runs = threshold, folder, Objects(folder)
        self._texts: dict[bytes, int] = {}
        self._names = array("Q")
        self._long: dict[int, int] = {}
        self._asks = array("q")
        self._unnamed = bytearray()

    def add(self, number: int, row: Row) -> None:
        text = plain(opening_of(row))
        self._asks.extend([_NOTHING] * (number + 1 - len(self._asks)))
        self._unnamed.extend(bytes(number + 1 - len(self._unnamed)))
        if not text:
            return
        digest = bytes.fromhex(content_key(text))
        at = self._texts.setdefault(digest, len(self._texts))
        if at == len(self._names):
            self._names.append(int.from_bytes(digest[:8], "big"))
            if _says_enough(text):
                self._long[at] = self._runs.add(_distinct_runs(text))
        self._asks[number], self._unnamed[number] = at, row.lineage.task is None

    def names(self, numbers: Sequence[int]) -> _Names:
        asked = dict.fromkeys(self._asks[number] for number in numbers)
        texts = [at for at in asked if at in self._long]
        leaders = _clustered(_SetAside(self._runs, [self._long[at] for at in texts]), self._threshold, self._folder)
        return _Names(self, numbers, {at: texts[leader] for at, leader in zip(texts, leaders, strict=True)})

    def name(self, number: int, like: Mapping[int, int]) -> tuple[str, ...]:
        """What ties the row `number`, where texts are `like` others."""
        at = self._asks[number]
        if at in like:
            return (f"like:{self._names[like[at]]:016x}",)
        return (f"asks:{self._names[at]:016x}",) if at != _NOTHING and self._unnamed[number] else ()


@dataclass(frozen=True)
class _Names(Sequence[Sequence[str]]):
    """The names of rows, each made when it is asked for."""

    asked: _Asked
    numbers: Sequence[int]
    like: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Sequence[str]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sequence[str]]: ...
    def __getitem__(self, at: int | slice) -> Sequence[str] | Sequence[Sequence[str]]:
        if isinstance(at, slice):
            return _Names(self.asked, self.numbers[at], self.like)
        return self.asked.name(self.numbers[at], self.like)


@dataclass(frozen=True)
class _SetAside:
    """The runs of some texts, read when they are asked for."""

    runs: Objects
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Hashes:
        found: Hashes = self.runs.get(self.places[number])
        return found


class _Sets(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Hashes: ...


def clusters(texts: Iterable[str], threshold: float) -> dict[str, str]:
    """A name for every text that says enough; texts that are alike, however indirectly, have one. See `near_ties`."""
    texts = [text for text in dict.fromkeys(texts) if _says_enough(text)]
    leaders = _clustered([_distinct_runs(text) for text in texts], threshold, Path(gettempdir()))
    return {text: f"like:{content_key(texts[leader])[:16]}" for text, leader in zip(texts, leaders, strict=True)}


def _says_enough(text: str) -> bool:
    return text.count(" ") + 1 >= LEAST_WORDS


def _distinct_runs(text: str) -> Hashes:
    import numpy as np

    return np.unique(runs(text, RUN))


def _clustered(hashed: _Sets, threshold: float, folder: Path) -> list[int]:
    """For each text the first of those that it is alike to, however indirectly."""
    import numpy as np

    common = _common(hashed, max(_COMMON_TASKS, _COMMON_SHARE * len(hashed)))
    own = lru_cache(maxsize=_COMPARED)(lambda number: np.setdiff1d(hashed[number], common, assume_unique=True))
    bands = Bands(threshold, folder)
    for number in range(len(hashed)):
        bands.add(number, own(number))
    leader, earlier = list(range(len(hashed))), defaultdict[int, list[int]](list)

    def find(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    for number, mine in bands.shared(range(len(hashed))).items():
        for other in sorted({other for band in mine for other in earlier.get(band, ())}):
            if find(other) != find(number) and jaccard(own(number), own(other)) >= threshold:
                low, high = sorted((find(other), find(number)))
                leader[high] = low
        for band in mine:
            earlier[band].append(number)
    return [find(number) for number in range(len(hashed))]


def _common(hashed: _Sets, most: float) -> Hashes:
    """The runs that more than `most` texts have: counted in a table that confuses some, then exactly where that says too many."""
    import numpy as np

    table, places = np.zeros(_COUNTERS, np.uint32), np.uint64(_COUNTERS - 1)
    for number in range(len(hashed)):
        np.add.at(table, hashed[number] & places, 1)
    often = table > most
    if not often.any():
        return np.empty(0, np.uint64)
    counts: Counter[int] = Counter()
    for number in range(len(hashed)):
        each = hashed[number]
        counts.update(each[often[each & places]].tolist())
    return np.array(sorted(value for value, count in counts.items() if count > most), np.uint64)


def _groups(row: Row) -> Groups:
    import numpy as np

    found = {}
    for name, messages in sides(row).items():
        parts = [_runs_of(text) for text in map(text_of, messages) if text]
        found[name] = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    return found


@lru_cache(maxsize=_REMEMBERED)
def _runs_of(text: str) -> Hashes:
    return runs(text, RUN)


def _tagged(groups: Groups, labels: str) -> Hashes:
    """One set of all groups, in which equal runs of different groups or labels differ: where all are alike, so is this."""
    import numpy as np

    tags = [int(content_key(name, labels)[:16], 16) for name in groups]
    return np.concatenate([each ^ np.uint64(tag) for each, tag in zip(groups.values(), tags, strict=True)] or [np.empty(0, np.uint64)])


def _alike(one: Groups, other: Groups, threshold: float) -> bool:
    return one.keys() == other.keys() and all(jaccard(one[name], other[name]) >= threshold for name in one)


def _labels(row: Row) -> str:
    """What must be equal in rows that are alike, as text: their labels, the calls they are trained on, and the state of a mere prompt."""
    trained = [m.signature for name, messages in sides(row).items() if not name.endswith(READ) for m in messages if m.tool_calls]
    labels = {name: value for name, value in row.values.items() if "label" in name}
    state = [row.lineage.task, list(row.lineage.nodes)] if row.kind == "grpo" else []
    return canonical([labels, trained, state])


def _sureness(row: Row) -> tuple[float, float]:
    values = row.values
    return float(values.get("probability") or 0.0), float(values.get("score") or 0.0)
