"""Replay environments for TRL's `GRPOTrainer(environment_factory=...)`: a user's worlds, begun where each prompt stands.

A row of `export grpo` names its task and holds its exact state. The world is made for the task, what was played before is executed again
and compared with the recording, and from there on the model's calls act on the world. Snapshots are kept, so that the other
generations of a prompt begin at once.
"""

from __future__ import annotations

import keyword
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import Parameter, Signature
from types import GenericAlias
from typing import Any, Literal

from counterplay.core.errors import UserError
from counterplay.core.journal import ask_all
from counterplay.core.nouns import Message, Score, State, Step, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.core.protocols import Verifier
from counterplay.parts import WorldOf, make_world, subject, world_factory
from counterplay.replay.acting import drive
from counterplay.replay.agents.replaying import waited_for
from counterplay.replay.live import Comparable, LiveEnvironment

_TYPES: Mapping[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
_PREFIX = "tool_"


class ReplayEnvironments:
    """A factory of environments, one for each generation in flight, as `environment_factory` wants it.

    `world` makes a world for a task (or for a whole trace, where it says `takes_trace`; then `traces` holds those that the rows name),
    or is `module:attr`; its methods are plain, not asynchronous. `rows` are those of the dataset, whose tools, the same in all, become
    the methods. The reward is the opinion of `verifier`, None takes what the world pays. `allow_external`, `on_divergence` and
    `comparable` are those of `LiveEnvironment`; worlds of `cache_tasks` tasks are kept. Raises UserError where rows have different
    tools.
    """

    def __init__(
        self,
        world: WorldOf | str,
        rows: Iterable[Mapping[str, Any]],
        *,
        verifier: Verifier | None = None,
        traces: Iterable[Trace] = (),
        allow_external: Iterable[str] = (),
        on_divergence: Literal["raise", "ignore"] = "raise",
        comparable: Comparable | None = None,
        cache_tasks: int = 64,
    ) -> None:
        self.world: WorldOf = world_factory(world) if isinstance(world, str) else world
        self.verifier, self.cache_tasks = verifier, cache_tasks
        self.tools = tools_of(rows)
        self.traces = {trace.id: trace for trace in traces}
        self._play = partial(LiveEnvironment, allow_external=allow_external, on_divergence=on_divergence, comparable=comparable)
        self._open: OrderedDict[str, LiveEnvironment] = OrderedDict()
        self._class = environment_class(self.tools)

    def __call__(self) -> ReplayEnvironment:
        return self._class(self)

    def at(self, row: Mapping[str, Any]) -> LiveEnvironment:
        """The environment of a row's task, made where none is kept. Raises UserError where the row does not say enough."""
        task = row.get("task")
        if task is None or "state" not in row:
            raise UserError("got a row without its task and state", "one of a dataset written by: counterplay export grpo")
        takes_trace = getattr(self.world, "takes_trace", False)
        name = str(row["traces"][0]) if takes_trace else str(task)
        if name not in self._open:
            made_for = subject(self.world, self._trace(name)) if takes_trace else name
            self._open[name] = self._play(lambda: make_world(self.world, made_for), task=str(task))
        self._open.move_to_end(name)
        while len(self._open) > self.cache_tasks:
            self._open.popitem(last=False)[1].close()
        return self._open[name]

    def score(self, trajectory: Trajectory) -> float | None:
        """What an ended trajectory earned; None where its machinery failed or nobody has an opinion. Raises what the verifier raises."""
        if trajectory.steps and trajectory.steps[-1].error is not None:
            return None
        if self.verifier is None:
            return trajectory.steps[-1].reward if trajectory.steps else None
        opinion = waited_for(partial(ask_all, self.verifier, [trajectory]))[0]
        if isinstance(opinion, Exception):
            raise opinion
        return opinion.value if isinstance(opinion, Score) else None

    def close(self) -> None:
        """Let go of all worlds. The factory stays usable."""
        while self._open:
            self._open.popitem()[1].close()

    def _trace(self, name: str) -> Trace:
        if name not in self.traces:
            raise UserError(f"got no trace {name}, which the world is made from", "it in `traces`")
        return self.traces[name]


class ReplayEnvironment:
    """One generation's world. `environment_class` adds a method for every tool, which is an attribute under its own name too."""

    def __init__(self, factory: ReplayEnvironments) -> None:
        self._factory = factory
        self._state = Trajectory()
        self._live: LiveEnvironment | None = None
        for place, tool in enumerate(factory.tools):
            # What TRL finds on the instance in place of the class's method: the definition as it was sent, not one read off a signature.
            self.__dict__[_attribute(place)] = _Definition(tool, partial(self._call, tool.name))

    def reset(self, **row: Any) -> None:
        """Stand where the prompt of `row` ends. Raises DivergenceError (at the first call) where the prefix now goes another way."""
        self._live = self._factory.at(row)
        self._state = state_of(row, self._factory.tools)

    def get_reward(self) -> float | None:
        """What this generation earned, from its calls alone: what the model said at last is not told to environments.

        Where that matters, give `as_trl_reward(verifier)` in `reward_funcs`. None where the machinery failed.
        """
        if not self._state.finished:
            self._act(Message.assistant(""))
        return self._factory.score(self._state)

    def __getattr__(self, name: str) -> Any:
        """A tool by its own name."""
        for attribute, tool in self.__dict__.items():
            if attribute.startswith(_PREFIX) and tool.__name__ == name:
                return tool
        raise AttributeError(name)

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str | list[dict[str, Any]]:
        from counterplay.core.canonical import dumps

        if self._state.finished:
            return "Error: the episode is over."
        call = ToolCall(f"call_{len(self._state)}", name, dumps(dict(arguments)))
        step = self._act(Message.assistant(None, [call]))
        if step.error is not None:
            raise UserError(f"{name} could not be executed: {step.error}", "a world that answers")
        content = step.observations[0].content
        return content if isinstance(content, list) else content or ""

    def _act(self, action: Message) -> Step:
        if self._live is None:
            raise UserError("got a call before reset", "reset(**row) first")
        step = drive(self._live.step(self._state, action))
        self._state = self._state.extend(step)
        return step


class _Definition(dict[str, Any]):
    """A tool's definition, as a chat template renders it, that can be called. TRL takes dicts for definitions and calls by `__name__`."""

    def __init__(self, tool: ToolSpec, call: Callable[[Mapping[str, Any]], Any]) -> None:
        super().__init__(tool.to_openai())
        self.__name__, self._call = tool.name, call

    def __call__(self, /, **arguments: Any) -> Any:
        return self._call(arguments)


def tools_of(rows: Iterable[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """The tools that all rows have. Raises UserError where rows differ in them: give each tool set an environment of its own."""
    found: dict[tuple[ToolSpec, ...], None] = {}
    for row in rows:
        found.setdefault(tuple(ToolSpec.from_openai(tool) for tool in row.get("tools") or ()))
    if len(found) != 1:
        do = "Pass a dict of factories, one for each tool set, and a column `environment` that names them."
        raise UserError(f"got rows with {len(found)} sets of tools", "rows that share one", do)
    return next(iter(found))


def state_of(row: Mapping[str, Any], tools: Sequence[ToolSpec]) -> State:
    """The state of a row of kind grpo: the world's own prompt, then steps, each opened by an assistant message."""
    messages = [Message(wire) for wire in row["state"]]
    begun = len(messages) - int(row["played"])
    steps: list[list[Message]] = []
    for message in messages[begun:]:
        if message.role == "assistant" or not steps:
            steps.append([])
        steps[-1].append(message)
    return Trajectory(tuple(tools), tuple(messages[:begun]), tuple(Step(first, tuple(rest)) for first, *rest in steps))


def environment_class(tools: Sequence[ToolSpec]) -> type[ReplayEnvironment]:
    """A class with a public, typed and documented method for every tool.

    TRL takes an environment's tools in the order of their attributes' names, and calls them by `__name__`: the methods are attributes
    `tool_000`, `tool_001`, ..., so that a prompt lists the tools in the order it always did.
    """
    return type("ReplayEnvironment", (ReplayEnvironment,), {_attribute(place): _method(tool) for place, tool in enumerate(tools)})


def _attribute(place: int) -> str:
    return f"{_PREFIX}{place:03d}"


def _method(tool: ToolSpec) -> Callable[..., Any]:
    def method(self: ReplayEnvironment, /, **arguments: Any) -> Any:
        return self._call(tool.name, arguments)

    properties: Mapping[str, Any] = tool.parameters.get("properties") or {}
    required = set(tool.parameters.get("required") or ())
    ordered = sorted(properties, key=lambda name: name not in required)
    method.__name__ = method.__qualname__ = tool.name
    method.__doc__ = _docstring(tool, properties)
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in properties):
        hints = {name: _hint(properties[name]) for name in ordered}
        method.__annotations__ = {**hints, "return": str}
        parameters = [_parameter(name, hints[name], required=name in required) for name in ordered]
        signed: Any = method
        signed.__signature__ = Signature([Parameter("self", Parameter.POSITIONAL_ONLY), *parameters], return_annotation=str)
    return method


def _parameter(name: str, hint: Any, *, required: bool) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=hint, default=Parameter.empty if required else None)


def _hint(schema: Any) -> Any:
    """The Python type of a JSON schema, as near as Python's types come."""
    if not isinstance(schema, Mapping):
        return Any
    values = schema.get("enum")
    if values and all(isinstance(value, str | int | bool) for value in values):
        return Literal[tuple(values)]
    kind = schema.get("type")
    if kind == "array" and "items" in schema:
        return GenericAlias(list, (_hint(schema["items"]),))
    return _TYPES.get(kind, Any) if isinstance(kind, str) else Any


def _docstring(tool: ToolSpec, properties: Mapping[str, Any]) -> str:
    """As Google's style has it, which is what transformers reads."""
    definition = tool.fields.get("function") or tool.fields
    lines = [str(definition.get("description") or tool.name), "", *(["Args:"] if properties else [])]
    for name, schema in properties.items():
        said = schema.get("description") if isinstance(schema, Mapping) else None
        lines.append(f"    {name}: {' '.join(str(said or name).split())}")
    return "\n".join(lines).strip()
