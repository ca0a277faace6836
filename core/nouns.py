"""The frozen nouns of counterplay.

A `Message` keeps the exact JSON it was logged as; a `Step` is one model call and what followed; a `Trajectory` is tools,
prompt and steps, and any prefix of one is a `State`. Content carries no provenance: who produced it, when, at what cost
and how truly it was re-enacted sit beside it, never inside its key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias, cast

from counterplay.core.canonical import canonical, chain_key, content_key, dumps, loads
from counterplay.core.effects import EXTERNAL, Effect

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Grade(IntEnum):
    """How truly an observation on a branch was obtained. Larger is better; a trajectory's grade is its worst."""

    STALE = 0  # recorded, but a differing write on its resource came between: never leaves the house
    SIMULATED = 1  # a model or a retrieval imagined it
    EXECUTED = 2  # a real environment ran it
    REUSED = 3  # recorded elsewhere in the trace, and no write on its resource differs
    EXACT = 4  # recorded after an identical prefix

    @classmethod
    def parse(cls, name: str) -> Grade:
        try:
            return cls[name.upper()]
        except KeyError:
            wanted = ", ".join(grade.name.lower() for grade in reversed(cls))
            msg = f"got grade {name!r}, wanted one of: {wanted}"
            raise ValueError(msg) from None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call inside an action. `arguments` is the text the model wrote, JSON or not."""

    id: str
    name: str
    arguments: str

    @property
    def args(self) -> dict[str, Json] | None:
        """The parsed arguments; None where the text is not a JSON object."""
        try:
            parsed = loads(self.arguments) if self.arguments else {}
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, dict) else None

    @property
    def signature(self) -> str:
        """Name and canonical arguments: equal for calls that differ only in id, key order or white space."""
        args = self.args
        return f"{self.name}({self.arguments if args is None else canonical(args)})"


@dataclass(frozen=True)
class Message:
    """One chat message in OpenAI form.

    `wire` is the message's JSON object as text, with the key order and the unknown provider fields of its source, so that
    a request can be assembled from stored bytes. Everything else is a view on it. Equality is equality of `wire`.
    """

    wire: str

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Pickled as its text alone, whatever views on it are cached."""
        return type(self), (self.wire,)

    @classmethod
    def from_openai(cls, fields: Mapping[str, Any]) -> Self:
        """Take a message dict as logged. Raises ValueError where it has no `role`."""
        if not isinstance(fields.get("role"), str):
            msg = f"got a message without a role (fields: {', '.join(map(str, fields)) or 'none'}), wanted an OpenAI chat message"
            raise ValueError(msg)
        return cls(dumps(dict(fields)))

    @classmethod
    def system(cls, content: str) -> Self:
        return cls.from_openai({"role": "system", "content": content})

    @classmethod
    def user(cls, content: str) -> Self:
        return cls.from_openai({"role": "user", "content": content})

    @classmethod
    def assistant(cls, content: str | None = None, tool_calls: Iterable[ToolCall] = (), reasoning: str | None = None) -> Self:
        fields: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning is not None:
            fields["reasoning_content"] = reasoning
        calls = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in tool_calls]
        if calls:
            fields["tool_calls"] = calls
        return cls.from_openai(fields)

    @classmethod
    def tool(cls, content: str, tool_call_id: str, name: str | None = None) -> Self:
        fields = {"role": "tool", "tool_call_id": tool_call_id, "content": content}
        return cls.from_openai(fields if name is None else {**fields, "name": name})

    @cached_property
    def fields(self) -> Mapping[str, Any]:
        """The parsed JSON object. Treat as read-only."""
        return MappingProxyType(loads(self.wire))

    def to_openai(self) -> dict[str, Any]:
        """A fresh dict, safe to change."""
        return cast("dict[str, Any]", loads(self.wire))

    @property
    def role(self) -> str:
        return cast("str", self.fields["role"])

    @property
    def content(self) -> str | list[dict[str, Any]] | None:
        """Text, a list of content parts, or None where the message has none."""
        return cast("str | list[dict[str, Any]] | None", self.fields.get("content"))

    @cached_property
    def content_text(self) -> str:
        """The text of the content; parts that are not text contribute nothing; empty where there is none."""
        content = self.content
        if isinstance(content, list):
            return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        return content or ""

    @property
    def reasoning(self) -> str | None:
        """Reasoning text under either of the two field names providers use; None where there is none."""
        return self.fields.get("reasoning_content") or self.fields.get("reasoning")

    @property
    def tool_call_id(self) -> str | None:
        return self.fields.get("tool_call_id")

    @property
    def name(self) -> str | None:
        return self.fields.get("name")

    @cached_property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in order. Arguments given as an object are rendered as canonical JSON text."""
        calls = []
        for raw in self.fields.get("tool_calls") or ():
            function = raw.get("function") or raw
            arguments = function.get("arguments", "")
            text = arguments if isinstance(arguments, str) else canonical(arguments)
            calls.append(ToolCall(id=str(raw.get("id") or ""), name=str(function.get("name") or ""), arguments=text))
        return tuple(calls)

    @cached_property
    def signature(self) -> str:
        """What this action does, whatever its ids, key order and white space: the tool calls where there are any, else the text."""
        if self.tool_calls:
            return "; ".join(call.signature for call in self.tool_calls)
        return f"say({' '.join(self.content_text.split())})"


@dataclass(frozen=True)
class ToolSpec:
    """One tool: its OpenAI definition exactly as sent (`wire`) and what calling it does to the world (`effect`)."""

    wire: str
    effect: Effect = EXTERNAL

    def __reduce__(self) -> tuple[type[Self], tuple[str, Effect]]:
        return type(self), (self.wire, self.effect)

    @classmethod
    def from_openai(cls, fields: Mapping[str, Any], effect: Effect = EXTERNAL) -> Self:
        return cls(dumps(dict(fields)), effect)

    @classmethod
    def function(cls, name: str, description: str, parameters: Mapping[str, Any], effect: Effect = EXTERNAL) -> Self:
        """A function tool with JSON schema `parameters`."""
        fields = {"type": "function", "function": {"name": name, "description": description, "parameters": dict(parameters)}}
        return cls.from_openai(fields, effect)

    @cached_property
    def fields(self) -> Mapping[str, Any]:
        return MappingProxyType(loads(self.wire))

    def to_openai(self) -> dict[str, Any]:
        return cast("dict[str, Any]", loads(self.wire))

    @property
    def name(self) -> str:
        return str(self._definition.get("name") or "")

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of the arguments; empty where the source gave none."""
        found = self._definition.get("parameters")
        return found if isinstance(found, Mapping) else _NOTHING

    @property
    def _definition(self) -> Mapping[str, Any]:
        found = self.fields.get("function")
        return found if isinstance(found, Mapping) else self.fields


