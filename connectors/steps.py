"""A flat list of messages into prompt and steps, with what is known of how the run ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from counterplay.connectors.normalise import role_of
from counterplay.core.nouns import Grade, Message, Outcome, Step, ToolSpec, Trajectory


class StepList:
    """Steps under construction. Every message given is kept, in order."""

    def __init__(self, prompt: Sequence[Message]) -> None:
        self._prompt = list(prompt)
        self._steps: list[tuple[Message, list[Message], bool]] = []

    def act(self, action: Message, *, sampled: bool = True) -> int:
        """Open a step; its index."""
        self._steps.append((action, [], sampled))
        return len(self._steps) - 1

    def extend(self, messages: Iterable[Message], *, sampled: bool) -> None:
        """What followed: observations of the last step; an assistant message among them is a step, `sampled` as said."""
        for message in messages:
            if role_of(message) == "assistant":
                self.act(message, sampled=sampled)
            elif self._steps:
                self._steps[-1][1].append(message)
            else:
                self._prompt.append(message)

    def __len__(self) -> int:
        return len(self._steps)

    def trajectory(
        self,
        tools: tuple[ToolSpec, ...],
        outcome: Outcome | None = None,
        *,
        terminated: bool | None = None,
        truncated: bool = False,
        error: str | None = None,
    ) -> Trajectory:
        """The trajectory. Its last step bears the outcome's reward; where `terminated` is None it has ended if there is an outcome."""
        steps = [
            Step(action, tuple(observations), sampled, grades=(Grade.EXACT,) * len(observations))
            for action, observations, sampled in self._steps
        ]
        if steps:
            last = steps[-1]
            ended = outcome is not None and not truncated if terminated is None else terminated
            reward = outcome.reward if outcome else None
            steps[-1] = Step(last.action, last.observations, last.sampled, ended, truncated, error, reward, last.grades)
        return Trajectory(tools, tuple(self._prompt), tuple(steps))


def tools_known(trajectory: Trajectory) -> bool:
    """Whether the definitions of the tools that are called are there; True where none is called."""
    return bool(trajectory.tools) or not any(message.tool_calls for message in trajectory.messages)


def prompt_length(messages: Sequence[Message]) -> int:
    """How many messages stand before the first action: the first assistant message after the first user message."""
    first_user = next((i for i, message in enumerate(messages) if role_of(message) == "user"), -1)
    return next((i for i, message in enumerate(messages) if i > first_user and role_of(message) == "assistant"), len(messages))
