"""How many preference labels are wrong, found in the labels themselves: what DPO's `label_smoothing` is set to.

A Beta posterior knows that few lines were played; it can't know that a verifier, a judge or a person swaps answers. But where many pairs
follow one rule, a swapped one breaks it. So a small model learns from part of the pairs what is preferred, and says of the others how
sure it is (cross-fitted, as in confident learning: Northcutt et al. 2021, arXiv:1911.00068). Where it is surest it would always agree with
right labels, and agrees with a share of 1 - e where a share e is wrong (the anchor points of Liu and Tao 2016, arXiv:1411.7718):

    saturation: P(label agrees | margin m) = e + (1 - 2 e) sigmoid(a m)
    confident:  e = wrong / (right + wrong), counted over pairs of which the model is as sure as it is of an average one

Where the model can't tell some pairs at all, the first comes out low and the second high by about as much: their mean is taken, and the
interval of the first, widened to hold both.

What it can't see: errors that are a rule themselves, such as a verifier that always prefers the wrong thing, for they can be learnt. Those
show when a verifier is evaluated against outcomes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from counterplay.core.canonical import dumps
from counterplay.core.nouns import Message
from counterplay.finetune.gates.words import words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLACES = 1 << 14
_MOST_PAIRS = 20_000
_MOST_CHARS = 1 << 25
_LEAST_PAIRS = 40
_WIDEST = 0.2
_STRENGTH = 1e-3
_ROUNDS = 150


@dataclass(frozen=True, slots=True)
class Noise:
    """The share of labels that are wrong, in [0, 0.5], and its 95 % (credible) interval.

    `how` is `agreement` where the labels themselves told, and `posterior` where they did not: fewer than 40 pairs, or an interval that is
    wider than 20 points and holds the posterior's share. Then `share` is that one, the mean of 1 - `probability`, and `interval` None.
    `pairs` is how many were looked at.
    """

    share: float
    interval: tuple[float, float] | None
    how: Literal["agreement", "posterior"]
    pairs: int


def noise_of(records: Sequence[Mapping[str, Any]], *, folds: int = 5, repeats: int = 4, seed: int = 0) -> Noise:
    """The noise of DPO records (`read_dataset`): columns `prompt`, `chosen`, `rejected`, `probability`, `task`, `traces`, `name`.

    Pairs of one task are never on both sides of a fold; the folds are drawn `repeats` times. Of more than 20,000 pairs as many are drawn
    (`sample`). Deterministic.
    """
    looked_at = sample(((record["name"], _size(record)) for record in records), seed=seed)
    found = [difference(records[number]) for number in looked_at] if len(looked_at) >= _LEAST_PAIRS else []
    return estimated(found, [record["probability"] for record in records], folds=folds, repeats=repeats, seed=seed)


def sample(pairs: Iterable[tuple[str, int]], *, seed: int = 0) -> list[int]:
    """Which pairs are looked at, from the names and the number of characters of all: drawn by name, while they are no more than 20,000
    and their sides hold no more than 32 million characters.
    """
    chosen, room = list[int](), _MOST_CHARS
    drawn = ((_drawn(seed, name), number, size) for number, (name, size) in enumerate(pairs))
    for _, number, size in heapq.nsmallest(_MOST_PAIRS, drawn):
        room -= size
        if room < 0 and len(chosen) >= _LEAST_PAIRS:
            break
        chosen.append(number)
    return chosen


def estimated(found: Sequence[Difference], probabilities: Sequence[float], *, folds: int = 5, repeats: int = 4, seed: int = 0) -> Noise:
    """`noise_of` from the differences of those pairs that are looked at, in the order they were drawn, and the probabilities of all."""
    if not probabilities:
        return Noise(0.0, None, "posterior", 0)
    posterior = Noise(sum(1.0 - each for each in probabilities) / len(probabilities), None, "posterior", len(probabilities))
    if len(found) < _LEAST_PAIRS:
        return posterior
    share, low, high = share_of(_margins(found, folds=folds, repeats=repeats, seed=seed))
    told = high - low <= _WIDEST or not low <= posterior.share <= high
    return Noise(share, (low, high), "agreement", len(found)) if told else posterior


def _size(record: Mapping[str, Any]) -> int:
    return sum(len(dumps(fields)) for side in ("chosen", "rejected") for fields in record[side])


def share_of(margins: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    """The share of wrong labels from margins (see `saturation`): the mean of the two estimates, and the interval that holds both."""
    (found, low, high), counted = saturation(margins), confident(margins)
    return (found + counted) / 2, min(low, counted), max(high, counted)


def confident(margins: Sequence[float] | NDArray[np.float64]) -> float:
    """Confident learning's count of labels off the diagonal. The two classes of a pair mirror each other and so have one threshold."""
    import numpy as np

    values = np.asarray(margins, np.float64)
    sure = 1 / (1 + np.exp(-np.clip(values / (float(np.abs(values).mean()) or 1.0), -40, 40)))
    threshold = float(sure.mean())
    right, wrong = int((sure >= threshold).sum()), int((1 - sure >= threshold).sum())
    return min(0.5, wrong / max(1, right + wrong))