@dataclass(frozen=True)
class Step:
    """One model call and what followed it, up to the next.

    `sampled` says that a model wrote the action (it may be trained on); False means it was put in the agent's mouth.
    `terminated` is a true end, `truncated` a limit. `error` names a failure of the machinery, not a tool's own error text.
    `reward` is what the environment paid for this step; None where it paid nothing. `grades` aligns with `observations`.
    """

    action: Message
    observations: tuple[Message, ...] = ()
    sampled: bool = True
    terminated: bool = False
    truncated: bool = False
    error: str | None = None
    reward: float | None = None
    grades: tuple[Grade, ...] = ()

    @property
    def grade(self) -> Grade:
        """The worst grade of the observations; exact where there are none."""
        return min(self.grades, default=Grade.EXACT)

    @property
    def finished(self) -> bool:
        return self.terminated or self.truncated or self.error is not None

    @property
    def messages(self) -> tuple[Message, ...]:
        return (self.action, *self.observations)


@dataclass(frozen=True)
class Trajectory:
    """Tools, prompt and steps: one append-only context. Any prefix of a trajectory is a state."""

    tools: tuple[ToolSpec, ...] = ()
    prompt: tuple[Message, ...] = ()
    steps: tuple[Step, ...] = ()

    @cached_property
    def key(self) -> str:
        """Content key of the last message, chained over every message from the tool set on: 32 hex digits.

        Two states have one key exactly if tools and all messages are equal; where steps begin, rewards, grades and flags do not enter.
        """
        return self.prefix_keys[-1]

    @cached_property
    def prefix_keys(self) -> tuple[str, ...]:
        """The keys of all prefixes, from the bare prompt to the whole. Prefixes and extensions share what is known of them."""
        key = chain_key(self.root_key, *(message.wire for message in self.prompt))
        keys = [key]
        for step in self.steps:
            key = chain_key(key, *(message.wire for message in step.messages))
            keys.append(key)
        return tuple(keys)

    @cached_property
    def root_key(self) -> str:
        return content_key("tools", *(tool.wire for tool in self.tools))

    @property
    def messages(self) -> tuple[Message, ...]:
        """Prompt, actions and observations in order: what the next model call is sent."""
        return (*self.prompt, *(message for step in self.steps for message in step.messages))

    @property
    def finished(self) -> bool:
        return bool(self.steps) and self.steps[-1].finished

    @property
    def grade(self) -> Grade:
        return min((step.grade for step in self.steps), default=Grade.EXACT)

    def __len__(self) -> int:
        return len(self.steps)

    def prefix(self, length: int) -> State:
        """The state before step `length` (0 is the bare prompt). Raises IndexError past the end."""
        if not 0 <= length <= len(self.steps):
            msg = f"got prefix length {length}, wanted 0..{len(self.steps)}"
            raise IndexError(msg)
        if length == len(self.steps):
            return self
        shorter = type(self)(self.tools, self.prompt, self.steps[:length])
        if "prefix_keys" in self.__dict__:
            keys = self.prefix_keys[: length + 1]
            shorter.__dict__.update(root_key=self.root_key, prefix_keys=keys, key=keys[-1])
        return shorter

    def extend(self, step: Step) -> State:
        """This trajectory with one more step. Raises ValueError where it has already ended."""
        steps = self.steps
        if steps and steps[-1].finished:
            msg = "got a step after the end, wanted an unfinished state (its last step is terminated, truncated or failed)"
            raise ValueError(msg)
        longer = object.__new__(Trajectory)  # as its __init__ would make it; a search extends once a node
        longer.__dict__.update(tools=self.tools, prompt=self.prompt, steps=(*steps, step), root_key=self.root_key)
        keys = self.__dict__.get("prefix_keys")
        if keys is not None:
            key = chain_key(keys[-1], step.action.wire, *[message.wire for message in step.observations])
            longer.__dict__.update(prefix_keys=(*keys, key), key=key)
        return longer

    def tool(self, name: str) -> ToolSpec | None:
        return next((tool for tool in self.tools if tool.name == name), None)


