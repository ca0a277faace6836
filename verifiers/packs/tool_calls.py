"""Rules every tool-using agent should keep: known tools, arguments that fit their schema, no tool errors, no idle repetition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from counterplay.core.nouns import Score, Step, ToolCall, Trajectory

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_ERROR = re.compile(r"\s*(?:\{\s*\"error\"|error\b|exception\b|traceback \(most recent)", re.IGNORECASE)


class ToolCallRules:
    """A process verifier: the share of steps without a violation, in [0, 1]; the reason names the first violation.

    Steps without tool calls are sound. No opinion on a trajectory without steps. Where the log holds no tool schemas,
    names and arguments can't be checked and only errors and repetitions count.
    """

    name = "tool_calls"
    version = "1"

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        found = dict(self.violations(trajectory))
        first = next(iter(found.items()), None)
        reason = "every step is sound" if first is None else f"step {first[0]}: {first[1]}"
        return Score(1.0 - len(found) / len(trajectory.steps), reason, self.name, self.version)

    def violations(self, trajectory: Trajectory) -> Iterator[tuple[int, str]]:
        """The violating steps in order, each with its first violation."""
        previous: Step | None = None
        for index, step in enumerate(trajectory.steps):
            problem = _first_problem(trajectory, step, previous)
            if problem:
                yield index, problem
            previous = step


def _first_problem(trajectory: Trajectory, step: Step, previous: Step | None) -> str | None:
    for call in step.action.tool_calls:
        problem = schema_problem(trajectory, call)
        if problem:
            return problem
    for observation in step.observations:
        if observation.role == "tool" and _ERROR.match(observation.content_text):
            return f"a tool answered with an error: {observation.content_text[:120]}"
    if (
        previous is not None
        and step.action.tool_calls
        and step.action.signature == previous.action.signature
        and _answers(step) == _answers(previous)
    ):
        return f"repeated {step.action.signature[:120]} and learnt nothing new"
    return None


def _answers(step: Step) -> list[str]:
    return [observation.content_text for observation in step.observations]


def schema_problem(trajectory: Trajectory, call: ToolCall) -> str | None:
    """What is wrong with a call by the trajectory's tool schemas; None where nothing is, or where there are no schemas."""
    if call.args is None:
        return f"the arguments of {call.name} are not a JSON object: {call.arguments[:120]}"
    if not trajectory.tools:
        return None
    tool = trajectory.tool(call.name)
    if tool is None:
        return f"unknown tool {call.name!r}"
    error = next(iter(_validator(tool.wire).iter_errors(call.args)), None)
    if error is None:
        return None
    where = "/".join(map(str, error.absolute_path))
    return f"{call.name}: {where + ': ' if where else ''}{error.message}"


@lru_cache(maxsize=1024)
def _validator(tool_wire: str) -> Validator:
    from jsonschema.validators import validator_for

    from counterplay.core.nouns import ToolSpec

    schema: Any = dict(ToolSpec(tool_wire).parameters)
    validator: Validator = validator_for(schema)(schema)
    return validator
