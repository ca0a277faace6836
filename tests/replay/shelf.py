"""A small world whose every tool says truly what it touches, in three makes: with snapshots, with copies, with neither."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, Proposal, State, ToolCall, ToolSpec, Trajectory, Usage
from counterplay.core.protocols import Environment, first_draw
from counterplay.replay.world import ToolError


def spec(name: str, effect: str) -> ToolSpec:
    return ToolSpec.function(name, name, {"type": "object", "properties": {}}, Effect.parse(effect))


class Shelf:
    """Items with amounts. `executed` counts every tool that any instance ran; `made` how many instances there were."""

    tools: Sequence[ToolSpec] = (
        spec("get", "read(item:{name})"),
        spec("total", "read(item)"),
        spec("put", "write(item:{name})"),
        spec("double", "write(item)"),
        spec("level", "write(item)"),
        spec("add", "pure"),
        spec("mail", "external"),
        spec("finish", "write(item)"),
        spec("crash", "read(item)"),
    )
    fingerprint = "shelf-1"
    executed: ClassVar[Counter[str]] = Counter()
    made: ClassVar[Counter[str]] = Counter()

    def __init__(self, task: str = "t") -> None:
        self.prompt = (Message.system("You keep a shelf."), Message.user(f"Task {task}"))
        self.items: dict[str, int] = {"a": 1, "b": 2}
        self.done = False
        Shelf.made["shelf"] += 1

    @property
    def reward(self) -> float:
        return 1.0 if self.items.get("a") == 5 else 0.0

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:  # noqa: PLR0911  one a tool
        Shelf.executed[name] += 1
        if name == "get":
            if arguments.get("name") not in self.items:
                raise ToolError(f"no item {arguments.get('name')}")
            return str(self.items[arguments["name"]])
        if name == "total":
            return json.dumps(self.items)
        if name == "put":
            self.items[arguments["name"]] = self.items.get(arguments["name"], 0) + int(arguments.get("n", 1))
            return f"{arguments['name']} is {self.items[arguments['name']]}"
        if name == "double":
            self.items = {key: value * 2 for key, value in self.items.items()}
            return json.dumps(self.items)
        if name == "level":
            self.items = dict.fromkeys(self.items, sum(self.items.values()))
            return "levelled"
        if name == "add":
            return str(arguments["x"] + arguments["y"])
        if name == "finish":
            self.done = True
            return "bye"
        if name == "crash":
            raise RuntimeError("the shelf fell down")
        assert name == "mail"
        return "sent"


class SnapshotShelf(Shelf):
    def snapshot(self) -> object:
        return (tuple(self.items.items()), self.done)

    def restore(self, snapshot: Any) -> None:
        self.items, self.done = dict(snapshot[0]), snapshot[1]


class CopyShelf(Shelf):
    def copy(self) -> CopyShelf:
        twin = type(self)()
        twin.prompt, twin.items, twin.done = self.prompt, dict(self.items), self.done
        return twin


def act(*calls: tuple[str, dict[str, Any]] | str, ids: str = "c") -> Message:
    """act(("get", {"name": "a"}), "total") is one action with two calls."""
    pairs = [(call, {}) if isinstance(call, str) else call for call in calls]
    return Message.assistant(tool_calls=[ToolCall(f"{ids}{i}", name, json.dumps(args)) for i, (name, args) in enumerate(pairs)])


async def walk(environment: Environment, state: State, *actions: Message) -> State:
    for action in actions:
        state = state.extend(await environment.step(state, action))
    return state


def results(state: Trajectory) -> list[str]:
    return [message.content_text for step in state.steps for message in step.observations]


class Fixed:
    """A policy that plays given actions by step number and counts what it was asked."""

    def __init__(self, *actions: Message) -> None:
        self.actions, self.asked = actions, 0
        self.draws: list[int] = []

    async def propose(self, state: State, n: int) -> list[Proposal]:
        self.asked += 1
        self.draws.append(first_draw.get())
        if len(state) >= len(self.actions):
            return []
        return [Proposal(self.actions[len(state)], usage=Usage(10 + len(state), 3), model="fixed", finish_reason="tool_calls")] * n
