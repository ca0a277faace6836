"""Verifiers as TRL reward functions, and TRL reward functions as verifiers. Neither needs TRL to be installed.

TRL's online trainers (GRPO, RLOO) call a reward function once a batch with keyword arguments: `prompts`, `completions` (texts, or
message lists where the data is conversational), `completion_ids`, every other column of the dataset as a list, `trainer_state`,
`log_extra`, `log_metric` and, with an environment factory, `environments`. It returns a reward each, or None where it does not apply.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from counterplay.core.canonical import loads
from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask_all, verifier_identity
from counterplay.core.nouns import Message, Score, ToolSpec, Trajectory, steps_of
from counterplay.core.protocols import Opinion, Verifier
from counterplay.verifiers.functions import behaviour

Rewards: TypeAlias = Sequence[float | None]
RewardFunction: TypeAlias = Callable[..., Rewards | Awaitable[Rewards]]
Said: TypeAlias = "str | Sequence[Mapping[str, Any]]"


class Reward:
    """See `as_trl_reward`. `errors` counts the completions that could not be verified, over the life of the function."""

    def __init__(self, verifier: Verifier, tools: Sequence[ToolSpec], ends: frozenset[int]) -> None:
        self.verifier, self.tools, self.ends = verifier, tuple(tools), ends
        self.__name__ = verifier_identity(verifier)[0]
        self.errors = 0

    async def __call__(
        self,
        prompts: Sequence[Said],
        completions: Sequence[Said],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        tools: Sequence[Any] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: object,
    ) -> list[float | None]:
        trajectories = [
            trajectory_of(
                prompt,
                completion,
                self.tools if tools is None or not tools[i] else tool_specs(tools[i]),
                cut=bool(self.ends) and completion_ids is not None and not self.ends.intersection(completion_ids[i][-1:]),
            )
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        answers = await ask_all(self.verifier, trajectories)
        failed = [answer for answer in answers if isinstance(answer, VerifierError)]
        self.errors += len(failed)
        if failed and len(failed) == len(answers):
            raise failed[0]
        if log_extra is not None:
            log_extra(f"{self.__name__} reason", [_reason(answer) for answer in answers])
        if log_metric is not None:
            log_metric(f"{self.__name__} errors", float(len(failed)))
        return [answer.value if isinstance(answer, Score) else None for answer in answers]


def as_trl_reward(verifier: Verifier, *, tools: Sequence[ToolSpec] = (), end_tokens: int | Sequence[int] = ()) -> Reward:
    """`verifier` as a reward function for TRL's GRPOTrainer and RLOOTrainer: asked once about all completions of a batch.

    Prompt and completion become one trajectory, whose assistant messages in the prompt are steps that were not sampled; its last step
    is terminated, or truncated where `completion_ids` end in none of `end_tokens` (none given: always terminated). Tools are those of
    the dataset's `tools` column, else `tools`. No opinion is None, which TRL leaves out of the sum. A completion that can't be verified
    is None too, counted in `errors` and in TRL's own metrics; where the whole batch fails its error is raised.
    """
    return Reward(verifier, tools, frozenset([end_tokens] if isinstance(end_tokens, int) else end_tokens))


def trajectory_of(prompt: Said, completion: Said, tools: Sequence[ToolSpec] = (), *, cut: bool = False) -> Trajectory:
    """One row of TRL's as a finished trajectory. `cut` says that the completion hit its limit."""
    before, after = _messages(prompt, "user"), _messages(completion, "assistant")
    given = sum(message.role == "assistant" for message in before)
    opening, steps = steps_of([*before, *after])
    known = given - sum(message.role == "assistant" for message in opening)
    steps = tuple(replace(step, sampled=False) if i < known else step for i, step in enumerate(steps))
    if steps:
        steps = (*steps[:-1], replace(steps[-1], terminated=not cut, truncated=cut))
    return Trajectory(tuple(tools), opening, steps)


def tool_specs(column: Any) -> tuple[ToolSpec, ...]:
    """The tools of one row, a list of definitions or of JSON texts, or one text of a list; those that are Python functions are left out."""
    found = loads(column) if isinstance(column, str) else column
    definitions = [loads(tool) if isinstance(tool, str) else tool for tool in found]
    return tuple(ToolSpec.from_openai(tool) for tool in definitions if isinstance(tool, Mapping))


