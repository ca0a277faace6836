"""A tool that would send mail is never executed, in any mode, unless it is named: real executions are counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Proposal, State
from counterplay.replay.fidelity import check
from counterplay.replay.gym import GymWorld
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.replay.recorder import Recorder, play
from counterplay.replay.testing import check_environment, check_world
from counterplay.search.best_of_n import best_of_n
from counterplay.search.independent import independent
from counterplay.search.lookahead import lookahead
from counterplay.search.mcts import mcts
from tests.replay.shelf import CopyShelf, Fixed, Shelf, SnapshotShelf, act, spec, walk
from tests.replay.shelf_async import AsyncCopyShelf, AsyncShelf, AsyncSnapshotShelf, OneWayShelf

PLAIN = [Shelf, CopyShelf, SnapshotShelf]
EVERY = [*PLAIN, AsyncShelf, AsyncSnapshotShelf, AsyncCopyShelf, OneWayShelf]
MAIL, PUT, TOTAL = act("mail"), act(("put", {"name": "a", "n": 1})), act("total")
MIXED = act("total", "mail", ("put", {"name": "b"}))


class Postman:
    """Proposes to send mail wherever it can."""

    fingerprint = "postman"

    async def propose(self, state, n):
        return [Proposal((MAIL, PUT, MIXED, TOTAL)[i % 4]) for i in range(n)]


def rewarded(trajectory):
    return trajectory.steps[-1].reward if trajectory.finished else None


def counted(ledger: Path) -> Counter:
    return Counter(ledger.read_text().split())


def mailed() -> int:
    return Shelf.executed["mail"]


async def logged(make=SnapshotShelf) -> State:
    """A log in which the mail was really sent, once, and again in company."""
    named = LiveEnvironment(make, allow_external={"mail"})
    state = await walk(named, await named.initial(), PUT, MAIL, MIXED, TOTAL)
    assert mailed() == 2
    await named.aclose()
    Shelf.executed.clear()
    return state


@pytest.mark.parametrize("make", EVERY)
async def test_live(make):
    log = await logged(make)
    environment = LiveEnvironment(make)
    for state in (await environment.initial(), log.prefix(1), log.prefix(2), log.prefix(3), log):
        for action in (MAIL, MIXED, MAIL):
            step = await environment.step(state, action)
            assert step.error
            assert step.observations == ()
        await environment.step(state, TOTAL)
    await asyncio.gather(*(environment.step(log.prefix(2), action) for action in (MAIL, TOTAL, MIXED, PUT)))
    await environment.aclose()
    assert mailed() == 0


@pytest.mark.parametrize("make", PLAIN)
async def test_recorded_with_and_without_a_live_fallback(make):
    log = await logged(make)
    for fallback in (None, LiveEnvironment(make), LiveEnvironment(make, blocking=True)):
        environment = RecordedEnvironment([log], fallback=fallback, allow_stale=True)
        assert len((await walk(environment, log.prefix(0), PUT, MAIL, MIXED)).steps) == 3
        for state in (log.prefix(0), log.prefix(2), log):
            for action in (MAIL, MIXED, act("mail", "mail"), act(("mail", {"to": "x"})), PUT):
                await environment.step(state, action)
    assert mailed() == 0


@pytest.mark.parametrize("make", PLAIN)
async def test_checks(make):
    log = await logged(make)
    await check(log, make)
    await check(log, LiveEnvironment(make))
    await check(log, RecordedEnvironment([log], fallback=LiveEnvironment(make)))
    await check_environment(make, [log])
    await check_environment(make, [("put", {"name": "a"}), ("mail", {}), ("total", {})])
    await check_environment(lambda: RecordedEnvironment([log], fallback=LiveEnvironment(make)), [log])
    with pytest.raises(UserError, match="got a call of mail, which is external"):
        check_world(make, [("put", {"name": "a"}), ("mail", {})])
    assert mailed() == 0
    check_world(make, [("mail", {})], allow_external={"mail"})
    assert mailed() > 0


@pytest.mark.parametrize("make", [*PLAIN, AsyncShelf])
async def test_playing_and_recording(make, tmp_path):
    environment = LiveEnvironment(make)
    root = await environment.initial()
    with Recorder(tmp_path / "log.jsonl") as recorder:
        for actions in ((PUT, MAIL, TOTAL), (MIXED,), (MAIL,)):
            played = await play(root, Fixed(*actions), environment, max_steps=4)
            assert played.trajectory.steps[-1].error
            recorder.write(played.trajectory, played.calls, task="t")
    await environment.aclose()
    assert mailed() == 0


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("search", [best_of_n, mcts, lookahead, independent])
async def test_searches(make, search):
    environment = LiveEnvironment(make, max_steps=3)
    tree = await search(
        await environment.initial(), Postman(), environment, rewarded, Budget.of(model_calls=40, simulations=12), max_steps=3
    )
    assert any("mail is external" in (node.step.error or "") for node in tree.nodes[1:]) or search is lookahead
    await environment.aclose()
    assert mailed() == 0


async def test_gym():
    gymnasium = pytest.importorskip("gymnasium")
    sent = []

    class Postbox(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)
        observation_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 0, {}

        def step(self, action):
            if action == 1:
                sent.append(action)
            return 0, 0.0, False, False, {}

    def make(*, copyable: bool):
        tools = [spec("wait", "write"), spec("mail", "external")]
        return lambda: GymWorld(Postbox, tools=tools, action_of=lambda name, _: ["wait", "mail"].index(name), copyable=copyable)

    for copyable in (False, True):
        environment = LiveEnvironment(make(copyable=copyable))
        state = await walk(environment, await environment.initial(), act("wait"))
        assert (await environment.step(state, act("wait", "mail"))).error
        assert (await environment.step(state, MAIL)).error
        forked = replace(state, steps=(replace(state.steps[0], action=MAIL), *state.steps[1:]))
        await environment.step(forked, act("wait"))
        await check(forked, make(copyable=copyable))
        await check_environment(make(copyable=copyable), [("wait", {}), ("mail", {}), ("wait", {})])
    assert sent == []


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "executed.txt"
    path.touch()
    return path


async def test_mcp(ledger):
    pytest.importorskip("mcp")
    from counterplay.replay.mcp import mcp_world
    from tests.replay.mcp_server import make_server

    factory = mcp_world(lambda: make_server(ledger))
    mail = act(("send_mail", {"to": "all"}))
    async with LiveEnvironment(factory) as environment:
        root = await environment.initial()
        state = await walk(environment, root, act(("put", {"key": "a", "text": "b"})))
        for action in (mail, act("count", ("send_mail", {"to": "x"}))):
            assert (await environment.step(state, action)).error
        forked = replace(state, steps=(replace(state.steps[0], action=mail),))
        await environment.step(forked, act("count"))
        recorded = RecordedEnvironment([state], fallback=environment)
        await recorded.step(state, mail)
        await recorded.step(root, mail)
    await check_environment(factory, [("put", {"key": "a", "text": "b"}), ("send_mail", {"to": "all"}), ("count", {})])
    executed = counted(ledger)
    assert executed["send_mail"] == 0
    assert executed["put"] > 3
