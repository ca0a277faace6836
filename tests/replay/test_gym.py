"""Gymnasium environments as worlds: true re-execution with pinned luck, copies, ends and rewards, and searches through them."""

from __future__ import annotations

import pytest

from counterplay.core.budget import Budget
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Proposal, ToolSpec
from counterplay.core.protocols import first_draw
from counterplay.replay.capabilities import capabilities
from counterplay.replay.gym import GymWorld, as_json, schema_of
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.testing import check_environment, check_world
from counterplay.search.best_of_n import best_of_n
from counterplay.search.mcts import mcts
from tests.replay.shelf import act, results, walk

gymnasium = pytest.importorskip("gymnasium")
np = pytest.importorskip("numpy")

LAKE = {"left": 0, "down": 1, "right": 2, "up": 3}
SAFE = ("down", "down", "right", "right", "down", "right")


def lake(*, slippery: bool = False, seed: int = 0, **options):
    return lambda: GymWorld(lambda: gymnasium.make("FrozenLake-v1", is_slippery=slippery), tools=LAKE, seed=seed, **options)


def toy(name: str, seed: int = 3, **options):
    return lambda: GymWorld(lambda: gymnasium.make(name), seed=seed, reward_range=(-1000.0, 100.0), **options)


def acting(*actions: int):
    return [("act", {"action": action}) for action in actions]


class Wanderer:
    """Draws one of the moves, reproducibly."""

    fingerprint = "wanderer"

    async def propose(self, state, n):
        first = first_draw.get()
        moves = ("down", "right", "right", "down")
        return [Proposal(act(moves[(first + i + len(state)) % len(moves)])) for i in range(n)]


def earned(trajectory) -> float | None:
    return trajectory.steps[-1].reward if trajectory.finished else None


@pytest.mark.parametrize("copyable", [False, True])
@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1"])
async def test_real_environments_keep_their_word_luck_included(name, copyable):
    make = toy(name, copyable=copyable)
    found = await check_environment(make, acting(1, 0, 1, 0) if name != "Blackjack-v1" else acting(1, 0))
    assert found.checked == ("deterministic", "restore", "no leak")
    assert found.capabilities.restorable == ("copy" if copyable else "re-execute")
    assert "copy" in check_world(make, acting(0, 1, 1)).checked or not copyable


async def test_slippery_ice_is_replayed_with_the_same_slips_and_a_fork_has_the_same_luck():
    async def slide(seed, state=None, *, copyable=False):
        environment = LiveEnvironment(lake(slippery=True, seed=seed, copyable=copyable))
        state = await environment.initial() if state is None else state
        while not state.finished:
            state = await walk(environment, state, act("right"))
        return state

    state = await slide(5)
    assert len(state) > 2
    for copyable in (False, True):
        assert results(await slide(5, state.prefix(2), copyable=copyable)) == results(state)
    assert len({tuple(results(await slide(seed))) for seed in range(9)}) > 4


async def test_the_end_its_reward_and_the_time_limit():
    environment = LiveEnvironment(lake())
    state = await walk(environment, await environment.initial(), *map(act, SAFE))
    assert (state.steps[-1].terminated, state.steps[-1].reward) == (True, 1.0)
    assert state.steps[-1].grade is Grade.EXECUTED
    hole = await walk(environment, state.prefix(1), act("right"))
    assert (hole.steps[-1].terminated, hole.steps[-1].reward) == (True, 0.0)
    short = LiveEnvironment(lambda: GymWorld(lambda: gymnasium.make("FrozenLake-v1", is_slippery=False, max_episode_steps=3), tools=LAKE))
    cut = await walk(short, await short.initial(), act("up"), act("up"), act("up"))
    assert (cut.steps[-1].terminated, cut.steps[-1].truncated, cut.steps[-1].reward) == (False, True, 0.0)
    assert cut.finished


async def test_calls_after_the_end_in_one_action_are_answered_as_such():
    environment = LiveEnvironment(lake())
    state = await walk(environment, await environment.initial(), *map(act, SAFE[:-1]))
    step = await environment.step(state, act("right", "left"))
    assert [message.content_text for message in step.observations] == ["15", "Error: the episode is over."]
    assert step.terminated


async def test_rewards_are_summed_or_last_and_outside_their_range_refused():
    cliff = toy("CliffWalking-v1")
    environment = LiveEnvironment(cliff, max_steps=2)
    fell = await walk(environment, await environment.initial(), act(("act", {"action": 1})), act(("act", {"action": 0})))
    assert fell.steps[-1].reward == pytest.approx((-101 + 1000) / 1100)
    last = LiveEnvironment(toy("CliffWalking-v1", reward="last"), max_steps=2)
    kept = await walk(last, await last.initial(), *(step.action for step in fell.steps))
    assert kept.steps[-1].reward == pytest.approx((-1 + 1000) / 1100)
    narrow = LiveEnvironment(lambda: GymWorld(lambda: gymnasium.make("CliffWalking-v1")), max_steps=1)
    with pytest.raises(UserError, match=r"reward of -100; wanted one in reward_range 0\.\.1"):
        await narrow.step(await narrow.initial(), act(("act", {"action": 1})))
    with pytest.raises(UserError, match="reward_range"):
        GymWorld(lambda: gymnasium.make("Taxi-v4"), reward_range=(1.0, 1.0))


