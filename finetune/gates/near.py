"""Near-duplicates: rows that say the same in nearly the same words, left out once; and tasks that are alike, kept in one split.

Two rows are near-duplicates where every group of their messages (by column, and what is read apart from what is trained on) shares at least
`threshold` of its runs of five words, they are trained on the same tool calls, and their labels agree (NearDup of Lee et al. 2022,
arXiv:2107.06499, group by group). So two pairs of successive steps, which share nearly all of their prompts, are none; nor are two runs of
which one is the good example and one the bad, nor two calls that differ in one argument. Mere prompts are alike only in one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from counterplay.core.canonical import canonical, content_key
from counterplay.finetune.gates.minhash import Index, jaccard
from counterplay.finetune.gates.words import READ, opening_of, plain, runs, sides, text_of
from counterplay.finetune.rows import Drop, Row

if TYPE_CHECKING:
    from counterplay.finetune.gates.words import Hashes

    Groups: TypeAlias = Mapping[str, Hashes]

RUN = 5
LEAST_WORDS = 13
_COMMON_TASKS, _COMMON_SHARE = 3, 0.1
_REMEMBERED = 2048


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
        kept, drops = set[int](), dict[int, Drop]()
        groups_of = _remembering(lambda number: _groups(rows[number]))
        index = Index(self.threshold)
        for number in sorted(range(len(rows)), key=lambda i: _sureness(rows[i]), reverse=True):
            groups = groups_of(number)
            bands = index.bands(_tagged(groups, _labels(rows[number])))
            twin = next((k for k in index.like(bands) if _alike(groups, groups_of(k), self.threshold)), None)
            if twin is None:
                kept.add(number)
                index.add(number, bands)
            else:
                drops[number] = Drop(self.reason, rows[number].name, f"of {rows[twin].name}")
        return [row for i, row in enumerate(rows) if i in kept], [drops[i] for i in sorted(drops)]


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
    check(threshold)
    texts = [plain(opening_of(row)) for row in rows]
    names = clusters(texts, threshold)
    return [
        (names[text],) if text in names else (f"asks:{content_key(text)[:16]}",) if text and row.lineage.task is None else ()
        for row, text in zip(rows, texts, strict=True)
    ]


def clusters(texts: Iterable[str], threshold: float) -> dict[str, str]:
    """A name for every text that says enough; texts that are alike, however indirectly, have one. See `near_ties`."""
    import numpy as np

    texts = [text for text in dict.fromkeys(texts) if text.count(" ") + 1 >= LEAST_WORDS]
    hashed = [np.unique(runs(text, RUN)) for text in texts]
    if not hashed:
        return {}
    values, counts = np.unique(np.concatenate(hashed), return_counts=True)
    common = values[counts > max(_COMMON_TASKS, _COMMON_SHARE * len(texts))]
    own = [np.setdiff1d(each, common, assume_unique=True) for each in hashed]
    leader, index = list(range(len(texts))), Index(threshold)

    def find(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    for number, each in enumerate(own):
        bands = index.bands(each)
        for other in index.like(bands):
            if find(other) != find(number) and jaccard(each, own[other]) >= threshold:
                low, high = sorted((find(other), find(number)))
                leader[high] = low
        index.add(number, bands)
    return {text: f"like:{content_key(texts[find(number)])[:16]}" for number, text in enumerate(texts)}


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


def _remembering(make: Callable[[int], Groups]) -> Callable[[int], Groups]:
    return lru_cache(maxsize=_REMEMBERED)(make)
