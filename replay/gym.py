"""Environments with `reset` and `step` (gymnasium's signatures) as worlds.

The seed is pinned by `reset(seed=...)`, so that executing a prefix again leads to its state, luck included. Nothing here
imports gymnasium: any object of that shape will do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from counterplay.core.canonical import canonical, content_key, dumps
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolSpec
from counterplay.core.protocols import fingerprint_of
from counterplay.replay.environment_fingerprint import source_digest
from counterplay.replay.world import ToolError

ActionOf: TypeAlias = Callable[[str, Mapping[str, Any]], Any]
_OWN = Effect("write")  # an instance changes nothing but itself


class GymWorld:
    """One episode. Give `LiveEnvironment` a factory of these: `lambda: GymWorld(lambda: gymnasium.make("Taxi-v4"), seed=7)`.

    `tools` says how the agent acts: a mapping from tool names to actions (`{"left": 0, "down": 1}`: tools without arguments);
    ToolSpecs, whose calls `action_of(name, arguments)` turns into actions; or None, which is one tool `act` whose argument
    `action` is described by the action space. `render` writes an observation for the agent (None: as JSON). `prompt` is a task,
    to which the first observation is added, or a function from the first observation to messages. `options` go to `reset`.

    `reward` of the episode is the `sum` or the `last` of the rewards, mapped from `reward_range` to [0, 1]; UserError where it
    falls outside. `copyable` says that `copy.deepcopy` of the environment gives an independent one, random state included; else
    a state is reached by executing its prefix again.

    Its identity in searches is the specification of a registered environment, and the `fingerprint`, else the class, of any other.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        tools: Mapping[str, Any] | Sequence[ToolSpec] | None = None,
        action_of: ActionOf | None = None,
        render: Callable[[Any], str] | None = None,
        prompt: str | Callable[[str], Sequence[Message]] = "Act until the episode ends.",
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        reward: Literal["sum", "last"] = "sum",
        reward_range: tuple[float, float] = (0.0, 1.0),
        copyable: bool = False,
    ) -> None:
        low, high = reward_range
        if not high > low:
            raise UserError(f"got reward_range {reward_range}", "a lower and a higher bound of an episode's reward")
        self.terminated = self.truncated = False
        self.rewards: list[float] = []
        self._render, self._how, self._range = render or as_json, reward, (low, high)
        self._env = make()
        try:
            self.tools, self._action_of = _acting(self._env, tools, action_of)
            observation, _ = self._env.reset(seed=seed, options=None if options is None else dict(options))
            first = self._render(observation)
            self.prompt: Sequence[Message] = (
                [Message.user(f"{prompt}\n\nFirst observation: {first}")] if isinstance(prompt, str) else list(prompt(first))
            )
            shown = content_key(*_told(self.tools, tools, action_of, render))
            self.fingerprint = f"gym:{_name(self._env)}:{seed}:{dumps(plain(options or {}))}:{reward}:{low:g}..{high:g}:{shown}"
        except BaseException:
            self.close()
            raise
        if copyable:
            self.copy = self._copied

    @property
    def done(self) -> bool:
        """Whether the episode ended by itself; `truncated` is a limit."""
        return self.terminated

    @property
    def reward(self) -> float | None:
        """The episode's reward in [0, 1]; None before the first step. Raises UserError where `reward_range` does not hold it."""
        if not self.rewards:
            return None
        raw = sum(self.rewards) if self._how == "sum" else self.rewards[-1]
        low, high = self._range
        if not low <= raw <= high:
            raise UserError(f"got an episode's reward of {raw:g}", f"one in reward_range {low:g}..{high:g}", "Give a wider reward_range.")
        return (raw - low) / (high - low)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Take one action and describe what is seen then."""
        if self.terminated or self.truncated:
            raise ToolError("Error: the episode is over.")
        action = self._action_of(name, arguments)
        space = getattr(self._env, "action_space", None)
        if space is not None and (isinstance(action, bool) or not space.contains(action)):
            raise ToolError(f"Error: {dumps(plain(action))} is not an action; wanted one in {space}.")
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self.rewards.append(float(reward))
        self.terminated, self.truncated = bool(terminated), bool(truncated)
        return self._render(observation)

    def close(self) -> None:
        close = getattr(self._env, "close", None)
        if close is not None:
            close()

    def _copied(self) -> GymWorld:
        twin = copy.copy(self)
        twin._env, twin.rewards = copy.deepcopy(self._env), list(self.rewards)  # noqa: SLF001  another instance of this class
        twin.copy = twin._copied  # noqa: SLF001
        return twin


def _acting(
    env: Any, tools: Mapping[str, Any] | Sequence[ToolSpec] | None, action_of: ActionOf | None
) -> tuple[Sequence[ToolSpec], ActionOf]:
    """The tools, and how their calls become actions."""
    if isinstance(tools, Mapping):
        actions = dict(tools)
        specs = [ToolSpec.function(name, f"Action {name}.", {"type": "object", "properties": {}}, _OWN) for name in actions]
        return specs, action_of or (lambda name, _: actions[name])
    if tools is not None:
        if action_of is None:
            raise UserError("got tools without action_of", "a function from a call's name and arguments to an action")
        return list(tools), action_of
    space = env.action_space
    schema = {"type": "object", "properties": {"action": schema_of(space)}, "required": ["action"]}
    return [ToolSpec.function("act", f"Take an action in {space}.", schema, _OWN)], action_of or (
        lambda _, arguments: _converted(space, arguments.get("action"))
    )


def schema_of(space: Any) -> dict[str, Any]:
    """The JSON schema of a gymnasium space; anything, where it is of another kind."""
    kind = type(space).__name__
    if kind == "Discrete":
        low = int(space.start)
        return {"type": "integer", "minimum": low, "maximum": low + int(space.n) - 1}
    if kind in ("Box", "MultiDiscrete", "MultiBinary"):
        schema: dict[str, Any] = {"type": "number" if kind == "Box" and space.dtype.kind == "f" else "integer"}
        for length in reversed(space.shape):
            schema = {"type": "array", "items": schema, "minItems": int(length), "maxItems": int(length)}
        return schema
    if kind == "Text":
        return {"type": "string", "maxLength": int(space.max_length)}
    if kind == "Dict":
        return {"type": "object", "properties": {key: schema_of(part) for key, part in space.spaces.items()}, "required": [*space.spaces]}
    if kind == "Tuple":
        return {"type": "array", "prefixItems": [schema_of(part) for part in space.spaces], "items": False}
    return {}


def _converted(space: Any, value: Any) -> Any:
    """A JSON value as an element of the space. Raises ToolError, for the agent to read, where it can't be one."""
    kind = type(space).__name__
    try:
        if kind == "Dict":
            return {key: _converted(part, value[key]) for key, part in space.spaces.items()}
        if kind == "Tuple":
            return tuple(_converted(part, item) for part, item in zip(space.spaces, value, strict=True))
        return value if kind in ("Discrete", "Text") else space.from_jsonable([value])[0]
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ToolError(f"Error: {dumps(plain(value))} is not an action; wanted one in {space}.") from error


