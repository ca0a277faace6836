"""Hacking does not pay: padding, repeating and doing nothing gain nothing, whatever the verifier, and returns are bounded."""

import asyncio
import math
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from counterplay.core.canonical import content_key
from counterplay.core.errors import UserError
from counterplay.core.journal import ask
from counterplay.core.nouns import Message, Step, ToolCall, Trace, Trajectory
from counterplay.reading import Reading
from counterplay.verifiers.check import check
from counterplay.verifiers.packs.tool_calls import ToolCallRules
from counterplay.verifiers.stepwise import stepwise
from counterplay.verifiers.transforms import clip, delta, idle, returns, robust, summed, unpadded, without_idle
from counterplay.verifiers.windowed import windowed
from tests.verifiers.asked import MAIL, READ, WRITE, Scoring, line, step

REWARDS = st.lists(st.none() | st.floats(0, 1), max_size=30)
ETA = st.floats(0.05, 1)
NAMES = st.lists(
    st.sampled_from([f"{tool}{i}" for tool in ("read", "write", "mail") for i in range(5)]), min_size=1, max_size=7, unique=True
)
NOTHING = Step(Message.assistant("  "))
LOOKED = Step(Message.assistant(None, [ToolCall("c", "read", '{"n":99}')]), (Message.tool("", "c"),))
PROPERTY = settings(max_examples=60, deadline=None)


def noise(seed, *, bad=0):
    """A verifier that likes anything or nothing: a number drawn from the whole content."""
    return lambda t: None if int(content_key(str(seed), t.key)[:2], 16) < bad else int(content_key(str(seed), t.key)[2:6], 16) / 0xFFFF


def run(verifier, trajectory):
    score = asyncio.run(ask(verifier, trajectory))
    return None if score is None else score.value


@st.composite
def padded(draw):
    """A trajectory without idle steps, and the same with idle ones put into it."""
    base = line(*draw(NAMES))
    steps = list(base.steps)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(steps)))
        steps.insert(at, draw(st.sampled_from([NOTHING, LOOKED, *steps[:at]])))
    return base, Trajectory(base.tools, base.prompt, tuple(steps))


@given(REWARDS, ETA)
def test_clipped_rewards_are_never_positive_and_bounded_below(rewards, eta):
    clipped = clip(rewards, eta)
    assert [reward is None for reward in clipped] == [reward is None for reward in rewards]
    assert all(-eta <= reward <= 0 for reward in clipped if reward is not None)
    assert clip([0.2, 0.5, 0.9, None], 0.5) == [pytest.approx(-0.3), 0.0, 0.0, None]


@given(REWARDS)
def test_differences_return_each_step_its_own_reward_however_many_follow(rewards):
    found = returns(delta(rewards))
    for step_return, reward in zip(found, rewards, strict=True):
        if reward is not None:
            assert step_return == pytest.approx(reward)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in found)


def test_hand_worked_differences_and_returns():
    assert delta([0.9, 0.4, None, 0.7]) == [0.5, pytest.approx(-0.3), None, 0.7]
    assert returns([1.0, None, 2.0]) == [3.0, 2.0, 2.0]
    assert returns([1.0, 0.0, 1.0], 0.5) == [1.25, 0.5, 1.0]
    assert delta([]) == returns([]) == []


def test_what_is_idle():
    again = line("read1", "write1", "read1", "write1", "read2")
    assert idle(again) == [False, False, True, True, False]
    changed = Trajectory(again.tools, again.prompt, (step("read1", "pending"), step("read1", "sent"), NOTHING, LOOKED))
    assert idle(changed) == [False, False, True, True]
    silent_write = Step(Message.assistant(None, [ToolCall("c", "write", "{}")]), (Message.tool("", "c"),))
    assert idle(Trajectory((READ, WRITE, MAIL), (), (silent_write, step("mail", "")))) == [False, False]
    assert idle(Trajectory((), (), (LOOKED,))) == [False], "an undeclared tool may do anything"
    ends = Trajectory((), (), (Step(Message.assistant("")), Step(Message.assistant(""), terminated=True)))
    assert idle(ends) == [True, False]
    assert idle(Trajectory((), (), (Step(Message.assistant(""), reward=0.5),))) == [False]
    said = ({"content": None, "refusal": "I can't"}, {"content": [{"type": "image_url"}]}, {"content": [{"type": "text", "text": " "}]}, {})
    actions = [Message.from_openai({"role": "assistant", **fields}) for fields in said]
    assert [idle(Trajectory((), (), (Step(action),))) for action in actions] == [[False], [False], [True], [True]]
    assert without_idle(again).steps == again.steps[:2] + again.steps[4:]
    assert without_idle(changed).tools == changed.tools
    bare = line("read1")
    assert without_idle(bare) is bare


@PROPERTY
@given(padded(), st.integers(), ETA)
def test_idle_steps_gain_nothing_under_clip_and_delta_whatever_the_verifier(pair, seed, eta):
    base, more = pair
    for verifier in (summed(noise(seed), eta=eta), summed(noise(seed), "delta")):
        before, after = run(verifier, base), run(verifier, more)
        assert after <= before + 1e-12
        assert 0 <= after <= 1


@PROPERTY
@given(padded())
def test_the_verifier_of_a_sum_never_sees_an_idle_step(pair):
    seen = []
    run(summed(lambda t: seen.append(t.key) or 0.5), pair[1])
    assert seen == list(pair[0].prefix_keys[1:])


