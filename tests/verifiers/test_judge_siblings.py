"""Relative scores: by id and never by place, in two orders, the same however the batch is ordered."""

import json

import pytest

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.journal import JournaledVerifier, MemoryJournal, ask, ask_all
from counterplay.verifiers.judges import ChatModel, Siblings
from counterplay.verifiers.judges.criteria import OUTCOME, PROGRESS
from tests.replay.loopback import Loopback, completion
from tests.verifiers.judging import attempt, candidates, compared, comparing, looked, question, said, tag

SHARED = [looked("1", "the shared beginning"), looked("2", "more of it")]
CHILDREN = [attempt(*SHARED, looked("3", words)) for words in ("good result", "fair result", "poor result")]
SCORES = {"good result": 0.9, "fair result": 0.5, "poor result": 0.1}


def shown_to(messages):
    return candidates({"messages": messages})


def siblings(server, **options):
    return Siblings(ChatModel("wise", base_url=server.base_url, retries=0), **options)


async def opinions(server, trajectories, **options):
    async with siblings(server, **options) as asked:
        return await ask_all(asked, trajectories)


async def test_every_candidate_gets_its_own_score_whatever_the_order():
    with compared(SCORES) as server:
        scores = await opinions(server, CHILDREN)
        again = await opinions(server, CHILDREN[::-1])
    assert [score.value for score in scores] == [0.9, 0.5, 0.1]
    assert scores == again[::-1]
    assert scores[0].reason.startswith("against 2 siblings, 2 orders 0.00 apart; because ")
    assert set(server.bodies[:2]) == set(server.bodies[2:]), "the same questions"


async def test_two_orders_are_asked_the_second_the_first_reversed_under_other_ids():
    with compared(SCORES) as server:
        await opinions(server, CHILDREN)
    first, second = (candidates(request) for request in server.requests)
    said_first = [next(words for words in SCORES if words in text) for text in first.values()]
    said_second = [next(words for words in SCORES if words in text) for text in second.values()]
    assert said_first == said_second[::-1]
    assert not set(first) & set(second)


async def test_what_is_shared_is_sent_once_and_first():
    with compared(SCORES) as server:
        await opinions(server, CHILDREN)
    shown = [question(request) for request in server.requests]
    assert all(text.count("the shared beginning") == 1 for text in shown)
    beginnings = {text[: text.index("Candidate ")] for text in shown}
    assert len(beginnings) == 1
    assert "more of it" in beginnings.pop()
    assert f"<</{tag(server.requests[0])}>>" in shown[0]


async def test_a_judge_that_prefers_places_is_averaged_out():
    def first_is_best(request):
        rows = [{"id": name, "reason": "r", "score": 1.0 - at / 2} for at, name in enumerate(candidates(request))]
        return completion(json.dumps({"candidates": rows}))

    with Loopback(default=first_is_best) as server:
        scores = await opinions(server, CHILDREN)
        single = await opinions(server, CHILDREN, orders=1)
    assert [score.value for score in scores] == [0.5, 0.5, 0.5]
    assert sorted(score.reason.split(" apart")[0][-4:] for score in scores) == ["0.00", "1.00", "1.00"]
    assert sorted(score.value for score in single) == [0.0, 0.5, 1.0]


async def test_groups_are_those_of_one_parent_and_an_only_child_has_no_opinion():
    others = [attempt(looked("9", "elsewhere"), looked("3", words)) for words in ("good result", "poor result")]
    alone = attempt(looked("8", "alone"), looked("3", "good result"))
    batch = [others[0], CHILDREN[0], alone, CHILDREN[1], attempt(), others[1]]
    with compared(SCORES) as server:
        scores = await opinions(server, batch)
    assert [score and score.value for score in scores] == [0.9, 0.9, None, 0.5, None, 0.1]
    assert len(server.requests) == 4
    assert [score.reason.split(",")[0] for score in scores if score] == ["against 1 siblings"] * 4


async def test_attempts_at_one_task_are_compared_from_where_they_differ():
    ends = [attempt(*SHARED, said("good result")), attempt(SHARED[0], looked("7", "detour"), said("poor result"))]
    with compared(SCORES) as server:
        assert [score.value for score in await opinions(server, ends, by="task")] == [0.9, 0.1]
        assert await opinions(server, ends) == [None, None]
    assert "the shared beginning" in question(server.requests[0]).split("Candidate")[0]
    assert "more of it" not in question(server.requests[0]).split("Candidate")[0]


