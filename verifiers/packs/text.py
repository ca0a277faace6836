"""The text pack: is what an agent says grounded in what it was shown, does it cite what it says, is it like a reference?

All of it is read off the words: no model is asked. It finds numbers, identifiers, names and quotations that nothing showed; it can't
find a claim that is wrong in other words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar, Literal

from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.verifiers.packs.base import ByPrefix, Finding, Fold, Index, Pack, leaves, uses_of
from counterplay.verifiers.packs.text_claims import Claim, claims_in, words_of

Measure = Literal["f1", "rouge_l", "exact"]

_ROUGE_WORDS = 2000
_BASES = 40
_LOOKED_UP = frozenset(("number", "identifier"))


@dataclass(frozen=True, slots=True)
class _Shown:
    """A text that was shown, in small letters and with plain spaces, for quotations."""

    text: str
    earlier: _Shown | None


@dataclass(frozen=True, slots=True)
class _State:
    seen: Index[bool] = Index()  # noqa: RUF009  an Index never changes
    shown: _Shown | None = None
    findings: tuple[Finding, ...] = ()
    told: Index[bool] = Index()  # noqa: RUF009


@dataclass(frozen=True, eq=False)
class Grounded(Pack):
    """A process verifier: `decay` to the power of the things said that nothing showed, each counted once. No opinion before the first step.

    What is said is the text of the agent's messages, and with `arguments` those of its calls to the tools that match. What was shown is
    everything before it: the prompt, the user's turns and the tools' answers, never the agent's own words.
    `numbers` (whatever way they are written; whole ones below `small` are not looked at, nor the sum, difference or product of two
    numbers that the same message gives and that were shown), `identifiers` (codes of letters and digits, e-mail addresses, URLs),
    `names` (two or more capitalised words in a row) and `quotes` (three or more words in quotation marks, to the letter).
    """

    name: ClassVar[str] = "grounded"
    numbers: bool = True
    identifiers: bool = True
    names: bool = True
    quotes: bool = True
    small: int = 13
    arguments: bool = False
    decay: float = 0.8

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        return self.verdict(self.findings(trajectory), "everything said was shown", self.decay)

    def findings(self, trajectory: Trajectory) -> list[Finding]:
        """What was said and never shown before, in step order."""
        return list(self._fold(trajectory).findings)

    @cached_property
    def _fold(self) -> Fold[_State]:
        return Fold(self._start, self._add)

    @cached_property
    def _kinds(self) -> frozenset[str]:
        wanted = {"number": self.numbers, "identifier": self.identifiers, "name": self.names, "quote": self.quotes}
        return frozenset(kind for kind, on in wanted.items() if on)

    def _start(self, trajectory: Trajectory) -> _State:
        state = _State()
        for message in trajectory.prompt:
            state = _show(state, message)
        return state

    def _add(self, state: _State, step: Step, index: int) -> _State:
        found: dict[tuple[str, str], Finding] = {}
        for text in self._said(step):
            claims = list(claims_in(text, self._kinds))
            bases = [Decimal(c.value) for c in claims if c.kind == "number" and (self._is_small(c) or _is_shown(state, c))]
            for claim in claims:
                key = (claim.kind, claim.value)
                if key in found or key in state.told or self._is_small(claim) or _is_shown(state, claim) or _follows(claim, bases):
                    continue
                found[key] = Finding(index, f"{claim.kind} {claim.text[:60]!r} was shown nowhere before", 1.0, claim.kind)
        state = replace(state, findings=(*state.findings, *found.values()), told=state.told.put((key, True) for key in found))
        for message in step.observations:
            state = _show(state, message)
        return state

    def _is_small(self, claim: Claim) -> bool:
        return claim.kind == "number" and claim.value.isdigit() and Decimal(claim.value) < self.small

    def _said(self, step: Step) -> Iterator[str]:
        yield step.action.content_text
        if self.arguments:
            for call in step.action.tool_calls:
                yield " ; ".join(map(str, leaves(call.args)))


@dataclass(frozen=True, eq=False)
class Citations(Pack):
    """A process verifier of cited answers: `decay` to the power of the wrong citations; no opinion before the first step.

    A citation is what `pattern` finds in the agent's text; its first group is the source's id. A source is an object in a tool's answer
    that has the field `id_field`; its text is `text_field`, or all of it where that is empty. Wrong are citations of a source that was
    not shown before, and those whose sentence shares fewer than `overlap` of its content words, in [0, 1], with what it cites. With
    `required`, a finished trajectory whose last text cites nothing is wrong too.
    """

    name: ClassVar[str] = "citations"
    pattern: str = r"\[([\w.:/#-]+)\]"
    id_field: str = "id"
    text_field: str = "text"
    overlap: float = 0.5
    required: bool = True
    decay: float = 0.5

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        return self.verdict(self.findings(trajectory), "every citation holds", self.decay)

    def findings(self, trajectory: Trajectory) -> list[Finding]:
        """Wrong citations in step order, and the missing one of the end."""
        found = list(self._fold(trajectory).findings)
        last = next((i for i in reversed(range(len(trajectory))) if trajectory.steps[i].action.content_text.strip()), None)
        if not self.required or not trajectory.finished or last is None:
            return found
        if not re.search(self.pattern, trajectory.steps[last].action.content_text):
            found.append(Finding(last, "the final answer cites nothing", 1.0, "missing"))
        return found

    @cached_property
    def _fold(self) -> Fold[_Sources]:
        return Fold(lambda _: _Sources(), self._add)

    def _add(self, state: _Sources, step: Step, index: int) -> _Sources:
        found = []
        for sentence in re.split(r"(?<=[.!?])\s+(?!\[)|\n+", step.action.content_text):
            cited = [match[1] if match.re.groups else match[0] for match in re.finditer(self.pattern, sentence)]
            said = Counter(words_of(re.sub(self.pattern, " ", sentence), content=True))
            known = [text for each in cited if (text := state.texts.get(each)) is not None]
            unknown = [each for each in cited if state.texts.get(each) is None]
            found += [Finding(index, f"{each!r} is cited and was never shown", 1.0, "unknown") for each in unknown]
            shared = sum((said & Counter(words_of(" ".join(known)))).values()) / max(1, said.total())
            if known and said and shared < self.overlap:
                told = f"{', '.join(cited)} is cited for {sentence.strip()[:80]!r} and says little of it ({shared:.0%} of its words)"
                found.append(Finding(index, told, 1.0, "unsupported"))
        sources = [pair for use in uses_of(step, index) if use.done for pair in self._sources(use.value)]
        return _Sources(state.texts.put(sources), (*state.findings, *found))

    def _sources(self, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            ref = value.get(self.id_field)
            if isinstance(ref, str | int) and not isinstance(ref, bool):
                yield str(ref), str(value.get(self.text_field) or "") if self.text_field else " ".join(map(str, leaves(value)))
        for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
            yield from self._sources(each)


@dataclass(frozen=True, slots=True)
class _Sources:
    texts: Index[str] = Index()  # noqa: RUF009  an Index never changes
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class Similarity(Pack):
    """An outcome verifier: how like a reference the last text of a finished trajectory is, in [0, 1]; no opinion on prefixes.

    `reference` is one text for every trajectory, or what finds it (`ByPrefix.from_traces(traces, "answer")`, or a callable that gives
    None where it does not know). `measure`: `f1` of the words (SQuAD: order does not count), `rouge_l` (the longest common
    subsequence of words, as an F-measure; texts are read up to 2,000 words), or `exact` (equal words). Words are compared without
    letter case and punctuation.
    """

    name: ClassVar[str] = "similarity"
    reference: str | ByPrefix[Any] | Callable[[Trajectory], Any]
    measure: Measure = "f1"

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        reference = self.reference(trajectory) if callable(self.reference) else self.reference
        if not trajectory.finished or reference is None:
            return None
        texts = (step.action.content_text for step in reversed(trajectory.steps))
        said = next((text for text in texts if text.strip()), "")
        value = similarity(str(reference), said, self.measure)
        return self.score(value, f"{self.measure} {value:.2f} with {str(reference)[:60]!r}")


def similarity(reference: str, text: str, measure: Measure = "f1") -> float:
    """How alike two texts are, in [0, 1]; two empty ones are equal."""
    left, right = words_of(reference), words_of(text)
    if not left or not right or measure == "exact":
        return float(left == right)
    shared = sum((Counter(left) & Counter(right)).values()) if measure == "f1" else _common(left[:_ROUGE_WORDS], right[:_ROUGE_WORDS])
    sizes = len(left) + len(right) if measure == "f1" else min(len(left), _ROUGE_WORDS) + min(len(right), _ROUGE_WORDS)
    return 2 * shared / sizes


def _common(left: list[str], right: list[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            diagonal, row[column] = row[column], diagonal + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


def _is_shown(state: _State, claim: Claim) -> bool:
    if claim.kind in ("number", "identifier"):
        return (claim.kind, claim.value) in state.seen
    parts = [claim.value] if claim.kind == "quote" else claim.value.split()
    return all(_occurs(state.shown, f" {part} ") for part in parts)


def _occurs(shown: _Shown | None, words: str) -> bool:
    while shown is not None and words not in shown.text:
        shown = shown.earlier
    return shown is not None


def _follows(claim: Claim, bases: list[Decimal]) -> bool:
    """Whether a number is the sum, difference or product of two of these; of more than 40 it would be by chance."""
    if claim.kind != "number" or len(bases) > _BASES:
        return False
    number = Decimal(claim.value)
    pairs = combinations(bases, 2)
    return any(number in (left + right, abs(left - right), left * right) for left, right in pairs)


def _show(state: _State, message: Message) -> _State:
    if message.role == "assistant":
        return state
    text = message.content_text
    seen = (((claim.kind, claim.value), True) for claim in claims_in(text, _LOOKED_UP, shown=True))
    return replace(state, seen=state.seen.put(seen), shown=_Shown(f" {' '.join(words_of(text))} ", state.shown))