State: TypeAlias = Trajectory


@dataclass(frozen=True, slots=True)
class Usage:
    """What one or several model calls used. `cost_usd` is None where no price is known, which is not free."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs) if costs else None,
        )

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Score:
    """A verifier's opinion: `value` in [0, 1] and why. No opinion is None in place of a Score, never zero.

    Raises ValueError where `value` is not a number in [0, 1].
    """

    value: float
    reason: str = ""
    verifier: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            msg = f"got score {self.value!r}, wanted a number in [0, 1]"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One candidate action. `prior` is its probability among its siblings in [0, 1], None where the policy can't tell.

    `logprob` is the log-probability of the sampled tokens summed, None where unknown. `token_ids` are those tokens, the end token among
    them, in the vocabulary of `model`; None where the policy doesn't tell.
    """

    action: Message
    prior: float | None = None
    logprob: float | None = None
    usage: Usage = Usage()
    model: str = ""
    finish_reason: str = ""
    token_ids: tuple[int, ...] | None = None


OutcomeSource: TypeAlias = Literal["environment", "harness", "human", "judge", "feedback", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """How a logged run ended. `success` is None where the source does not say; `source` says whose word it is."""

    reward: float | None = None
    success: bool | None = None
    source: OutcomeSource = "unknown"
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool | None:
        """`success` where the source says it, else whether the reward is 1 (all there is to get) or more; None where neither is known."""
        return self.reward >= 1.0 if self.success is None and self.reward is not None else self.success


Coverage: TypeAlias = Literal["full", "stitched", "partial", "none"]


@dataclass(frozen=True)
class Completeness:
    """What the source could give of one call, or of a whole trace (where the worst call counts).

    `inputs`: the prompt is as sent (full), put together from the log itself (stitched), known in part, or not at all; one that is
    not full or stitched keeps a step out of training data. `outputs`: the same of the answers. `tools` and `system_prompt`: whether
    they are known, or known not to exist. `open_spans` counts spans that were never closed: the run crashed or still goes on.
    """

    inputs: Coverage = "full"
    tools: bool = True
    system_prompt: bool = True
    dropped_attributes: int = 0
    truncated: bool = False
    redacted: bool = False
    outputs: Coverage = "full"
    open_spans: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """The provenance of one model call: which step it produced, and what producing it took. None means not logged.

    `model` is the one that answered; where another was asked for, it is `params["model"]`. `streamed` says whether the answer
    came in pieces, the first of them `first_token_s` seconds after the request. `token_ids` are the tokens that were sampled, the end
    token among them.
    """

    step: int
    trajectory: int = 0
    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()
    latency_s: float | None = None
    started_at_us: int | None = None
    finish_reason: str | None = None
    response_id: str | None = None
    provider: str | None = None
    streamed: bool | None = None
    first_token_s: float | None = None
    completeness: Completeness = Completeness()
    token_ids: tuple[int, ...] | None = None

    @property
    def inputs(self) -> Coverage:
        return self.completeness.inputs


@dataclass(frozen=True)
class LoggedScore:
    """What somebody said about a logged trace or one of its steps.

    `value` is as logged: a number on any scale, a boolean, a category or a text. `scaled` is the same in [0, 1]; None where the
    scale is not known. `source` says whose word it is. `step` is None where the whole trajectory is meant.
    """

    name: str
    value: bool | float | str | None
    scaled: float | None = None
    source: OutcomeSource = "unknown"
    trajectory: int = 0
    step: int | None = None
    comment: str = ""

    def __post_init__(self) -> None:
        if self.scaled is not None and not 0.0 <= self.scaled <= 1.0:
            msg = f"got scaled score {self.scaled!r}, wanted a number in [0, 1] or None"
            raise ValueError(msg)

    @classmethod
    def of(
        cls,
        name: str,
        value: bool | float | str | None,
        *,
        source: OutcomeSource = "unknown",
        low: float = 0.0,
        high: float = 1.0,
        trajectory: int = 0,
        step: int | None = None,
        comment: str = "",
    ) -> Self:
        """A score whose `scaled` follows from a boolean, or from a number between `low` and `high`."""
        scaled = None
        if isinstance(value, bool | int | float) and high > low and low <= value <= high:
            scaled = (value - low) / (high - low)
        return cls(name, value, scaled, source, trajectory, step, comment)

    @property
    def score(self) -> Score | None:
        """As a `Score` whose verifier is the logged name; None where the scale is not known."""
        return None if self.scaled is None else Score(self.scaled, self.comment, self.name)


@dataclass(frozen=True)
class SubTrajectory:
    """A context of its own inside a trace. None means unknown or not applicable.

    `parent_step` is the main step that started it; `continues` the index (0 is the main trajectory, 1 the first sub-trajectory)
    of the context it took over from after a compaction.
    """

    trajectory: Trajectory
    agent: str = ""
    parent_step: int | None = None
    continues: int | None = None


@dataclass(frozen=True)
class Source:
    """Where a trace came from. `line` is 1-based and None for formats without lines."""

    format: str
    uri: str = ""
    line: int | None = None
    dialect: str = ""


@dataclass(frozen=True)
class Trace:
    """A logged run: one main trajectory, those of its sub-agents, and everything known about how it came to be.

    `id` is unique within a store and derived from source ids or content, so that ingesting twice changes nothing.
    """

    id: str
    trajectory: Trajectory
    source: Source
    sub_trajectories: tuple[SubTrajectory, ...] = ()
    task: str | None = None
    session: str | None = None
    agent: str | None = None
    outcome: Outcome = field(default_factory=Outcome)
    calls: tuple[Call, ...] = ()
    scores: tuple[LoggedScore, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    completeness: Completeness = field(default_factory=Completeness)
    started_at_us: int | None = None
    ended_at_us: int | None = None


def steps_of(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Step, ...]]:
    """Split a flat message list into prompt and steps: every assistant message after the first user message opens a step.

    Assistant messages before the first user message belong to the prompt where the list has a user message at all.
    """
    first_user = next((i for i, m in enumerate(messages) if m.role == "user"), -1)
    start = next((i for i, m in enumerate(messages) if i > first_user and m.role == "assistant"), len(messages))
    return tuple(messages[:start]), tuple(_steps(messages[start:]))


def _steps(messages: Sequence[Message]) -> Iterator[Step]:
    opened: list[Message] = []
    for message in messages:
        if message.role == "assistant" and opened:
            yield Step(opened[0], tuple(opened[1:]), grades=(Grade.EXACT,) * (len(opened) - 1))
            opened = []
        opened.append(message)
    if opened:
        yield Step(opened[0], tuple(opened[1:]), grades=(Grade.EXACT,) * (len(opened) - 1))


def parse_json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in `text`; None where it is something else or not JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
