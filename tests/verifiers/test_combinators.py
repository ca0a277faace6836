"""Verifiers made of verifiers: hand-worked values, batches passed on, errors kept, missing opinions that are no zeros."""

import asyncio
import itertools
import pickle
import threading

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import ask, ask_all, batch_of
from counterplay.core.nouns import Message, Score, Step, ToolCall, Trajectory
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.cached import cached
from counterplay.verifiers.combine import all_of, any_of, first_of, mean, minimum, on_finished, on_prefix, product, weighted
from counterplay.verifiers.stepwise import stepwise
from counterplay.verifiers.transforms import robust, summed, unpadded
from counterplay.verifiers.windowed import merged, windowed
from tests.verifiers.asked import Scoring, line, step

TABLE = {"read1": 0.8, "read2": 0.4, "write1": 0.6, "mail": 1.0}
LINES = [line("read1"), line("read1", "read2"), line("read1", "read9", "write1"), line(), line("mail", terminated=True), line("read9")]


def combinators(*parts):
    first = parts[0]
    kinds = [all_of, any_of, product, first_of, mean, minimum, robust]
    one = [stepwise, windowed, summed, unpadded, cached, on_finished, on_prefix]
    return [kind(*parts) for kind in kinds] + [kind(first) for kind in one] + [weighted([(part, 1 + i) for i, part in enumerate(parts)])]


def both(**options):
    return Scoring(TABLE, "one", **options), Scoring({**TABLE, "read1": 0.3}, "two", **options)


@pytest.mark.parametrize("number", range(15))
async def test_a_batch_gives_what_single_questions_give_and_reaches_every_part_as_one(number):
    parts = both()
    many = combinators(*parts)[number]
    one_by_one = combinators(*both(many=False))[number]
    assert batch_of(many) is not None
    assert batch_of(one_by_one) is None
    answers = await ask_all(many, LINES)
    assert answers == [await ask(one_by_one, trajectory) for trajectory in LINES]
    assert any(answer is not None for answer in answers)
    assert all(len(part.batches) <= 1 and not part.singles for part in parts)
    assert (many.name, many.version, fingerprint_of(many)) == (one_by_one.name, one_by_one.version, fingerprint_of(one_by_one))


def test_every_combination_has_a_fingerprint_of_its_own():
    one, two = both()
    made = [*combinators(one, two), *combinators(two, one)[-8:-1]]
    made += [stepwise(one, "min"), windowed(one, "min"), summed(one, "delta"), summed(one, eta=0.6), unpadded(one, penalty=0.1)]
    made += [weighted([(one, 3), (two, 1)]), robust(one, two, trust=0.6)]
    bare = {fingerprint_of(part) for part in (one, two)}
    prints = [fingerprint_of(v) for v in made if fingerprint_of(v) not in bare]  # cached keeps its verifier's
    assert len(prints) == len(set(prints))


@pytest.mark.parametrize("number", [*range(11), 14])
@pytest.mark.parametrize("many", [True, False])
async def test_an_error_of_a_part_is_an_error_of_that_trajectory_alone(number, many):
    verifier = combinators(*both(many=many))[number]
    for part in verifier.parts:
        getattr(part, "verifier", part).table["read2"] = "boom"
    answers = await ask_all(verifier, LINES)
    assert [isinstance(answer, VerifierError) for answer in answers] == [i == 1 for i in range(len(LINES))]
    with pytest.raises(VerifierError, match="boom"):
        await ask(verifier, LINES[1])


async def test_hand_worked_values():
    half, most, silent = (lambda _: 0.5), (lambda _: 0.9), (lambda _: None)
    done = line("read", terminated=True)
    assert (await ask(mean(half, most, silent), done)).value == pytest.approx(0.7)
    assert (await ask(minimum(half, most, silent), done)).value == 0.5
    assert await ask(all_of(half, silent), done) is None
    assert await ask(mean(silent), done) is None
    assert (await ask(weighted({half: 1, most: 3}), done)).value == pytest.approx(0.8)
    for empty in (mean, all_of, robust):
        with pytest.raises(ValueError, match="at least one"):
            empty()
    for weights in ([1, 0], [1, -1], [float("inf"), 1], [float("nan"), 1]):
        with pytest.raises(ValueError, match="all positive"):
            weighted(list(zip((half, most), weights, strict=True)))