def saturation(margins: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    """The share of wrong labels and its 95 % interval, from the margins by which a model that has not seen them agrees with the labels:
    positive where it agrees, larger where it is surer, on any scale. The mean over e and log a, before the data equally likely.
    """
    import numpy as np

    values = np.asarray(margins, np.float64)
    scale = math.sqrt(float((values**2).mean())) or 1.0
    shares = np.linspace(0.0, 0.5, 101)
    likelihood = []
    for slope in np.exp(np.linspace(-3.0, 4.0, 57)):
        agrees = 1 / (1 + np.exp(-np.clip(slope * values / scale, -40, 40)))
        likelihood.append([float(np.log(np.maximum(share + (1 - 2 * share) * agrees, 1e-12)).sum()) for share in shares])
    found = np.array(likelihood)
    mass = np.exp(found - found.max()).sum(axis=0)
    below = np.cumsum(mass) / mass.sum()
    low, high = (float(shares[int(np.searchsorted(below, edge))]) for edge in (0.025, 0.975))
    return float((shares * mass).sum() / mass.sum()), low, high


def margins(records: Sequence[Mapping[str, Any]], *, folds: int = 5, repeats: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """By how much linear models that were trained without the pair's task prefer what the label prefers; 0.0 where they can't tell."""
    return _margins(list(map(difference, records)), folds=folds, repeats=repeats, seed=seed)


def _margins(differences: Sequence[Difference], *, folds: int, repeats: int, seed: int) -> NDArray[np.float64]:
    import numpy as np

    table, groups, found = _Table.of(differences), [each.group for each in differences], np.zeros(len(differences))
    for repeat in range(repeats):
        fold = np.array([_drawn(seed * repeats + repeat, group) % folds for group in groups])
        for held in range(folds):
            if (fold == held).any() and (fold != held).any():
                found[fold == held] += table.times(table.fit(fold != held))[fold == held]
    return found / repeats


@dataclass(frozen=True, slots=True)
class Difference:
    """The features of chosen minus those of rejected, as a vector of length 1 that is `value` at `place`; `group` is the pair's task."""

    group: str
    place: NDArray[np.int32]
    value: NDArray[np.float64]


@dataclass(frozen=True)
class _Table:
    """Differences, a row each, as a sparse matrix of `rows` by `_PLACES`."""

    rows: int
    row: NDArray[np.int64]
    place: NDArray[np.int64]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, differences: Sequence[Difference]) -> _Table:
        import numpy as np

        row = np.repeat(np.arange(len(differences)), [len(each.place) for each in differences])
        place = np.concatenate([np.empty(0, np.int32), *(each.place for each in differences)])
        value = np.concatenate([np.empty(0, np.float64), *(each.value for each in differences)])
        return cls(len(differences), row.astype(np.int64), place.astype(np.int64), value)

    def times(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        return np.bincount(self.row, self.value * weights[self.place], self.rows).astype(np.float64)

    def fit(self, used: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The weights of a logistic regression without constant, by Nesterov's method: the order within a pair has no say."""
        import numpy as np

        share = used / used.sum()
        weights = ahead = np.zeros(_PLACES)
        step, t = 1 / (0.25 + _STRENGTH), 1.0
        for _ in range(_ROUNDS):
            wrong = share / (1 + np.exp(np.clip(self.times(ahead), -40, 40)))
            slope = np.bincount(self.place, self.value * wrong[self.row], _PLACES) - _STRENGTH * ahead
            moved, longer = ahead + step * slope, (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead, weights, t = moved + (t - 1) / longer * (moved - weights), moved, longer
        return weights


def difference(record: Mapping[str, Any]) -> Difference:
    """That of a pair: its columns `prompt`, `chosen`, `rejected`, `task`, `traces` and `name`."""
    import numpy as np

    counts: dict[int, float] = {}
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        for feature in _features(record, side):
            place = _drawn(0, feature) % _PLACES
            counts[place] = counts.get(place, 0.0) + sign
    length = math.sqrt(sum(value * value for value in counts.values()))
    held = {place: value / length for place, value in counts.items() if value}
    return Difference(_group(record), np.fromiter(held, np.int32, len(held)), np.fromiter(held.values(), np.float64, len(held)))


def _features(record: Mapping[str, Any], side: str) -> Iterator[str]:
    """What an answer does: tools, arguments, values, words; and the tools together with the tool that was called before them."""
    before = _last_tool(record["prompt"])
    for fields in record[side]:
        if fields.get("role") != "assistant":
            continue
        message = Message.from_openai(fields)
        for call in message.tool_calls:
            yield from (f"tool {call.name}", f"tool {call.name} after {before}")
            for name, value in (call.args or {}).items():
                yield from (f"{call.name}.{name}", f"{call.name}.{name}={value}")
        said = words(message.content_text)
        yield from (f"word {word}" for word in said)
        yield from (f"words {one} {other}" for one, other in pairwise(said))
        if not message.tool_calls:
            yield from ("says", f"says after {before}")


def _last_tool(prompt: Sequence[Mapping[str, Any]]) -> str:
    for fields in reversed(prompt):
        for call in fields.get("tool_calls") or ():
            return str((call.get("function") or call).get("name"))
    return ""


def _group(record: Mapping[str, Any]) -> str:
    return str(record["task"] or next(iter(record["traces"]), "") or record["name"])


def _drawn(seed: int, text: str) -> int:
    return int.from_bytes(blake2b(f"{seed}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest())
