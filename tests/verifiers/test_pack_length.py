"""The length pack against the papers' formulas, by hand."""

import math

import pytest

from counterplay.core.errors import UserError
from counterplay.core.journal import ask
from counterplay.core.nouns import Message, Step, ToolCall
from counterplay.verifiers.packs.length import CosineLength, Repetition, efficient_scores, kimi_scores, length_of
from tests.verifiers.pack_shapes import call, ended, say, trajectory, values


def right_if_paris(state):
    if not state.finished:
        return None
    return float("Paris" in state.steps[-1].action.content_text)


def words(n, end="Paris"):
    return ended(trajectory(say(" ".join(["word"] * (n - 1) + [end]))))


async def test_the_cosine_falls_with_length_where_it_is_right():
    pack = CosineLength(right_if_paris, 100)
    got = [(await ask(pack, words(n))).value for n in (1, 50, 100, 101)]
    assert got == pytest.approx([0.5 + 0.25 * (1 + math.cos(math.pi / 100)), 0.75, 0.5, 0.0])
    assert [(await ask(pack, words(n, "Rome"))).value for n in (1, 100, 101)] == [0.0, 0.0, 0.0], "padding a wrong answer gains nothing"
    paper = CosineLength(right_if_paris, 100, right=(1.0, 11 / 12), wrong=(0.0, 10 / 12))
    scaled = [12 * (await ask(paper, words(n, end))).value - 10 for n, end in [(50, "Paris"), (50, "Rome"), (100, "Rome"), (101, "Rome")]]
    assert scaled == pytest.approx([1.5, -5.0, 0.0, -10.0]), "the paper's own scale"
    assert "right in 50 words of at most 100" in (await ask(pack, words(50))).reason


async def test_a_prefix_is_worth_what_can_still_be_had():
    state = trajectory(say("a b c"), say("d e"), say("Paris"))
    pack = CosineLength(right_if_paris, 10)
    seen = [(await ask(pack, each)).value for each in (state.prefix(1), state.prefix(2), state, ended(state))]
    assert seen == sorted(seen, reverse=True)
    assert seen[2] == seen[3]
    assert await ask(CosineLength(lambda _: None, 10), ended(state)) is None
    assert await ask(pack, trajectory()) is None


async def test_a_batch_asks_about_ends_at_once():
    asked = []

    class Judge:
        name = "judge"

        async def batch(self, states):
            asked.append(len(states))
            return [ValueError("lost") if len(state) > 1 else right_if_paris(state) for state in states]

        def __call__(self, state):
            raise AssertionError

    pack = CosineLength(Judge(), 100)
    opinions = await pack.batch([words(50), trajectory(say("a")), ended(trajectory(say("a"), say("b"))), words(50, "Rome"), trajectory()])
    assert asked == [3]
    assert [getattr(opinion, "value", type(opinion).__name__) for opinion in opinions] == [
        pytest.approx(0.75),
        pytest.approx(pack.value(1, right=True)),
        "VerifierError",
        0.0,
        "NoneType",
    ]


def test_length_is_what_the_agent_wrote():
    thought = Step(
        Message.assistant("one two", [ToolCall("1", "f", '{"a": 1}'), ToolCall("2", "g", "{}")], "three"), (Message.tool("x " * 99, "1"),)
    )
    state = trajectory(thought, say("four", "user words do not count"))
    assert [length_of(state, unit) for unit in ("words", "characters", "steps", "calls")] == [7, len('one twothree{"a": 1}{}four'), 2, 2]


def test_settings_are_checked():
    for make in (lambda: CosineLength(right_if_paris, 0), lambda: CosineLength(right_if_paris, 9, right=(2, 1)), lambda: Repetition(n=0)):
        with pytest.raises(UserError):
            make()


def test_every_repeated_n_gram_costs_the_same():
    pack = Repetition(n=2, allowed=10)
    assert pack(trajectory(say("a b c d"))).value == 1.0
    assert pack(trajectory(say("a b a b a b"))).value == pytest.approx(0.7), "a b, b a, a b, b a, a b: three of them again"
    state = trajectory(say("a b c"), say("x A B y"), say("unheard of words"), say("a b c"))
    assert values(pack, state) == pytest.approx([1.0, 0.9, 0.9, 0.7])
    assert pack(state).reason == "step 1: 'a b' was written before; 3 of 10 repeated 2-grams"
    assert pack(trajectory(say("a b " * 50))).value == 0.0
    assert pack(trajectory(call("f", {"x": "a b a b"}), call("f", {"x": "a b a b"}))).value == 1.0, "calls are the tools pack's business"
    thought = trajectory(Step(Message.assistant("", reasoning="a b a b")))
    assert pack(thought).value == 0.9
    assert Repetition(n=2, allowed=10, reasoning=False)(thought).value == 1.0


async def test_kimi_s_reward_by_hand():
    group = [words(10), words(20), words(30), words(10, "Rome"), words(30, "Rome")]
    rewards = [1 + 0.25, 1 + 0, 1 - 0.25, 0 + 0, 0 - 0.25]
    scores = await kimi_scores(group, right_if_paris)
    assert [score.value for score in scores] == pytest.approx([(reward + 0.25) / 1.5 for reward in rewards])
    alone = await kimi_scores([words(10)], right_if_paris)
    assert alone[0].value == pytest.approx(1.25 / 1.5), "of one length nothing follows"
    assert await kimi_scores([trajectory(say("x"))], right_if_paris) == [None]


async def test_the_efficient_reward_by_hand():
    group = [words(10), words(30), words(500, "Rome"), trajectory(say("x"))]
    scores = await efficient_scores(group, right_if_paris, alpha=0.4)
    sigmoid = 1 / (1 + math.exp(1))
    assert [None if score is None else score.value for score in scores] == pytest.approx(
        [1 - 0.4 * sigmoid, 1 - 0.4 * (1 - sigmoid), 0.0, None]
    )