class FromReward:
    """See `from_trl_reward`."""

    def __init__(
        self,
        function: RewardFunction,
        scale: tuple[float, float],
        columns: Callable[[Trajectory], Mapping[str, Any]] | None,
        name: str,
        version: str,
    ) -> None:
        self.function, self.columns = function, columns
        self.low, self.high = scale
        self.name, self.version = name, version
        told = "" if columns is None else f", {behaviour(columns)}"
        self.fingerprint = f"{name}@{version}({self.low:g}, {self.high:g}{told})"

    async def __call__(self, trajectory: Trajectory, /) -> Opinion:
        (opinion,) = await self.batch([trajectory])
        if isinstance(opinion, Exception):
            raise opinion
        return opinion

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Opinion | Exception]:
        """Opinions in order; an exception for a reward that is outside the scale."""
        asked = [i for i, trajectory in enumerate(trajectories) if trajectory.steps]
        opinions: list[Opinion | Exception] = [None] * len(trajectories)
        if not asked:
            return opinions
        rows = [trajectories[i] for i in asked]
        columns = [{} if self.columns is None else dict(self.columns(row)) for row in rows]
        given = self.function(
            prompts=[[_for_trl(message) for message in row.prompt] for row in rows],
            completions=[[_for_trl(message) for step in row.steps for message in step.messages] for row in rows],
            **{column: [row.get(column) for row in columns] for column in {name for row in columns for name in row}},
        )
        rewards = list(await given if inspect.isawaitable(given) else given)
        if len(rewards) != len(rows):
            raise UserError(f"{self.name} gave {len(rewards)} rewards for {len(rows)} completions", "one each")
        for i, reward in zip(asked, rewards, strict=True):
            opinions[i] = self._opinion(reward)
        return opinions

    def _opinion(self, reward: float | None) -> Opinion | Exception:
        if reward is None or math.isnan(reward):
            return None
        if not self.low <= reward <= self.high:
            return ValueError(f"got reward {reward:g}, wanted one from {self.low:g} to {self.high:g}; give its scale as low and high")
        return (reward - self.low) / (self.high - self.low)


def from_trl_reward(
    function: RewardFunction,
    *,
    low: float = 0.0,
    high: float = 1.0,
    columns: Callable[[Trajectory], Mapping[str, Any]] | None = None,
    name: str = "",
    version: str = "",
) -> FromReward:
    """A TRL reward function, sync or async, as a verifier with a batch: its reward on the scale `low` to `high` as a value in [0, 1].

    It is given `prompts` and `completions` as message lists, tool arguments as objects, as the trainers give them, and the dataset
    columns that `columns` makes of a trajectory, such as a solution. None and NaN are no opinion, as is a trajectory without steps; a
    reward outside the scale is an error. What only a trainer has is not passed; a function that needs `completion_ids` gets them as such
    a column. Raises UserError for a scale without extent.
    """
    if not -math.inf < low < high < math.inf:
        raise UserError(f"got a scale from {low} to {high}", "low below high")
    own = str(getattr(function, "__name__", type(function).__name__))
    return FromReward(function, (low, high), columns, name or own, version or behaviour(function))


def _messages(said: Said, role: str) -> list[Message]:
    if isinstance(said, str):
        return [Message.from_openai({"role": role, "content": said})]
    return [Message.from_openai({"role": role, **message}) for message in said]


def _for_trl(message: Message) -> dict[str, Any]:
    """A message as TRL's chat templates want it: the arguments of calls are objects where they are JSON objects."""
    fields = message.to_openai()
    for raw, call in zip(fields.get("tool_calls") or (), message.tool_calls, strict=True):
        (raw.get("function") or raw)["arguments"] = call.arguments if call.args is None else call.args
    return fields


def _reason(answer: Score | VerifierError | None) -> str:
    if isinstance(answer, VerifierError):
        return f"error: {answer.got}"
    return "" if answer is None else answer.reason
