"""Where in a trajectory the produced code, patch or query is found, and verifiers that look at nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from counterplay.core.nouns import Message, Score, ToolCall, Trajectory
from counterplay.core.protocols import Opinion
from counterplay.verifiers.packs.base import Pack

Where: TypeAlias = "Callable[[Trajectory], str | None]"
"""What finds the produced text in a trajectory; None where there is none (yet)."""

PerTask: TypeAlias = "str | Callable[[Trajectory], str | None]"
"""A reference that is the same for every trajectory, or what finds that of one trajectory, as `packs.ByPrefix` does; None where there is
none for it."""

_FENCES = ("```", "~~~")


@dataclass(frozen=True, slots=True)
class LastBlock:
    """The last closed fenced block that an assistant message holds, in one of `languages` (lower case; "" is a block that names none).

    Any language where `languages` is empty.
    """

    languages: tuple[str, ...] = ()

    def __call__(self, trajectory: Trajectory, /) -> str | None:
        for message in _actions(trajectory):
            for language, text in reversed(list(fenced(_text(message)))):
                if not self.languages or language in self.languages:
                    return text
        return None


@dataclass(frozen=True, slots=True)
class Argument:
    """The text argument `name` of the last call that has one; of the tool `tool` alone where one is named."""

    name: str
    tool: str | None = None

    def __call__(self, trajectory: Trajectory, /) -> str | None:
        for message in _actions(trajectory):
            for call in reversed(_calls(message)):
                found = (call.args or {}).get(self.name)
                if isinstance(found, str) and self.tool in {None, call.name}:
                    return found
        return None


@dataclass(frozen=True, slots=True)
class LastText:
    """The text of the last assistant message that has any."""

    def __call__(self, trajectory: Trajectory, /) -> str | None:
        return next((text for message in _actions(trajectory) if (text := _text(message)).strip()), None)


@dataclass(frozen=True, slots=True)
class FirstOf:
    """What the first of `places` that finds something finds."""

    places: tuple[Where, ...]

    def __call__(self, trajectory: Trajectory, /) -> str | None:
        return next((text for place in self.places if (text := place(trajectory)) is not None), None)


@dataclass(frozen=True, eq=False, kw_only=True)
class OfProduced(Pack):
    """A verifier of what a trajectory produced. No opinion while nothing is produced; 0 once it has ended without.

    On a prefix it speaks of what has been produced so far: ask it `on_finished` alone for an outcome. Equal texts are judged once a batch.
    `where` says where to look, `reference` what to compare with, where the verifier needs that;
    no opinion on a trajectory that has no reference.
    """

    what: ClassVar[str] = "code"
    compares: ClassVar[bool] = True

    where: Where
    reference: PerTask = ""

    async def __call__(self, trajectory: Trajectory, /) -> Score | None:
        question = self._question(trajectory)
        return await self.judge(*question) if isinstance(question, tuple) else question

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Opinion | Exception]:
        questions = [self._question(trajectory) for trajectory in trajectories]
        asked = list(dict.fromkeys(question for question in questions if isinstance(question, tuple)))
        answers = await asyncio.gather(*(self.judge(*question) for question in asked), return_exceptions=True)
        known: dict[tuple[str, str], Opinion | Exception] = {}
        for question, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            known[question] = answer
        return [known[question] if isinstance(question, tuple) else question for question in questions]

    async def judge(self, text: str, reference: str, /) -> Score | None:
        """The opinion on one produced text."""
        raise NotImplementedError

    def _question(self, trajectory: Trajectory) -> tuple[str, str] | Score | None:
        text = self.where(trajectory)
        reference = self.reference if isinstance(self.reference, str) else self.reference(trajectory)
        if reference is None or (self.compares and not reference):
            return None
        if text is None:
            return self.score(0.0, f"it ended and produced no {self.what}") if trajectory.finished else None
        return text, reference


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """The closed fenced blocks of a Markdown text in order: the language in lower case ("" where none is named) and the content."""
    opened, language, lines = "", "", list[str]()
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        mark = bare[:3]
        if opened:
            if mark == opened[:3] and len(bare) >= len(opened) and not bare.strip(mark[0]):
                yield language, "".join(lines)
                opened = ""
            else:
                lines.append(line)
        elif mark in _FENCES and "`" not in bare.lstrip(mark[0]):
            opened = bare[: len(bare) - len(bare.lstrip(mark[0]))]
            words = bare.lstrip(mark[0]).split(maxsplit=1)
            language, lines = (words[0].lower() if words else ""), []


def _actions(trajectory: Trajectory) -> Iterator[Message]:
    """What the agent said and did, last first."""
    return (step.action for step in reversed(trajectory.steps))


def _text(message: Message) -> str:
    """The message's text; empty for content of a kind that no provider sends."""
    try:
        found: object = message.content_text
    except (AttributeError, TypeError):
        return ""
    return found if isinstance(found, str) else ""


def _calls(message: Message) -> tuple[ToolCall, ...]:
    try:
        return message.tool_calls
    except (AttributeError, TypeError):  # a log may hold anything under tool_calls
        return ()
