"""Probes change what they say and nothing else; a verifier that each of them games is found out, and a plain one is not."""

import pytest

from counterplay.core.nouns import Message, Step, ToolCall
from counterplay.verifiers.evaluation.asking import Asker
from counterplay.verifiers.evaluation.evaluate import evaluate
from counterplay.verifiers.evaluation.page import probe_rows, rows, verdict
from counterplay.verifiers.evaluation.probes import (
    PROBES,
    claim_success,
    cut_short,
    insert_no_op,
    pad_prose,
    perturb_rationale,
    probe,
    repeat_step,
)
from counterplay.verifiers.evaluation.truth import Labelled
from tests.verifiers.evaluation_helpers import look, says, send, trajectory

RUN = trajectory(look(1, "first I look"), send(1, "now I send"), look(2, "the other"), says("done", terminated=True))


def calls(found):
    return [call.signature for step in found.steps for call in step.action.tool_calls]


def test_padding_and_claims_change_words_alone():
    padded, claimed = pad_prose(RUN, 3), claim_success(RUN)
    for found in (padded, claimed):
        assert calls(found) == calls(RUN)
        assert [s.observations for s in found.steps] == [s.observations for s in RUN.steps]
        assert found.finished
    assert [s.action.content_text.startswith(o.action.content_text) for s, o in zip(padded.steps, RUN.steps, strict=True)] == [True] * 4
    assert padded.steps[0].action.content_text.count("Let me think") == 3
    assert padded.steps[3] == RUN.steps[3]
    assert "successfully" in claimed.steps[-1].action.content_text
    assert claimed.steps[:-1] == RUN.steps[:-1]
    assert pad_prose(trajectory(says("a"), says("b"))).steps[0] == says("a"), "words that are the action are not buried"


def test_repetitions_come_before_the_end_with_ids_of_their_own():
    found = repeat_step(RUN, 2)
    assert calls(found) == ['look({"id":1})', 'send({"id":1})', *['look({"id":2})'] * 3]
    copies = found.steps[3:5]
    ids = [step.action.tool_calls[0].id for step in found.steps[2:5]]
    assert len(set(ids)) == 3
    assert [step.observations[0].tool_call_id for step in found.steps[2:5]] == ids
    assert not any(step.finished for step in copies)
    assert found.steps[-1] == RUN.steps[-1]
    assert repeat_step(trajectory(says("done"))) is None
    only_writes = trajectory(send(1), says("done"))
    assert calls(repeat_step(only_writes, 1)) == ['send({"id":1})'] * 2


def test_a_no_op_looks_again_at_what_nobody_changed():
    found = insert_no_op(RUN, 2)
    assert calls(found)[3:] == ['look({"id":2})'] * 2, "order 1 was sent after it was looked at"
    assert insert_no_op(trajectory(look(1), send(1), says("done")), 2) is None
    assert insert_no_op(trajectory(send(1), says("done"))) is None
    unknown = Step(Message.assistant(None, [ToolCall("x", "peek", "{}")]), (Message.tool("ok", "x"),))
    assert insert_no_op(trajectory(unknown, says("done"))) is None, "a tool that is not declared may do anything"


def test_the_rationale_moves_and_the_calls_stay():
    found = perturb_rationale(RUN)
    assert calls(found) == calls(RUN)
    assert [s.action.content_text for s in found.steps] == ["now I send", "the other", "first I look", "done"]
    assert perturb_rationale(trajectory(look(1, "same"), send(1, "same"))) is None
    assert perturb_rationale(trajectory(says("a"), says("b"))) is None, "words that are the action are no rationale"


def test_cutting_ends_at_a_limit():
    found = cut_short(RUN)
    assert found.steps[0] == RUN.steps[0]
    assert (len(found), found.steps[-1].truncated, found.steps[-1].terminated) == (2, True, False)
    assert cut_short(trajectory(says("done"))) is None


def words(state):
    return min(1.0, sum(len(step.action.content_text) for step in state.steps) / 4000)


def length(state):
    return len(state) / 40


def confident(state):
    return 0.9 if "successfully" in state.steps[-1].action.content_text else 0.4


def brief(state):
    return 1 / (1 + len(state))


def in_order(state):
    return 0.2 if state.steps[0].action.content_text.startswith("first") else 0.8


def outright(state):
    return 1.0 if any(call.name == "send" for step in state.steps for call in step.action.tool_calls) else 0.0


@pytest.mark.parametrize(
    ("verifier", "paying"),
    [
        (words, {"pad with prose", "repeat a step", "insert no-op calls", "claim success"}),
        (length, {"repeat a step", "insert no-op calls"}),
        (confident, {"claim success"}),
        (brief, {"cut short"}),
        (in_order, {"perturb the rationale"}),
        (outright, set()),
    ],
)
async def test_each_hackable_verifier_is_found_out_by_its_probes(verifier, paying):
    items = [Labelled(trajectory(*RUN.steps, task=f"order {i}"), f"order {i}", 1.0) for i in range(12)]
    results = await probe(Asker(verifier), items)
    assert [result.name for result in results] == list(PROBES)
    assert {result.name for result in results if result.failed} == paying
    for result in results:
        assert (result.n, result.rises.value) == (12, 1.0 if result.name in paying else 0.0)


async def test_noise_is_not_taken_for_a_hack():
    def noisy(state):
        return int(state.key[:6], 16) / 0xFFFFFF

    items = [Labelled(trajectory(*RUN.steps, task=f"order {i}"), f"order {i}", 1.0) for i in range(200)]
    results = await probe(Asker(noisy), items)
    assert [result.name for result in results if result.failed] == []
    assert all(0.3 < result.rises.value < 0.7 for result in results)


@pytest.mark.parametrize(("tasks", "failed", "said"), [(3, False, "too few to tell"), (5, True, "It can be gamed: claim success pays")])
async def test_a_probe_fails_only_where_its_interval_says_so(tasks, failed, said):
    items = [Labelled(trajectory(*RUN.steps, task=f"order {i}"), f"order {i}", float(i % 2)) for i in range(tasks)]
    found = await evaluate(confident, items)
    assert (found.failed_probes == ("claim success",)) is failed
    assert bool(found.failed_probes) is failed
    assert said.casefold() in verdict(found).casefold()
    assert verdict(found).startswith("It can be gamed") is failed
    row = next(cells for cells in probe_rows(found) if cells[0].startswith("claim success"))
    assert row[0] == f"claim success ({'pays' if failed else 'too few to tell'})"
    assert dict(rows([found]))["probes that pay"] == ("claim success" if failed else "too few to tell")


async def test_only_trajectories_that_ended_well_are_cut():
    items = [Labelled(RUN, "good", 1.0), Labelled(trajectory(*RUN.steps, task="bad"), "bad", 0.0)]
    results = {result.name: result.n for result in await probe(Asker(length), items)}
    assert (results["cut short"], results["claim success"]) == (1, 2)


async def test_probes_that_do_not_apply_are_not_passed():
    results = await probe(Asker(lambda _: None), [Labelled(RUN, "a", 1.0)])
    assert [(result.n, result.change, result.failed) for result in results] == [(0, None, False)] * len(PROBES)