@PROPERTY
@given(padded(), st.integers(), st.floats(0, 1))
def test_idle_steps_gain_nothing_under_unpadded_whatever_the_verifier(pair, seed, penalty):
    base, more = pair
    verifier = unpadded(noise(seed), penalty=penalty)
    assert run(verifier, more) <= run(verifier, base) + 1e-12
    raising = unpadded(lambda t: len(t) / 100, penalty=penalty)
    assert run(raising, more) <= run(raising, base) + 1e-12, "a verifier that likes length is not hacked by it"


@PROPERTY
@given(NAMES, NAMES, st.integers(), ETA)
def test_more_steps_of_any_kind_gain_nothing_under_clip(names, more, seed, eta):
    assume(not set(names) & set(more))
    verifier = summed(noise(seed, bad=40), eta=eta)
    before, after = run(verifier, line(*names)), run(verifier, line(*names, *more))
    assume(before is not None)
    assert after <= before + 1e-12


@PROPERTY
@given(NAMES, st.lists(st.sampled_from(["read50", "read51", "read52"]), max_size=4), st.integers())
def test_reversible_steps_gain_nothing_where_an_irreversible_one_was_bad(names, pad, seed):
    assume(any(not name.startswith("read") for name in names))
    verifier = stepwise(noise(seed), "irreversible")
    assert run(verifier, line(*names, *pad)) == run(verifier, line(*names))


def test_the_raw_sum_is_hackable_and_the_transforms_are_not():
    kind = Scoring({"read1": 0.9, "write1": 0.1})
    one, padded_ = line("read1", "write1"), line(*["read1"] * 20, "write1")
    raw = [sum(kind.value(t.prefix(i)) for i in range(1, len(t) + 1)) for t in (one, padded_)]
    assert raw[1] > 10 * raw[0]
    for verifier in (summed(kind), summed(kind, "delta"), unpadded(stepwise(kind))):
        assert run(verifier, padded_) <= run(verifier, one)


async def test_summed_by_hand():
    kind = Scoring({"read1": 0.9, "read2": 0.3, "write1": 0.0})
    trajectory = line("read1", "read2", "read9", "write1", "read1")
    score = await ask(summed(kind), trajectory)
    assert score.value == pytest.approx(math.exp((0 - 0.2 - 0.5 - 0.5) / 0.5))
    assert score.reason == "clip of 4 step rewards: -1.200, 1 idle steps"
    assert await summed(kind).rewards(trajectory) == [0.0, pytest.approx(-0.2), None, -0.5, -0.5]
    assert (await ask(summed(kind, "delta"), trajectory)).value == pytest.approx(0.9)
    assert await summed(kind, "delta").rewards(trajectory) == [pytest.approx(0.6), pytest.approx(0.3), None, 0.0, 0.0]
    assert await ask(summed(kind), line("read9")) is None
    assert await ask(summed(kind), line("read9", "read9")) is None  # an idle step is no opinion
    assert await ask(summed(kind), line()) is None
    assert (await ask(unpadded(kind, penalty=0.1), line("read2", "read1", "read1"))).value == pytest.approx(0.9 * 0.9)
    assert await ask(unpadded(kind), line("read9")) is None


async def test_an_ensemble_by_hand():
    parts = [Scoring({"read1": value}, str(i)) for i, value in enumerate((0.9, 0.5, 0.1))]
    score = await ask(robust(*parts), line("read1"))
    assert score.value == pytest.approx(0.5)
    assert score.reason == "nominal 0.90, minimum 0.10, uncertainty 0.327"
    assert (await ask(robust(*parts, trust=1.0), line("read1"))).value == 0.9
    assert (await ask(robust(*parts, trust=0.0), line("read1"))).value == pytest.approx(0.1)
    spread = await robust(Scoring({}), *parts).spread(line("read1"))
    assert (spread.nominal, spread.minimum) == (pytest.approx(0.5), 0.1), "the mean where the first has no opinion"
    assert (await robust(parts[0]).spread(line("read1"))).uncertainty == 0.0
    assert await robust(*parts).spread(line("read9")) is None


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1))
def test_an_ensemble_is_bounded_and_no_part_but_the_first_can_raise_it_above_its_minimum(values, trust):
    ensemble = robust(*(lambda _, v=v: v for v in values), trust=trust)
    known = [v for v in values if v is not None]
    value = run(ensemble, line("read1"))
    assert (value is None) == (not known)
    if known:
        assert min(known) - 1e-9 <= value <= max(known) + 1e-9
        if values[0] is not None:
            assert value <= trust * values[0] + (1 - trust) * min(known) + 1e-9


def test_wrong_settings_are_refused():
    for make in (
        lambda: summed(noise(1), "sum"),
        lambda: summed(noise(1), eta=0),
        lambda: summed(noise(1), eta=1.1),
        lambda: unpadded(noise(1), penalty=-0.1),
        lambda: robust(noise(1), trust=2),
    ):
        with pytest.raises(UserError, match="got"):
            make()


@pytest.mark.parametrize("name", ["swe-agent-traj", "openhands-trajectories"])
def test_real_logs_are_scored_alike_in_any_way_and_little_of_them_is_idle(name):
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip("the real logs in ../shared/data are not here")
    trajectories = [item.trajectory for item in list(Reading([folder], processes=0)) if isinstance(item, Trace)][:4]
    marks = [mark for trajectory in trajectories for mark in idle(trajectory)]
    assert sum(marks) / len(marks) < 0.1
    for verifier in (summed(ToolCallRules()), unpadded(stepwise(ToolCallRules(), "irreversible")), windowed(ToolCallRules())):
        report = asyncio.run(check(verifier, trajectories))
        assert report.problems == ()
        assert report.opinions >= report.asked - len(trajectories), "on all but the bare prompts"
