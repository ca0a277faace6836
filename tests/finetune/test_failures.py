"""Classes of failure: what a trajectory shows, what a verifier's reason says, what the user says."""

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Score, Step, ToolCall, ToolSpec, Trajectory
from counterplay.finetune.failures import classify_failures, failure_class, reason_class, told

TOOLS = (ToolSpec.function("find", "", {}),)


def call(name="find", arguments="{}", answer="found", **flags):
    return Step(Message.assistant(None, [ToolCall("1", name, arguments)]), (Message.tool(answer, "1"),), **flags)


def say(text, **flags):
    return Step(Message.assistant(text), (), **flags)


def run(*steps, tools=TOOLS):
    return Trajectory(tools, (Message.user("go"),), steps)


DIFFERENT = [call(arguments=f'{{"at":{i}}}') for i in range(9)]


@pytest.mark.parametrize(
    ("trajectory", "wanted"),
    [
        (run(), "no action"),
        (run(call(error="ConnectionError: gone")), "error"),
        (run(call(arguments="{at: 1", terminated=True)), "malformed tool call"),
        (run(say('<tool_call>{"name": "find"', terminated=True)), "malformed tool call"),
        (run(call("fetch", answer="Error: unknown tool 'fetch'", truncated=True)), "unknown tool"),
        (run(call("fetch", terminated=True), tools=()), "wrong end state"),
        (run(*DIFFERENT[:2], *[call()] * 2, call(truncated=True)), "repeated actions"),
        (run(*[DIFFERENT[0], DIFFERENT[1]] * 3), "repeated actions"),
        (run(*DIFFERENT[:3] * 2, DIFFERENT[3]), "unfinished"),
        (run(*DIFFERENT[:3], *DIFFERENT[2:4], DIFFERENT[3]), "unfinished"),
        (run(*DIFFERENT[:3] * 2, call(truncated=True)), "step limit"),
        (run(*DIFFERENT, call(answer="Error: no such order", terminated=True)), "stopped on a tool error"),
        (run(*DIFFERENT, say(" ", terminated=True)), "no answer"),
        (run(*DIFFERENT, say("done", terminated=True)), "wrong end state"),
    ],
)
def test_what_a_trajectory_shows(trajectory, wanted):
    assert failure_class(trajectory) == wanted


def test_steps_put_in_the_agents_mouth_repeat_nothing():
    forced = Step(DIFFERENT[0].action, DIFFERENT[0].observations, sampled=False)
    assert failure_class(run(DIFFERENT[1], forced, forced, forced)) == "unfinished"


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        ("step 4: tax of v27 in NL as domestic, wanted reverse_charge", "tax of … in NL as domestic"),
        ("step 12: d89: it is a copy of d62, which is booked", "it is a copy of …"),
        ("d11: debit 63 credit 90, wanted debit 90", "debit … credit …"),
        ("post_entry was refused: error: unknown account 59", "post_entry was refused"),
        ("order 17 18 19 was refunded twice; and more", "order … was refunded twice"),
        ("17: 18", ""),
        ("", ""),
    ],
)
def test_the_class_that_a_reason_names(reason, wanted):
    assert reason_class(reason) == wanted


async def test_a_verifier_s_reason_or_a_word_names_the_class():
    ended = run(*DIFFERENT, say("done", terminated=True))

    async def verifier(trajectory):
        return Score(0.5, f"step 2: refund of order {len(trajectory)} was too large: 7")

    assert await classify_failures([ended], verifier) == ["refund of order … was too large"]
    assert await classify_failures([ended, run()], lambda t: "too  long" if len(t) > 5 else None) == ["too long", "no action"]
    for nothing in (0.25, None, Score(1.0, "all is well"), Score(0.0), ""):
        assert await classify_failures([ended], lambda _, nothing=nothing: nothing) == ["wrong end state"]
    with pytest.raises(UserError, match="KeyError"):
        await classify_failures([ended], lambda t: {}[t])
    with pytest.raises(UserError, match="list"):
        await classify_failures([ended], lambda _: ["a", "b"])


def test_how_attempts_ended_for_a_person():
    assert told(["step limit"]) == "step limit"
    assert told(["success"] * 2) == "success (2 attempts)"
    assert told(["no answer", "step limit", "success", "step limit"]) == "of 4: 1 success, 2 step limit, 1 no answer"
