"""What logs tell of how an agent goes on: after what it does what, and when it ends. The stand-in for it in a rehearsal.

A step is told by its words, figures and ids left out: what it calls with which choices, and what it was answered. What comes next is
counted after the longest run of steps that was seen often enough, told by words where they are repeated from run to run, else by the names
of the tools alone.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Message, Proposal, ToolCall, Usage
from counterplay.core.protocols import first_draw
from counterplay.core.tool_errors import is_error

if TYPE_CHECKING:
    from counterplay.core.nouns import State, Step, Trace
    from counterplay.jobs.reserving import Reserves

_ORDER = 4
_OFTEN = 5
_READ = 400
_BYTES_A_TOKEN = 4
_WORD = re.compile(r"[^\W\d_]+(?:[_-][^\W\d_]+)*(?![\w])")


@dataclass(frozen=True, slots=True, order=True)
class Move:
    """A step in short: the names of its tools, its words, and whether the run ends with it."""

    names: str
    words: str
    ends: bool = False

    @classmethod
    def of(cls, step: Step, *, ends: bool) -> Move:
        return cls("+".join(call.name for call in step.action.tool_calls) or "say", _words(step.action.signature), ends)

    @property
    def action(self) -> Message:
        return Message.assistant(None, [ToolCall("", f"{self.names} {self.words}", '{"ends":true}' if self.ends else "{}")])


Seen = tuple[str, str, str]
"""A step that is over: the names of its tools, its words, those of what it was answered."""


def _words(text: str) -> str:
    """What of a text is repeated from run to run: its words, without those that hold a figure."""
    return content_key(*_WORD.findall(text[:_READ]))[:8]


def moves_of(steps: Sequence[Step]) -> list[Move]:
    """The moves of a logged run."""
    return [Move.of(step, ends=at == len(steps) - 1) for at, step in enumerate(steps)]


def answers_of(steps: Sequence[Step]) -> list[str]:
    """What each step was answered, in words; where a call failed, that is to be seen in them."""
    told = (_words(" ".join(message.content_text[:_READ] for message in step.observations)) for step in steps)
    return [f"error {words}" if _failed(step) else words for step, words in zip(steps, told, strict=True)]


def _failed(step: Step) -> bool:
    return step.error is not None or any(said.role == "tool" and is_error(said) for said in step.observations)


class Habits:
    """What follows what, in the runs it was shown."""

    def __init__(self, traces: Iterable[Trace]) -> None:
        self._moves: defaultdict[tuple[Any, ...], Counter[Move]] = defaultdict(Counter)
        self._answers: defaultdict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
        self.runs = 0
        latencies: list[float] = []
        for trace in traces:
            self.runs += 1
            self._learn(trace)
            latencies += [call.latency_s for call in trace.calls if call.latency_s]
        self.latency_s = fmean(latencies) if latencies else None

    def _learn(self, trace: Trace) -> None:
        steps = trace.trajectory.steps
        seen = list[Seen]()
        for move, answer in zip(moves_of(steps), answers_of(steps), strict=True):
            for context in _contexts(seen):
                self._moves[context][move] += 1
            for context in _contexts(seen):
                self._answers[(move.names, move.words, *context)][answer] += 1
            seen.append((move.names, move.words, answer))

    def drawn(self, seen: Sequence[Seen], rng: Random | None) -> Move:
        """A move after these steps; the likeliest where there is no `rng`."""
        found = next((known for context in _contexts(seen) if (known := self._often(self._moves, context))), None)
        move: Move = _drawn(found or Counter({Move("say", "", ends=True): 1}), rng)
        return move

    def answered(self, seen: Sequence[Seen], move: Move, rng: Random) -> str:
        """What a move is answered after these steps."""
        keys = ((move.names, move.words, *context) for context in _contexts(seen))
        found = next((known for key in keys if (known := self._often(self._answers, key))), None)
        answer: str = _drawn(found or Counter({"": 1}), rng)
        return answer

    @staticmethod
    def _often(table: defaultdict[tuple[Any, ...], Counter[Any]], key: tuple[Any, ...]) -> Counter[Any] | None:
        known = table.get(key)
        return known if known is not None and (known.total() >= _OFTEN or key[-1:] == ((),)) else None


def _contexts(seen: Sequence[Seen]) -> Iterator[tuple[Any, ...]]:
    """What was before, from the most that may tell something to nothing at all. A run begins with a step of its own."""
    seen = (("", "", ""), *seen)
    for order in range(min(_ORDER, len(seen)), 0, -1):
        yield ("words", *seen[len(seen) - order :])
    for order in range(min(_ORDER, len(seen)), 0, -1):
        yield ("names", *(step[0] for step in seen[len(seen) - order :]))
    yield ("any", ())


def _drawn(found: Counter[Any], rng: Random | None) -> Any:
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    if rng is None:
        return ranked[0][0]
    bounds = list(accumulate(count for _, count in ranked))
    return ranked[bisect(bounds, rng.random() * bounds[-1])][0]


def seen_in(state: State) -> list[Seen]:
    """The steps of a rehearsed state."""
    found = []
    for step in state.steps:
        names, _, words = step.action.tool_calls[0].name.rpartition(" ")
        found.append((names, words, step.observations[0].content_text if step.observations else ""))
    return found


class Tokens:
    """What a call of one trace takes at each step, in tokens: as it was logged, else a quarter of the bytes."""

    def __init__(self, trace: Trace, max_tokens: int | None) -> None:
        steps = trace.trajectory.steps
        logged = {call.step: call.usage for call in trace.calls if call.trajectory == 0 and call.usage.tokens}
        self.logged = bool(logged)
        prompts, size = list[float](), sum(len(message.wire) for message in trace.trajectory.prompt)
        size += sum(len(tool.wire) for tool in trace.trajectory.tools)
        answers = []
        for at, step in enumerate(steps):
            known = logged.get(at)
            prompts.append(known.input_tokens if known else size / _BYTES_A_TOKEN)
            answers.append(known.output_tokens if known else len(step.action.wire) / _BYTES_A_TOKEN)
            size += sum(len(message.wire) for message in step.messages)
        self._prompts = prompts or [size / _BYTES_A_TOKEN]
        self._growth = (self._prompts[-1] - self._prompts[0]) / max(1, len(self._prompts) - 1)
        self.answer = round(min(fmean(answers) if answers else 1.0, max_tokens or float("inf")))

    def prompt(self, step: int) -> int:
        """Of the request before this step; past the end of the log it grows as it did."""
        beyond = max(0, step - len(self._prompts) + 1)
        return round(self._prompts[min(step, len(self._prompts) - 1)] + beyond * self._growth)


class Rehearsing:
    """A policy that acts as the logs do. A request's prompt is counted once, however many draws it is for.

    What is reserved for proposals is what `reserves` tells; None: as for a policy that does not say.
    """

    def __init__(
        self,
        habits: Habits,
        tokens: Tokens,
        price: tuple[float, float] | None,
        *,
        greedy: bool,
        seed: int,
        reserves: Reserves | None = None,
    ) -> None:
        self.estimate = None if reserves is None else lambda state, n: reserves.of(len(state), n)
        self.habits, self.tokens, self.price, self.greedy, self.seed = habits, tokens, price, greedy, seed
        self.fingerprint = "rehearsal"
        self.waves = 0

    async def propose(self, state: State, n: int) -> list[Proposal]:
        self.waves += 1
        seen, first = seen_in(state), first_draw.get()
        moves = [self.habits.drawn(seen, None if self.greedy else self._rng(state.key, first + at)) for at in range(n)]
        usages = [self._usage(self.tokens.prompt(len(state)) if not at else 0) for at in range(n)]
        return [Proposal(move.action, usage=usage) for move, usage in zip(moves, usages, strict=True)]

    def _rng(self, key: str, draw: int) -> Random:
        return Random(f"{self.seed}/{key}/{draw}")

    def _usage(self, prompt: int) -> Usage:
        answer = self.tokens.answer
        cost = None if self.price is None else (prompt * self.price[0] + answer * self.price[1]) / 1e6
        return Usage(prompt, answer, cost_usd=cost)


def uniform(*parts: Any) -> float:
    """A number in [0, 1) that these parts decide."""
    return Random("/".join(map(str, parts))).random()