async def test_equal_candidates_are_shown_once_and_an_ending_makes_a_difference():
    with compared(SCORES) as server:
        scores = await opinions(server, [CHILDREN[0], CHILDREN[2], CHILDREN[0]])
        assert [score.value for score in scores] == [0.9, 0.1, 0.9]
        assert await opinions(server, [CHILDREN[0], CHILDREN[0]]) == [None, None]
        ended = attempt(*SHARED, looked("3", "good result", truncated=True))
        await opinions(server, [CHILDREN[0], ended])
    assert [len(candidates(request)) for request in server.requests] == [2, 2, 2, 2]


def scrambled(change):
    """A server that breaks the list of candidates as it is told to."""

    def answer(request):
        rows = [{"id": name, "reason": "r", "score": 0.5} for name in candidates(request)]
        return completion(json.dumps({"candidates": change(rows)}))

    return Loopback(default=answer)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
        lambda rows: [*rows[:-1], rows[0]],
        lambda rows: [*rows[:-1], {**rows[-1], "id": "zzz"}],
        lambda rows: [{**row, "id": at} for at, row in enumerate(rows)],
        lambda rows: [{**row, "score": 7} for row in rows],
        lambda rows: [{**row, "score": None} for row in rows],
        lambda rows: [row["score"] for row in rows],
        lambda rows: {row["id"]: row["score"] for row in rows},
        lambda rows: [],
    ],
)
async def test_a_wrong_list_is_asked_for_again_and_then_an_error_on_this_group_alone(change):
    with scrambled(change) as server:
        failed = await opinions(server, CHILDREN, orders=1)
    assert all(isinstance(each, VerifierError) for each in failed)
    assert len(server.requests) == 2
    assert "That can't be used" in server.requests[1]["messages"][-1]["content"]


async def test_one_broken_group_leaves_the_others_alone():
    def answer(request):
        if "elsewhere" in question(request):
            return completion("I can't decide.")
        return comparing(SCORES)(request)

    others = [attempt(looked("9", "elsewhere"), looked("3", words)) for words in ("good result", "poor result")]
    with Loopback(default=answer) as server:
        scores = await opinions(server, [*others, *CHILDREN])
    assert [isinstance(score, VerifierError) for score in scores] == [True, True, False, False, False]


@pytest.mark.parametrize("seed", range(4))
async def test_out_of_order_answers_are_matched_by_id_and_clamped(seed):
    def backwards(messages, schema):
        rows = [{"id": name, "reason": "r", "score": 1.03 if "good" in text else -0.01} for name, text in shown_to(messages).items()]
        return json.dumps({"candidates": rows[::-1]})

    scores = await ask_all(Siblings(backwards, seed=seed, orders=1), [*CHILDREN, attempt(*SHARED, looked("3", "late result"))])
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.0]


async def test_alone_it_has_no_opinion_and_the_journal_keeps_a_batch():
    journal = MemoryJournal()
    with compared(SCORES) as server:
        async with siblings(server) as asked:
            assert await ask(asked, CHILDREN[0]) is None
            first = await ask_all(JournaledVerifier(asked, journal), CHILDREN)
            again = await ask_all(JournaledVerifier(asked, journal), CHILDREN)
    assert first == again
    assert len(server.requests) == 2


async def test_long_candidates_share_half_of_the_room_and_the_reason_says_so():
    asked = []

    def even(messages, schema):
        asked.append(messages[1]["content"])
        return json.dumps({"candidates": [{"id": name, "reason": "r", "score": 0.5} for name in shown_to(messages)]})

    long = [attempt(*SHARED, *(looked(str(i), f"{which} {'x' * 300}") for i in range(100))) for which in "ab"]
    scores = await ask_all(Siblings(even, by="task", orders=1, max_chars=20_000), long)
    assert len(asked[0]) < 14_000
    assert asked[0].count(" left out]") == 2
    assert all("; r; judged with " in score.reason and "not shown" in score.reason for score in scores)


def test_children_are_judged_by_their_promise_and_attempts_by_their_success():
    assert [Siblings(lambda messages, schema: "", by=by).criteria for by in ("parent", "task")] == [PROGRESS, OUTCOME]


@pytest.mark.parametrize("options", [{"orders": 0}, {"by": "nothing"}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(UserError):
        Siblings(lambda messages, schema: "", **options)
