"""The nearest recorded call: same tool, similar arguments, by preference the same writes before it, and a run that saw the same.

Fields count by how well they tell results apart in the log: where a field differs and the result does not, it says little.
Equal values count in full, numbers by their relative distance, texts by shared words and letters. A word without spaces,
an id for one, counts little unless it is equal: ids that look alike are not alike.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from counterplay.core.canonical import canonical, content_key
from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import Message, State, ToolCall, Trajectory
from counterplay.replay.causality import NOTHING_WRITTEN, Written, after, influences, past_key
from counterplay.replay.recorded import call_answers
from counterplay.replay.signatures import CallForm, call_form, said

_IDENTIFIER = re.compile(r"(?:^|_)(?:id|key|code|number|no|uuid|phone|zip)$|[a-z](?:Id|ID|Number)$")
_PAIRS = 2000
_SCANNED = 512
_LEAST_WEIGHT = 0.05
_WORD_CREDIT = 0.5  # what a word without spaces is worth at most where it is not equal
_NOT_EQUAL = 0.99  # what unequal values count at most
_COMPARED = 30  # elements of a list
_ENOUGH = 5  # different calls with one result, before that is taken for a rule
_OTHER_PAST = 0.9  # what a call counts whose result may depend on other writes


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call of the log and its result. `past` is the key of the writes that the result can depend on, `run` its trajectory's place."""

    form: CallForm
    past: str
    result: Message
    run: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A recorded call and how near it is, in [0, 1]: `similarity` of the arguments alone. `same_past`: no other writes before it."""

    call: RecordedCall
    similarity: float
    same_past: bool

    @property
    def score(self) -> float:
        return self.similarity * (1.0 if self.same_past else _OTHER_PAST)


def recorded_calls(trajectories: Iterable[Trajectory], effects: Mapping[str, Effect]) -> Iterator[RecordedCall]:
    """Every answered call, in order. Tools without a declared effect are external."""
    for run, trajectory in enumerate(trajectories):
        yield from _answered(trajectory, effects, run)[0]


def _answered(state: State, effects: Mapping[str, Effect], run: int = 0) -> tuple[list[RecordedCall], Written]:
    """The answered calls of a trajectory, and what all its calls have written."""
    found, written = [], NOTHING_WRITTEN
    for step in state.steps:
        answers = call_answers(step)
        for (form, past, after_it), answer in zip(_calls(step.action, answers, written, effects), answers, strict=True):
            written = after_it
            if answer is not None:
                found.append(RecordedCall(form, past, answer, run))
    return found, written


def _calls(
    action: Message, answers: Sequence[Message | None], written: Written, effects: Mapping[str, Effect]
) -> Iterator[tuple[CallForm, str, Written]]:
    """Each call of an action with its past and with what is written after it."""
    for call, answer in zip(action.tool_calls, answers, strict=True):
        form = call_form(call)
        effect = effects.get(form.name, EXTERNAL)
        past = past_key(influences(written, form, effect))
        written = after(written, form, effect, past, "unanswered" if answer is None else said(answer))
        yield form, past, written


Seen = Mapping[tuple[str, str], str]
"""What a run saw: results by call and past, of calls that were always answered alike."""


class Recollection:
    """The recorded calls of `trajectories` by tool, ready to be searched. `effects` say which writes a result depends on."""

    def __init__(self, trajectories: Iterable[Trajectory], effects: Mapping[str, Effect]) -> None:
        self.effects = effects
        self._tools: dict[str, _Tool] = {}
        self._seen: list[Seen] = []
        for run, trajectory in enumerate(trajectories):
            calls, _ = _answered(trajectory, effects, run)
            self._seen.append(_seen(calls))
            for call in calls:
                self._tools.setdefault(call.form.name, _Tool(self._seen)).add(call)

    def results(self, name: str) -> Sequence[Message]:
        """Every recorded result of a tool, in order."""
        return [call.result for call in self._tools[name].calls] if name in self._tools else ()

    def nearest(self, state: State, call: ToolCall, *, k: int = 1) -> list[Found]:
        """The `k` nearest recorded calls of the same tool, one for each different set of arguments, nearest first."""
        tool = self._tools.get(call.name)
        if tool is None:
            return []
        form = call_form(call)
        calls, written = _answered(state, self.effects)
        past = past_key(influences(written, form, self.effects.get(form.name, EXTERNAL)))
        return tool.nearest(form, past, _seen(calls), k)


def _seen(calls: Iterable[RecordedCall]) -> Seen:
    return {(call.form.signature, call.past): content_key(call.result.content_text) for call in calls}


class _Tool:
    """All calls of one tool. `weights` are learned when they are first needed."""

    def __init__(self, seen: Sequence[Seen]) -> None:
        self._seen = seen
        self.calls: list[RecordedCall] = []
        self._by_signature: dict[str, list[RecordedCall]] = defaultdict(list)
        self._results: set[str] = set()
        self._holding: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self._weights: dict[str, float] | None = None

    def add(self, call: RecordedCall) -> None:
        self.calls.append(call)
        self._by_signature[call.form.signature].append(call)
        self._results.add(call.result.content_text)
        for name, value in (call.form.arguments or {}).items():
            self._holding[name, canonical(value)].setdefault(call.form.signature)
        self._weights = None

    @property
    def weights(self) -> Mapping[str, float]:
        if self._weights is None:
            self._weights = field_weights([calls[0] for calls in self._by_signature.values()])
        return self._weights

    @property
    def floor(self) -> float:
        """How alike any two calls are at least: where none of n different ones had another result, arguments seem not to matter."""
        n = len(self._by_signature)
        return (n + 1) / (n + 2) if len(self._results) == 1 and n >= _ENOUGH else 0.0

    def nearest(self, form: CallForm, past: str, seen: Seen, k: int) -> list[Found]:
        found, floor = [], min(self.floor, _NOT_EQUAL)
        for signature in self._candidates(form):
            calls = self._by_signature[signature]
            near = similarity(form.arguments, calls[0].form.arguments, self.weights)
            found.append(self._best(calls, past, seen, 1.0 if signature == form.signature else min(max(near, floor), _NOT_EQUAL)))
        return sorted(found, key=lambda one: -one.score)[:k]

    def _candidates(self, form: CallForm) -> list[str]:
        """Signatures worth comparing: the same, those that share most of what counts, and the first others."""
        shared: Counter[str] = Counter()
        for name, value in (form.arguments or {}).items():
            for signature in self._holding.get((name, canonical(value)), ()):
                shared[signature] += self.weights.get(name, 1.0)  # type: ignore[assignment]  # a weight, not a count
        likely = [signature for signature, _ in sorted(shared.items(), key=lambda item: -item[1])[:_SCANNED]]
        own = [form.signature] if form.signature in self._by_signature else []
        return list(dict.fromkeys([*own, *likely, *islice(self._by_signature, _SCANNED)]))

    def _best(self, calls: Sequence[RecordedCall], past: str, seen: Seen, near: float) -> Found:
        """Of calls with equal arguments those with the same past, of runs that saw what this one saw; then the most frequent result."""
        same = [call for call in calls if call.past == past][-_SCANNED:]
        unlike = [_differences(self._seen[call.run], seen) for call in same]
        likely = [call for call, differs in zip(same, unlike, strict=True) if differs == min(unlike)] or calls
        counts = Counter(call.result.content_text for call in likely)
        return Found(max(reversed(likely), key=lambda call: counts[call.result.content_text]), near, bool(same))


def _differences(there: Seen, here: Seen) -> int:
    """In how many calls that both made two runs saw different results."""
    return sum(made in there and there[made] != result for made, result in here.items())


def field_weights(calls: Sequence[RecordedCall]) -> dict[str, float]:
    """For each field how well its agreement goes with that of the results, in (0, 1]: the phi coefficient over pairs of calls.

    A field of which the log says nothing, because it or the result never changes, gets the mean of the others, or 1.
    """
    names = list(dict.fromkeys(name for call in calls for name in call.form.arguments or {}))
    phis = {name: _phi(list(islice(_agreements(calls, name), _PAIRS))) for name in names}
    known = [max(phi, _LEAST_WEIGHT) for phi in phis.values() if phi is not None]
    unknown = sum(known) / len(known) if known else 1.0
    return {name: unknown if phi is None else max(phi, _LEAST_WEIGHT) for name, phi in phis.items()}


def _agreements(calls: Sequence[RecordedCall], name: str) -> Iterator[tuple[bool, bool]]:
    """Whether field and result agree, for pairs of calls."""
    values = [(canonical((call.form.arguments or {}).get(name)), content_key(call.result.content_text)) for call in calls]
    for (field, result), (other_field, other_result) in combinations(values, 2):
        yield field == other_field, result == other_result


def _phi(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    both, first, second, n = (sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs), len(pairs))
    spread = math.sqrt(first * (n - first) * second * (n - second))
    return (n * both - first * second) / spread if spread else None


def similarity(left: Mapping[str, Any] | None, right: Mapping[str, Any] | None, weights: Mapping[str, float]) -> float:
    """How alike two sets of arguments are, in [0, 1]. A field that one lacks is unlike."""
    if left is None or right is None:
        return 0.0
    names = dict.fromkeys((*left, *right))
    total = sum(weights.get(name, 1.0) for name in names)
    if not total:
        return 1.0
    alike = sum(weights.get(n, 1.0) * _field_similarity(n, left[n], right[n]) for n in names if n in left and n in right)
    return alike / total


def _field_similarity(name: str, left: Any, right: Any) -> float:
    """As of any two values; but numbers that identify something are names, and neighbours have nothing in common."""
    if _IDENTIFIER.search(name) and isinstance(left, int) and isinstance(right, int):
        return _value_similarity(str(left), str(right))
    return _value_similarity(left, right)


def _value_similarity(left: Any, right: Any) -> float:
    if isinstance(left, bool) or isinstance(right, bool):
        return float(left is right)
    return 1.0 if left == right else min(_likeness(left, right), _NOT_EQUAL)


def _likeness(left: Any, right: Any) -> float:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return max(0.0, 1.0 - abs(left - right) / max(abs(left), abs(right)))
    if isinstance(left, str) and isinstance(right, str):
        return _text_similarity(left, right)
    if isinstance(left, list) and isinstance(right, list):
        return _list_similarity(left[:_COMPARED], right[:_COMPARED])
    return similarity(left, right, {}) if isinstance(left, Mapping) and isinstance(right, Mapping) else 0.0


def _text_similarity(left: str, right: str) -> float:
    """The share of words or of runs of three letters in common (Dice), whichever is larger."""
    one, other = left.casefold().split(), right.casefold().split()
    letters = _dice(_trigrams(left), _trigrams(right))
    if len(one) <= 1 and len(other) <= 1:
        return _WORD_CREDIT * letters
    return max(_dice(Counter(one), Counter(other)), letters)


def _trigrams(text: str) -> Counter[str]:
    padded = f"  {text.casefold()} "
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def _dice(left: Counter[str], right: Counter[str]) -> float:
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else 1.0


def _list_similarity(left: Sequence[Any], right: Sequence[Any]) -> float:
    """Each element of the longer list with its best fellow in the other, whatever the order."""
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    if not longer:
        return 1.0
    return sum(max((_value_similarity(each, other) for other in shorter), default=0.0) for each in longer) / len(longer)