STEPS = {"read1": 0.9, "read2": 0.3, "read3": 0.6, "write1": 0.5, "mail": 0.8}
LONG = line("read1", "read2", "read9", "write1", "mail", "read3")


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("last", 0.6),
        ("min", 0.3),
        ("product", 0.9 * 0.3 * 0.5 * 0.8 * 0.6),
        ("mean", (0.9 + 0.3 + 0.5 + 0.8 + 0.6) / 5),
        ("max_drop", 1 - 0.6),
        ("irreversible", 0.5),
    ],
)
async def test_steps_are_aggregated(how, value):
    score = await ask(stepwise(Scoring(STEPS), how), LONG)
    assert score.value == pytest.approx(value)
    assert score.reason == f"{how} over 6 steps; lowest is step 1: 0.30"


async def test_irreversible_steps_are_those_that_write_or_reach_outside_or_are_not_declared():
    reads = line("read1", "read2")
    assert (await ask(stepwise(Scoring(STEPS), "irreversible"), reads)).value == pytest.approx(0.6), "the mean where there are none"
    undeclared = Trajectory((), reads.prompt, reads.steps)
    assert (await ask(stepwise(Scoring(STEPS), "irreversible"), undeclared)).value == 0.3
    unknown = Trajectory(reads.tools, reads.prompt, (step("read1"), step("gone2")))
    assert (await ask(stepwise(Scoring({**STEPS, "gone2": 0.2}), "irreversible"), unknown)).value == 0.2


async def test_no_opinion_on_no_step_is_no_opinion():
    assert await ask(stepwise(Scoring({})), LONG) is None
    assert await ask(stepwise(Scoring(STEPS)), line()) is None
    assert await ask(windowed(Scoring(STEPS)), line()) is None
    with pytest.raises(UserError, match="wanted one of last, min, product, mean, max_drop, irreversible"):
        stepwise(Scoring(STEPS), "sum")


async def test_a_growing_trajectory_asks_about_each_step_once():
    asked = Scoring(STEPS, many=False)
    verifier = stepwise(asked)
    for length in range(1, 7):
        await ask(verifier, LONG.prefix(length))
    assert asked.singles == [1, 2, 3, 4, 5, 6]


async def test_steps_are_judged_alone_and_with_the_next():
    table = {"read1": 1.0, "read2": 0.0, "read3": 0.6}
    # alone 1, 0, .6; the pairs are (1+0)/2 and (0+.6)/2; so the steps are (1+.5)/2, (0+.3)/2, .6
    assert (await ask(windowed(Scoring(table), "min"), line("read1", "read2", "read3"))).value == pytest.approx(0.15)
    assert (await ask(windowed(Scoring(table)), line("read1", "read2", "read3"))).value == pytest.approx((0.75 + 0.15 + 0.6) / 3)
    assert (await ask(windowed(Scoring({"read3": 1.0})), line("read3", "read8"))).value == 1.0
    seen = []
    await ask(windowed(lambda t: seen.append([len(t), len(t.steps[-1].action.tool_calls)]) or 1.0), line("read1", "read2", "read3"))
    assert seen == [[1, 1], [2, 1], [3, 1], [1, 2], [2, 2]]