def as_json(observation: Any) -> str:
    """An observation as JSON text."""
    return dumps(plain(observation))


def plain(value: Any) -> Any:
    """Arrays, array scalars, tuples and mappings as plain JSON values; what is none of them as its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _told(
    specs: Sequence[ToolSpec], tools: Mapping[str, Any] | Sequence[ToolSpec] | None, action_of: ActionOf | None, render: object
) -> list[str]:
    """How calls become actions, and observations texts: a function by its source."""
    actions = plain(tools) if isinstance(tools, Mapping) else {}
    effects = [f"{spec.wire} {spec.effect}" for spec in specs]
    return [canonical(actions), source_digest(action_of) or "", source_digest(render) or "", *effects]


def _name(env: Any) -> str:
    """What the environment says it is: id and settings of its specification, with the library's version, else its own fingerprint."""
    spec = getattr(env, "spec", None)
    if spec is None:
        return fingerprint_of(getattr(env, "unwrapped", env))
    from importlib.metadata import PackageNotFoundError, version

    home = type(getattr(env, "unwrapped", env)).__module__.partition(".")[0]
    try:
        release = version(home)
    except PackageNotFoundError:
        release = ""
    limit = getattr(spec, "max_episode_steps", None)
    wrappers = "".join(f"+{wrapper.name}" for wrapper in getattr(spec, "additional_wrappers", ()))
    return f"{spec.id}{dumps(plain(spec.kwargs))}{'' if limit is None else f'<{limit}'}{wrappers}@{home}{release}"
