"""The contexts of a branch, built from the requests that the agent makes: what a request adds to an answer is what was observed.

The main line begins at the fork. A request that goes on from it, or from one of its prefixes at or after the fork, is of the main
line; any other context is one of a sub-agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from counterplay.core.nouns import Call, Grade, Message, Step, ToolCall, Trajectory, steps_of
from counterplay.replay.agents.requests import Answered, Asked, Normal, Normaliser

GradeOf = Callable[[ToolCall], Grade]
"""How truly the result of a call was obtained."""


@dataclass(eq=False)
class Line:
    """One context: a trajectory, the last step of which is open where the model has answered and not been asked again."""

    trajectory: Trajectory
    normals: list[Normal]
    main: bool
    calls: list[Call] = field(default_factory=list)
    forked_at: int = 0

    def observe(self, messages: Sequence[Message], normals: list[Normal], grade_of: GradeOf) -> None:
        """Take what a request adds for what followed the last action."""
        self.normals = normals
        if not messages:
            return
        if not self.trajectory.steps:
            self.trajectory = replace(self.trajectory, prompt=(*self.trajectory.prompt, *messages))
            return
        *before, last = self.trajectory.steps
        grades = (*last.grades, *(_grade(message, last.action, grade_of) for message in messages))
        last = replace(last, observations=(*last.observations, *messages), grades=grades)
        self.trajectory = replace(self.trajectory, steps=(*before, last))

    def act(self, action: Message, normals: list[Normal], call: Call) -> None:
        self.trajectory = replace(self.trajectory, steps=(*self.trajectory.steps, Step(action)))
        self.normals = normals
        self.calls.append(replace(call, step=len(self.trajectory) - 1))

    def end(self, *, terminated: bool = False, truncated: bool = False, error: str | None = None) -> None:
        """Close the last step."""
        if not self.trajectory.steps:
            return
        *before, last = self.trajectory.steps
        last = replace(last, terminated=terminated, truncated=truncated, error=error)
        self.trajectory = replace(self.trajectory, steps=(*before, last))


class Lines:
    """All contexts of a branch."""

    def __init__(self, normaliser: Normaliser) -> None:
        self._normaliser = normaliser
        self.lines: list[Line] = []
        self._fork: list[Normal] | None = None

    @property
    def main(self) -> Line | None:
        """The main line: of several, the one that went on last; None before the fork."""
        return next((line for line in self.lines if line.main), None)

    @property
    def sides(self) -> list[Line]:
        main = self.main
        return [line for line in self.lines if line is not main]

    def fork(self, prefix: Trajectory, asked: Asked) -> Line:
        """The main line, at the request of the fork. `prefix` is the state before it."""
        self._fork = self._normaliser.of(asked.messages)
        line = Line(prefix, self._fork, main=True, forked_at=len(prefix))
        self.lines.insert(0, line)
        return line

    def place(self, asked: Asked, grade_of: GradeOf) -> Line:
        """The line that a request is of, with what it adds; a new one where it goes on from none."""
        normals = self._normaliser.of(asked.messages)
        line = self.continued(normals)
        if line is None:
            return self._begin(asked, normals)
        known = len(line.normals)
        line.observe(asked.messages[known:], normals, grade_of)
        if line.main:
            self.lines.remove(line)
            self.lines.insert(0, line)
        return line

    def is_main(self, asked: Asked) -> bool:
        """Whether a request goes on from the main line."""
        normals = self._normaliser.of(asked.messages)
        line = self.continued(normals)
        return self._of_fork(normals) if line is None else line.main

    def answered(self, line: Line, asked: Asked, answered: Answered, call: Call) -> None:
        """The model answered the last request of `line`."""
        if answered.action is not None:
            line.act(answered.action, self._normaliser.of([*asked.messages, answered.action]), call)

    def continued(self, normals: list[Normal]) -> Line | None:
        """The line with the longest context that these messages go on from."""
        found = [line for line in self.lines if normals[: len(line.normals)] == line.normals]
        return max(found, key=lambda line: len(line.normals), default=None)

    def _begin(self, asked: Asked, normals: list[Normal]) -> Line:
        main = self._of_fork(normals)
        if main and self.main is not None:
            line = Line(self._alternative(asked, normals, self.main), normals, main=True, forked_at=self.main.forked_at)
        else:
            prompt, steps = steps_of(asked.messages)
            steps = tuple(replace(step, sampled=False) for step in steps)
            line = Line(Trajectory(asked.tools, prompt, steps), normals, main=False, forked_at=len(steps))
        self.lines.insert(0, line)
        return line

    def _of_fork(self, normals: list[Normal]) -> bool:
        return self._fork is not None and normals[: len(self._fork)] == self._fork

    def _alternative(self, asked: Asked, normals: list[Normal], line: Line) -> Trajectory:
        """The main line up to where a request leaves it, for it drew a step again, and what the request has there instead."""
        count, steps = len(line.trajectory.prompt), 0
        for step in line.trajectory.steps:
            if steps >= line.forked_at and normals[: count + len(step.messages)] != line.normals[: count + len(step.messages)]:
                break
            count, steps = count + len(step.messages), steps + 1
        rest = steps_of([Message.user(""), *asked.messages[count:]])[1]
        kept = line.trajectory.prefix(steps)
        return replace(kept, steps=(*kept.steps, *(replace(step, sampled=False) for step in rest)))


def _grade(message: Message, action: Message, grade_of: GradeOf) -> Grade:
    """Of a tool result the grade of its call; what the agent's own code says is executed."""
    call = next((call for call in action.tool_calls if call.id == message.tool_call_id), None)
    return grade_of(call) if message.role == "tool" and call is not None else Grade.EXECUTED
