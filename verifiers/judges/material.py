"""What a judge is shown of a trajectory: every message quoted between fences that nothing inside can close.

The fence's tag is derived from the judge's seed and the trajectory's prompt, so it is the same for all that share the prompt: what
prefixes share is equal to the byte, and a server's prompt cache holds it. Where the tag itself stands in a message, it is taken out.
Rewards, grades and scores are never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Message, Step, Trajectory

LEAST_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Material:
    """Text for a judge, and what of it had to be left out: "" where nothing was. `steps_left_out`: indexes of steps not shown whole."""

    text: str
    left_out: str = ""
    steps_left_out: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Unit:
    """One quoted message, or a mark in place of several. `step` is None in the prompt.

    `cut` counts the characters missing in its middle. A mark says in `hidden` what it stands for, and in `steps` of which steps.
    """

    text: str
    step: int | None = None
    cut: int = 0
    hidden: str = ""
    steps: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Renderer:
    """How trajectories are shown. At most about `max_chars` characters; what is beyond is left out of the middle, and marked.

    Where not all fits, no message takes more than an eighth of them. `formal` leaves out the agent's prose: its reasoning, and its
    words beside tool calls; an action that calls no tool is its words, and is shown.
    """

    max_chars: int = 60_000
    formal: bool = False
    seed: int = 0

    def tag(self, trajectory: Trajectory) -> str:
        return content_key("fence", str(self.seed), trajectory.prefix_keys[0])[:12]

    def whole(self, trajectory: Trajectory) -> Material:
        """Tools, prompt and steps."""
        return self.continuation(trajectory, 0, self.max_chars, prompt=True)

    def continuation(self, trajectory: Trajectory, start: int, max_chars: int, *, prompt: bool = False) -> Material:
        """The steps from `start` on, in at most about `max_chars` characters; after tools and prompt with `prompt`."""
        tag = self.tag(trajectory)
        limit = max(LEAST_CHARS, max_chars)
        raw = [(label, _neutral(tag, text), step) for label, text, step in self._raw(trajectory, start, prompt=prompt)]
        units: Sequence[Unit] = [Unit(_fence(tag, label, text), step) for label, text, step in raw]
        if sum(len(unit.text) for unit in units) > limit:
            units = _fitting([_shortened(tag, limit // 8, *each) for each in raw], tag, limit)
        return _material(units)

    def _raw(self, trajectory: Trajectory, start: int, *, prompt: bool) -> Iterator[tuple[str, str, int | None]]:
        if prompt and trajectory.tools:
            yield "tools of the agent", "\n".join(tool.wire for tool in trajectory.tools), None
        for message in trajectory.prompt if prompt else ():
            yield f"prompt, {message.role}", self._said(message), None
        for index, step in enumerate(trajectory.steps[start:], start):
            yield f"step {index}, action", self._said(step.action), index
            for message in step.observations:
                yield f"step {index}, {'result' if message.role == 'tool' else message.role}", message.content_text, index
        ending = _ending(trajectory.steps[-1]) if trajectory.steps else ""
        if ending:
            yield "how it ended", ending, len(trajectory.steps) - 1

    def _said(self, message: Message) -> str:
        """An action or a message of the prompt as text."""
        calls = [f"calls {call.name} {call.arguments}" for call in message.tool_calls]
        prose = [] if self.formal and calls else [message.content_text]
        if message.reasoning and not self.formal:
            prose.insert(0, f"(thinking) {message.reasoning}")
        return "\n".join(text for text in (*prose, *calls) if text) or "(nothing)"


def quoted(tag: str, label: str, text: str) -> str:
    """Text between fences that it can't close. The label must be the caller's own."""
    return _fence(tag, label, _neutral(tag, text))


def _neutral(tag: str, text: str) -> str:
    return re.sub(re.escape(tag), "[quoted tag]", text, flags=re.IGNORECASE)


def _fence(tag: str, label: str, body: str) -> str:
    return f"<<{tag} {label}>>\n{body}\n<</{tag}>>\n"


def _ending(step: Step) -> str:
    if step.error is not None:
        return f"It was broken off by an error: {step.error}"
    return "The agent ended it." if step.terminated else "It was stopped at a limit." if step.truncated else ""


def _shortened(tag: str, limit: int, label: str, text: str, step: int | None) -> Unit:
    """A message of at most about `limit` characters, the rest left out of its middle."""
    cut = max(0, len(text) - limit)
    if cut:
        half = limit // 2
        text = f"{text[:half]}\n[{tag}: {cut} characters left out]\n{text[len(text) - (limit - half) :]}"
    return Unit(_fence(tag, label, text), step, cut)


def _fitting(units: Sequence[Unit], tag: str, limit: int) -> Sequence[Unit]:
    """The units, or where they are too long the first and the last of them, half the limit each: so a longer prefix begins alike."""
    lengths = [len(unit.text) for unit in units]
    if sum(lengths) <= limit:
        return units
    head = sum(length <= limit // 2 for length in accumulate(lengths))
    tail = sum(length <= limit // 2 for length in accumulate(reversed(lengths)))
    missing = units[head : len(units) - tail]
    hidden, steps = _described(missing), frozenset(unit.step for unit in missing if unit.step is not None)
    mark = Unit(f"[{tag}: {hidden} left out]\n", None, 0, hidden, steps)
    return [*units[:head], mark, *units[len(units) - tail :]]


def _material(units: Sequence[Unit]) -> Material:
    cut = [unit for unit in units if unit.cut]
    left_out = [f"{unit.hidden} not shown" for unit in units if unit.hidden]
    left_out += [f"{sum(unit.cut for unit in cut)} characters cut from {len(cut)} messages"] if cut else []
    steps = frozenset(unit.step for unit in cut if unit.step is not None).union(*(unit.steps for unit in units))
    return Material("".join(unit.text for unit in units), "; ".join(left_out), steps)


def _described(missing: Sequence[Unit]) -> str:
    chars = sum(len(unit.text) for unit in missing)
    steps = sorted({unit.step for unit in missing if unit.step is not None})
    where = "" if not steps else f" of step {steps[0]}" if len(steps) == 1 else f" of steps {steps[0]} to {steps[-1]}"
    return f"{len(missing)} messages{where} ({chars} characters)"