def test_merging_two_steps_keeps_what_both_said_did_and_saw():
    one = Step(Message.assistant("first", [ToolCall("a", "read", "{}")], "why"), (Message.tool("x", "a"),), reward=0.5)
    two = Step(Message.assistant("second", [ToolCall("b", "write", '{"n":1}')]), (Message.tool("y", "b"),), terminated=True)
    both_ = merged(one, two)
    assert both_.action.content_text == "first\nsecond"
    assert both_.action.reasoning == "why"
    assert [call.id for call in both_.action.tool_calls] == ["a", "b"]
    assert [message.content_text for message in both_.observations] == ["x", "y"]
    assert (both_.terminated, both_.reward, both_.sampled) == (True, 0.5, True)


async def test_one_question_is_asked_once_however_many_ask_at_once():
    asked = Scoring(STEPS, many=False, wait=True)
    verifier = cached(asked)
    answers = await asyncio.gather(*(ask(verifier, LONG.prefix(1 + i % 3)) for i in range(60)))
    assert sorted(asked.singles) == [1, 2, 3]
    assert [None if a is None else a.value for a in answers[:3]] == [0.9, 0.3, None]
    await ask_all(verifier, [LONG.prefix(3), LONG.prefix(4), LONG.prefix(4)])
    assert asked.singles.count(4) == 1
    assert asked.singles.count(3) == 1, "no opinion is an answer too"
    assert cached(verifier) is verifier
    assert (verifier.name, verifier.version, verifier.fingerprint) == ("scoring", "1", fingerprint_of(asked))


async def test_the_cache_is_bounded_and_forgets_what_was_longest_unused():
    asked = Scoring(STEPS, many=False)
    verifier = cached(asked, size=2)
    for length in (1, 2, 1, 3, 1, 2):
        await ask(verifier, LONG.prefix(length))
    assert asked.singles == [1, 2, 3, 2]
    with pytest.raises(ValueError, match="at least 1"):
        cached(asked, size=0)


async def test_endings_are_not_mixed_up_in_a_cache():
    verifier = cached(lambda t: float(t.finished))
    assert [(await ask(verifier, line("read1", terminated=flag))).value for flag in (False, True, False)] == [0.0, 1.0, 0.0]


async def test_errors_are_told_to_all_who_wait_and_not_kept():
    answers = itertools.chain([RuntimeError("first")], itertools.repeat(0.5))
    asked = []

    async def verifier(_):
        asked.append(1)
        await asyncio.sleep(0.001)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    kept = cached(verifier)
    failed = await asyncio.gather(*(ask(kept, LONG) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, VerifierError) for error in failed)
    assert len(asked) == 1
    assert (await ask(kept, LONG)).value == 0.5


async def test_where_the_asker_is_cancelled_the_next_in_line_asks():
    started = asyncio.Event()
    asked = []

    async def verifier(_):
        asked.append(1)
        started.set()
        await asyncio.sleep(60 if len(asked) == 1 else 0)
        return 1.0

    kept = cached(verifier)
    first = asyncio.create_task(ask(kept, LONG))
    await started.wait()
    second = asyncio.create_task(ask(kept, LONG))
    await asyncio.sleep(0)
    first.cancel()
    assert (await asyncio.wait_for(second, 5)).value == 1.0
    assert len(asked) == 2
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_waiting_asker_can_be_cancelled_without_harm_to_the_other():
    asked = Scoring(STEPS, many=False, wait=True)
    kept = cached(asked)
    first, second = asyncio.create_task(ask(kept, LONG)), asyncio.create_task(ask(kept, LONG))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second.cancel()
    assert (await first).value == 0.6
    assert len(asked.singles) == 1
    with pytest.raises(asyncio.CancelledError):
        await second


def test_threads_share_a_cache():
    asked = Scoring(STEPS, many=False, wait=True)
    kept = cached(asked)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(asyncio.run(ask(kept, LONG)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [answer.value for answer in answers] == [0.6] * 8
    assert len(asked.singles) == 1


def test_a_cache_can_be_sent_to_another_process():
    sent = pickle.loads(pickle.dumps(cached(named, size=3)))
    assert (sent.verifier, sent.size) == (named, 3)


def named(_):
    return Score(1.0)
