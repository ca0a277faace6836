"""What a world needs to re-enact the logged conversations of a benchmark: one import for those who write such a world.

The user of the log says what she said as long as she is told what she was told. She hears the agent's texts and nothing
else, so a branch that calls other tools and then says the same gets the same answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias, TypeVar

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, ToolSpec, Trace, Trajectory
from counterplay.replay.environment_fingerprint import Fingerprint, environment_fingerprint

__all__ = [
    "Effect",
    "Fingerprint",
    "LoggedWorld",
    "Mapping",
    "Message",
    "ScriptedUser",
    "ToolSpec",
    "Trace",
    "copied",
    "environment_fingerprint",
]

Otherwise: TypeAlias = Callable[[Sequence[str]], str]
W = TypeVar("W", bound="LoggedWorld")


class ScriptedUser:
    """The user of one logged conversation; `told` is what she heard so far.

    `otherwise` answers where the log has no answer any more: it gets all that she was told, the newest last, and returns
    what she says, as a simulated user would. None: `hear` raises LookupError there, which ends a branch.
    """

    def __init__(self, trajectory: Trajectory, *, otherwise: Otherwise | None = None) -> None:
        self.otherwise, self.told = otherwise, tuple[str, ...]()
        self._answers: dict[tuple[str, ...], str] = {}
        so_far: tuple[str, ...] = ()
        for step in trajectory.steps:
            if not step.action.tool_calls:
                so_far = (*so_far, step.action.content_text)
                said = [message.content_text for message in step.observations if message.role == "user"]
                if said:
                    self._answers[so_far] = said[0]

    def hear(self, text: str) -> str:
        """Tell her `text` and return what she says to it. Raises LookupError where neither the log nor `otherwise` knows."""
        self.told = (*self.told, text)
        if self.told in self._answers:
            return self._answers[self.told]
        if self.otherwise is None:
            message = f"the logged user was never told this: {text[:120]!r}"
            raise LookupError(message)
        return self.otherwise(self.told)


class LoggedWorld:
    """Base of a world that is made from a trace. A subclass sets `tools` and implements `call`; `environment` is its fingerprint.

    The episode is `done` once the user says one of `stops`. The front door gives a factory with `takes_trace` the whole trace in
    place of its task.
    """

    takes_trace: ClassVar[bool] = True
    stops: ClassVar[tuple[str, ...]] = ("###STOP###",)
    tools: Sequence[ToolSpec] = ()
    environment: Fingerprint

    def __init__(self, trace: Trace) -> None:
        self.trace, self.done = trace, False
        self.prompt: Sequence[Message] = trace.trajectory.prompt
        self.user = ScriptedUser(trace.trajectory)

    def reply(self, action: Message) -> Sequence[Message]:
        """The logged user's answer to a text."""
        answer = self.user.hear(action.content_text)
        self.done = any(stop in answer for stop in self.stops)
        return [Message.user(answer)]


def copied(world: W, *changing: str) -> W:
    """An independent instance in the same state; `changing` names the attributes that hold it. The whole of a world's `copy`."""
    twin = copy.copy(world)
    twin.user = copy.copy(world.user)
    twin.__dict__.update(copy.deepcopy({name: world.__dict__[name] for name in changing}))
    return twin
