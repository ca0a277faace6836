"""The conformance check of environments passes good ones of every kind, and names property, step, what came and what was wanted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, State, Step, ToolSpec
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.replay.testing import check_environment
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf, act, walk
from tests.replay.shelf_async import AsyncCopyShelf, AsyncShelf, AsyncSnapshotShelf, OneWayShelf

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("put", {"name": "a", "n": 3}),
    ("total", {}),
    ("double", {}),
    ("get", {"name": "zz"}),
    ("mail", {}),
    ("put", {"name": "b", "n": 1}),
    ("total", {}),
]


@pytest.mark.parametrize(
    ("make", "restorable"),
    [
        (Shelf, "re-execute"),
        (CopyShelf, "copy"),
        (SnapshotShelf, "snapshot"),
        (AsyncShelf, "re-execute"),
        (AsyncSnapshotShelf, "snapshot"),
        (AsyncCopyShelf, "copy"),
        (OneWayShelf, "none"),
    ],
)
async def test_good_worlds_pass_whatever_they_can_do(make, restorable):
    AsyncShelf.open_now = 0
    found = await check_environment(make, CALLS)
    assert found.checked == (("deterministic", "restore", "no leak") if restorable != "none" else ("deterministic", "no leak"))
    assert found.capabilities.restorable == restorable
    assert found.left_out == ("mail",)
    assert Shelf.executed["mail"] == 0
    assert found.steps > 12
    assert AsyncShelf.open_now == 0


async def test_a_named_external_tool_is_played():
    found = await check_environment(SnapshotShelf, CALLS, allow_external={"mail"})
    assert found.left_out == ()
    assert Shelf.executed["mail"] > 2


async def test_environments_factories_of_them_and_recordings_pass():
    live = LiveEnvironment(SnapshotShelf)
    assert (await check_environment(live, CALLS)).checked[1] == "restore"
    assert (await check_environment(lambda: LiveEnvironment(CopyShelf), CALLS)).capabilities.restorable == "copy"
    root = await live.initial()
    logged = await walk(live, root, *(act((name, arguments)) for name, arguments in CALLS if name != "mail"))
    other = await walk(live, root, act("total"), act(("put", {"name": "c"})))
    assert (await check_environment(Shelf, [logged, other])).checked[0] == "deterministic"
    recorded = await check_environment(lambda: RecordedEnvironment([logged, other]), [logged, other])
    assert recorded.capabilities.restorable == "recorded"
    assert recorded.checked == ("deterministic", "restore", "no leak")


class Own:
    """An environment that somebody wrote by hand: a counter, whose state is read off the actions."""

    def __init__(self) -> None:
        self.asked = 0

    tools = (ToolSpec.function("up", "Count up.", {"type": "object"}, Effect("write")),)
    start = State(tools, (Message.user("Count."),))

    def count(self, state: State) -> int:
        return len(state) + 1

    async def step(self, state: State, action: Message) -> Step:
        self.asked += 1
        said = Message.tool(str(self.count(state)), "c0")
        over = len(state) == 7
        return Step(action, (said,), terminated=over, reward=self.reward() if over else None, grades=(Grade.EXECUTED,))

    def reward(self) -> float:
        return 1.0


class LiveState(Own):
    """PAPERS 5.2: branches act on the live state whatever state they belong to."""

    def count(self, state: State) -> int:
        return self.asked


class LastAction(Own):
    """PAPERS 5.1: after a backtrack the last action of what was played is executed instead."""

    def __init__(self) -> None:
        super().__init__()
        self.played: tuple[int, int] = (0, 0)

    def count(self, state: State) -> int:
        answer = len(state) + 1 if len(state) >= self.played[0] else self.played[1] + 10
        self.played = (len(state), answer)
        return answer


class Shared(Own):
    seen: ClassVar[Counter[str]] = Counter()

    def count(self, state: State) -> int:
        Shared.seen[state.key] += 1
        return len(state) + 1 if Shared.seen[state.key] < 3 else 0


class Lucky(Own):
    def reward(self) -> float:
        return random.random()


UPS = [("up", {})] * 8


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            LiveState,
            r"^restore: gone back to the state before step \d for the \w+ time: step \d of up \(result_drift\) answered '\d+'; wanted '\d'",
        ),
        (LastAction, r"^restore: gone back to the state before step \d"),
        (Shared, r"^restore: .* answered '0'; wanted"),
        (
            Lucky,
            r"^deterministic: played again from the beginning: step 7 ended as \(terminated, truncated, reward\) \(True, False, 0\.\d+\)",
        ),
    ],
)
async def test_bad_environments_are_named(make, complaint):
    Shared.seen.clear()
    assert (await check_environment(Own, UPS, start=Own.start)).checked == ("deterministic", "restore", "no leak")
    with pytest.raises(UserError, match=complaint):
        await check_environment(make, UPS, start=Own.start)


class Forgetful(SnapshotShelf):
    def restore(self, snapshot: Any) -> None:
        self.done = snapshot[1]


class LiveSnapshot(SnapshotShelf):
    def snapshot(self) -> object:
        return (self.items, self.done)

    def restore(self, snapshot: Any) -> None:
        self.items = snapshot[0]

    def call(self, name, arguments):
        if name == "double":
            for key in self.items:
                self.items[key] *= 2
            return "doubled"
        return super().call(name, arguments)


class Shallow(CopyShelf):
    def copy(self):
        twin = type(self)()
        twin.items = self.items
        return twin

    def call(self, name, arguments):
        if name == "put":
            self.items[arguments["name"]] += arguments["n"]
            return "put"
        return super().call(name, arguments)


class Everywhere(Shelf):
    items_of_all: ClassVar[dict[str, int]] = {"a": 0, "b": 0}

    def __init__(self, task: str = "t") -> None:
        super().__init__(task)
        self.items = Everywhere.items_of_all

    def call(self, name, arguments):
        if name == "put":
            self.items[arguments["name"]] += arguments["n"]
            return "put"
        return super().call(name, arguments)


class Random(Shelf):
    def call(self, name, arguments):
        return super().call(name, arguments) + str(random.random())


class Crashing(AsyncSnapshotShelf):
    async def restore(self, snapshot: Any) -> None:
        await super().restore(snapshot)
        self.items = {}


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (Random, "^deterministic: "),
        (Forgetful, "^deterministic|^restore"),
        (LiveSnapshot, "^restore|^deterministic"),
        (Shallow, "^restore|^deterministic"),
        (Everywhere, "^deterministic"),
        (Crashing, "^deterministic|^restore"),
    ],
)
async def test_bad_worlds_are_named(make, complaint):
    AsyncShelf.open_now = 0
    with pytest.raises(UserError, match=complaint):
        await check_environment(make, CALLS)
    assert AsyncShelf.open_now == 0


async def test_a_branch_that_is_seen_by_another_in_the_same_environment_is_a_leak():
    class Leaking(Own):
        """Right along the line, however often; a branch that goes down elsewhere shows in it from then on."""

        branched = False

        async def step(self, state, action):
            step = await super().step(state, action)
            names = [call.name for past in (*state.steps, step) for call in past.action.tool_calls]
            odd = "down" in names and names.index("down") != 3
            self.branched = self.branched or odd
            return replace(step, observations=(Message.tool("leak", "c0"),)) if self.branched and not odd else step

    tools = (*Own.tools, ToolSpec.function("down", "Count down.", {"type": "object"}, Effect("write")))
    with pytest.raises(UserError, match=r"^no leak: after another branch was played from before step \d: step \d of .* answered 'leak'"):
        await check_environment(Leaking, [*UPS[:3], ("down", {}), *UPS[:2]], start=State(tools, Own.start.prompt))


async def test_what_can_not_be_checked_is_refused():
    with pytest.raises(UserError, match=r"nothing to check \(mail left out as external\)"):
        await check_environment(Shelf, [("mail", {})])
    with pytest.raises(UserError, match="has no `initial`"):
        await check_environment(Own, UPS)
    with pytest.raises(UserError, match="got a dict from the factory"):
        await check_environment(dict, UPS)
    with pytest.raises(UserError, match="first action can't be executed: RuntimeError"):
        await check_environment(Shelf, [("crash", {})])
    undeclared = State((), Own.start.prompt)
    with pytest.raises(UserError, match="up left out as external"):
        await check_environment(Own, UPS, start=undeclared)
    assert (await check_environment(Own, UPS, start=undeclared, allow_external={"up"})).steps > 8


async def test_long_lines_are_gone_back_to_at_a_few_places_only():
    found = await check_environment(SnapshotShelf, [("put", {"name": "a", "n": 1})] * 60)
    assert found.steps < 60 * 12 * 5
