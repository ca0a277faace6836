"""How runs fail, in classes: what a trajectory shows without knowing its domain, and what a verifier's reason or the user's own words add.

A class is a short phrase; equal phrases are one class. `SUCCESS` stands for a run that did not fail.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, Trajectory
from counterplay.core.tool_errors import is_error

SUCCESS = "success"
Classify: TypeAlias = "Callable[[Trajectory], Answer | Awaitable[Answer]]"
Answer: TypeAlias = "str | Score | float | None"
"""A class in words, or a verifier's opinion, whose reason names it; None, a bare number or a full score leaves it to `failure_class`."""

_REPEATS = 3
_LONGEST_CYCLE = 3
_LONGEST = 60
_PLACE = re.compile(r"^\s*(?:at )?step \d+\s*[:,]\s*", re.IGNORECASE)
_CLAUSE = re.compile(r"[:;(\n]|\. |, | - ")


def failure_class(trajectory: Trajectory) -> str:
    """How a failed run ended, the first of these that holds.

    `no action`: nothing was done. `error`: the machinery failed. `malformed tool call`: its last tool call can't be read. `unknown tool`:
    its last action calls none of its tools. `repeated actions`: the same one to three actions three times in a row at the end.
    `step limit`, `stopped on a tool error`, `no answer` (an empty last message), `unfinished` (neither ended nor cut off), and else
    `wrong end state`: the run ended of itself, and what it left was not what was wanted.
    """
    return next(_classes(trajectory))


def _classes(trajectory: Trajectory) -> Iterator[str]:
    """Every class that holds, first things first."""
    if not trajectory.steps:
        yield "no action"
        return
    last = trajectory.steps[-1]
    action = last.action
    if last.error is not None:
        yield "error"
    if _malformed(action):
        yield "malformed tool call"
    if trajectory.tools and any(trajectory.tool(call.name) is None for call in action.tool_calls):
        yield "unknown tool"
    if _repeats([step.action.signature for step in trajectory.steps if step.sampled]):
        yield "repeated actions"
    if last.truncated:
        yield "step limit"
    if any(message.role == "tool" and is_error(message) for message in last.observations):
        yield "stopped on a tool error"
    if not action.tool_calls and not action.content_text.strip():
        yield "no answer"
    yield "wrong end state" if last.terminated else "unfinished"


def _malformed(action: Message) -> bool:
    """Whether a tool call was begun that nobody can execute: its arguments are no JSON object, or its text stayed text."""
    if action.tool_calls:
        return any(call.args is None for call in action.tool_calls)
    return "<tool_call>" in action.content_text or "</tool_call>" in action.content_text


def _repeats(signatures: list[str]) -> bool:
    for period in range(1, _LONGEST_CYCLE + 1):
        end = signatures[-period * _REPEATS :]
        if len(end) == period * _REPEATS and end == signatures[-period:] * _REPEATS:
            return True
    return False


def reason_class(reason: str) -> str:
    """The class that a verifier's reason names: its first clause with words in it, without the step, "…" for words that hold digits.

    "step 4: e2: tax of v27 was wrong, 7 not 19" is "tax of … was wrong". Empty where no words are left.
    """
    for clause in _CLAUSE.split(_PLACE.sub("", reason)):
        words = ["…" if any(letter.isdigit() for letter in word) else word for word in clause.split()]
        if any(word != "…" for word in words):
            return " ".join(word for at, word in enumerate(words) if word != "…" or words[at - 1 : at] != ["…"])[:_LONGEST].strip(" .,'\"")
    return ""


async def classify_failures(trajectories: Sequence[Trajectory], classify: Classify | None = None) -> list[str]:
    """The class of every failed run; `classify`, where there is one, is asked first. Raises UserError where that fails."""
    return [await _classified(trajectory, classify) for trajectory in trajectories]


async def _classified(trajectory: Trajectory, classify: Classify | None) -> str:
    if classify is None:
        return failure_class(trajectory)
    wanted = "a function of a failed trajectory that gives a class as text, or a verifier"
    try:
        given = classify(trajectory)
        answer = await given if inspect.isawaitable(given) else given
    except Exception as error:
        raise UserError(f"{_name(classify)} failed on a run of {len(trajectory)} steps: {type(error).__name__}: {error}", wanted) from error
    if isinstance(answer, str):
        return " ".join(answer.split()) or failure_class(trajectory)
    if isinstance(answer, Score):
        named = "" if answer.value >= 1.0 else reason_class(answer.reason)
        return named or failure_class(trajectory)
    if answer is None or isinstance(answer, bool | int | float):
        return failure_class(trajectory)
    raise UserError(f"{_name(classify)} gave {type(answer).__name__} {answer!r:.80}", wanted)


def _name(classify: Classify) -> str:
    return str(getattr(classify, "name", None) or getattr(classify, "__name__", None) or type(classify).__name__)


def told(ends: Sequence[str]) -> str:
    """How the attempts at one task ended, for a person: "step limit", or "of 4: 2 success, 1 no answer, 1 step limit"."""
    if len(set(ends)) == 1:
        return ends[0] if len(ends) == 1 else f"{ends[0]} ({len(ends)} attempts)"
    counts: Mapping[str, int] = {end: ends.count(end) for end in ends}
    ranked = sorted(counts, key=lambda end: (end != SUCCESS, -counts[end], end))
    return f"of {len(ends)}: " + ", ".join(f"{counts[end]} {end}" for end in ranked)