@pytest.mark.parametrize(
    "arguments", [{"action": 9}, {"action": "1"}, {"action": None}, {"action": [1]}, {"action": True}, {"action": 1.0}, {}]
)
async def test_an_action_that_is_none_is_for_the_agent_to_read_and_changes_nothing(arguments):
    environment = LiveEnvironment(toy("FrozenLake-v1"))
    step = await environment.step(await environment.initial(), act(("act", arguments)))
    assert "is not an action; wanted one in Discrete(4)" in step.observations[0].content_text
    assert not step.finished
    world = toy("FrozenLake-v1")()
    world.close()
    assert world.rewards == []


def test_schemas_and_values_of_every_kind_of_space():
    spaces = gymnasium.spaces
    assert schema_of(spaces.Discrete(3, start=-1)) == {"type": "integer", "minimum": -1, "maximum": 1}
    assert schema_of(spaces.Box(0, 1, (2, 3)))["items"] == {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
    assert schema_of(spaces.MultiDiscrete([2, 2]))["items"] == {"type": "integer"}
    assert schema_of(spaces.Text(4)) == {"type": "string", "maxLength": 4}
    both = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple((spaces.Box(0, 1, (1,)), spaces.Text(3)))})
    assert schema_of(both)["required"] == ["a", "b"]

    class Echo(gymnasium.Env):
        action_space = both
        observation_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return options["first"], {}

        def step(self, action):
            assert self.action_space.contains(action)
            return {"seen": action, 3: np.float32(0.5)}, 0.25, False, False, {}

    world = GymWorld(Echo, options={"first": np.arange(2)}, prompt="Echo.")
    assert world.prompt[0].content_text == "Echo.\n\nFirst observation: [0,1]"
    assert world.call("act", {"action": {"a": 1, "b": [[0.5], "abc"]}}) == '{"seen":{"a":1,"b":[[0.5],"abc"]},"3":0.5}'
    assert world.reward == 0.25
    assert as_json(object()).startswith('"<object')


async def test_tools_of_ones_own_and_a_rendering():
    move = ToolSpec.function("move", "Move.", {"type": "object"}, Effect("write"))
    mail = ToolSpec.function("mail", "Send mail.", {"type": "object"})
    sent = []

    def action_of(name, arguments):
        if name == "mail":
            sent.append(arguments)
        return LAKE[arguments["to"]]

    def make():
        return GymWorld(
            lambda: gymnasium.make("FrozenLake-v1", is_slippery=False),
            tools=[move, mail],
            action_of=action_of,
            render=lambda seen: f"square {seen}",
            prompt=lambda first: [Message.system("Walk."), Message.user(f"You are on {first}.")],
        )

    environment = LiveEnvironment(make)
    state = await walk(environment, await environment.initial(), act(("move", {"to": "down"})))
    assert results(state) == ["square 4"]
    assert state.prompt[1].content_text == "You are on square 0."
    assert "mail is external" in (await environment.step(state, act(("mail", {"to": "down"})))).error
    assert sent == []
    with pytest.raises(UserError, match="tools without action_of"):
        GymWorld(lambda: gymnasium.make("FrozenLake-v1"), tools=[move])


def test_what_a_failed_world_opened_is_closed():
    closed = []

    class Broken(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            raise RuntimeError("no episode")

        def close(self):
            closed.append(True)

    with pytest.raises(RuntimeError, match="no episode"):
        GymWorld(Broken)
    assert closed == [True]


def test_fingerprints_tell_environments_settings_seeds_and_rewards_apart():
    makes = [lake(), lake(slippery=True), lake(seed=1), lake(reward="last"), lake(options={"a": 1}), toy("Taxi-v4")]
    prints = {LiveEnvironment(make).fingerprint for make in makes}
    assert len(prints) == len(makes)
    assert all("gymnasium" in text for text in prints)


class Counting:
    """An environment of one's own, which is in no registry."""

    action_space = None

    def __init__(self, step: int) -> None:
        self.by, self.fingerprint = step, f"counting by {step}"

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return self.by, 0.0, False, False, {}


def test_fingerprints_tell_actions_renderings_limits_and_unregistered_environments_apart():
    other = {**LAKE, "left": 2, "right": 0}
    made = gymnasium.make
    makes = [
        lake(),
        lake(render=lambda seen: f"field {seen}"),
        lambda: GymWorld(lambda: made("FrozenLake-v1", is_slippery=False), tools=other),
        lambda: GymWorld(lambda: made("FrozenLake-v1", is_slippery=False, max_episode_steps=3), tools=LAKE),
        lambda: GymWorld(lambda: gymnasium.wrappers.TimeAwareObservation(made("FrozenLake-v1", is_slippery=False)), tools=LAKE),
        lambda: GymWorld(lambda: Counting(1), tools={"go": 1}),
        lambda: GymWorld(lambda: Counting(2), tools={"go": 1}),
    ]
    assert len({LiveEnvironment(make).fingerprint for make in makes}) == len(makes)
    assert LiveEnvironment(makes[1]).fingerprint == LiveEnvironment(makes[1]).fingerprint


@pytest.mark.parametrize("copyable", [False, True])
async def test_searches_find_the_way_over_the_ice(copyable):
    environment = LiveEnvironment(lake(copyable=copyable), max_steps=8)
    assert capabilities(environment).forks
    root = await environment.initial()
    tree = await mcts(root, Wanderer(), environment, earned, Budget.of(simulations=120), num_actions=4, max_steps=8)
    best = tree.best()
    assert best is not None
    assert best.score.value == 1.0
    played = await walk(LiveEnvironment(lake()), root, *(step.action for step in best.state.steps))
    assert results(played) == results(best.state)
    lines = await best_of_n(root, Wanderer(), environment, earned, Budget(), n=6, max_steps=8)
    assert len(lines.finished()) >= 1
    assert all(node.state.steps[-1].error is None for node in lines.finished())
    environment.close()
