"""Recorded environments: a recorded answer is used where it is still true, and nowhere else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from counterplay.core.effects import Effect
from counterplay.core.nouns import Grade, Message, Step, ToolCall, ToolSpec, Trajectory
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.recorded import RecordedEnvironment, call_answers
from tests.replay.shelf import Shelf, SnapshotShelf, act, results, spec, walk
from tests.replay.shelf_logs import GET_A, GET_B, TOTAL, grades, logged, put


async def test_the_logged_actions_give_the_logged_trajectory_to_the_byte():
    log = await logged(GET_A, put("a"), TOTAL, act("finish"))
    again = await walk(RecordedEnvironment([log]), log.prefix(0), *(step.action for step in log.steps))
    assert again == log
    assert again.key == log.key
    assert again.steps[-1].terminated


async def test_other_ids_key_order_and_white_space_go_on_exactly_with_ids_remapped():
    log = await logged(act(("put", {"name": "a", "n": 2})), act("total", ("get", {"name": "b"})), GET_A)
    environment = RecordedEnvironment([log])
    first = Message.assistant("let me see", [ToolCall("other", "put", '{ "n": 2,  "name": "a" }')])
    state = await walk(environment, log.prefix(0), first, act("total", ("get", {"name": "b"}), ids="z"), GET_A)
    assert grades(state) == ["exact"] * 4
    assert results(state) == results(log)
    assert [m.tool_call_id for step in state.steps for m in step.observations] == ["other", "z0", "z1", "c0"]


async def test_a_read_is_reused_after_a_write_elsewhere_and_not_after_one_on_its_resource():
    log = await logged(put("a"), GET_A, GET_B)
    environment = RecordedEnvironment([log])
    fork = log.prefix(0)
    other = await walk(environment, fork, GET_B)
    assert grades(other) == ["reused"]
    assert results(other) == ["2"]
    early = await environment.step(fork, GET_A)
    assert early.truncated
    assert early.observations == ()
    assert "something that it depends on differs" in early.error
    swapped = await walk(environment, log.prefix(1), GET_B, GET_A)
    assert grades(swapped)[1:] == ["reused", "reused"]


async def test_a_wide_write_carries_what_it_read_with_it():
    """`double` touches every item; reading `a` after it depends on the writes to every item before it."""
    log = await logged(put("b"), act("double"), GET_A)
    environment = RecordedEnvironment([log])
    assert (await environment.step(log.prefix(0), act("double"))).error
    log = await logged(put("a"), TOTAL, GET_A)
    assert (await RecordedEnvironment([log]).step(log.prefix(0), TOTAL)).error


async def test_papers_5_15_cursors_belong_to_the_branch_and_resampling_consumes_nothing():
    jobs = ToolSpec.function("status", "", {}, Effect("read", "job"))
    says = ["pending", "running", "done"]
    steps = tuple(Step(act("status"), (Message.tool(text, "c0"),), grades=(Grade.EXACT,)) for text in says)
    log = Trajectory((jobs,), (Message.user("go"),), (Step(act("other"), (Message.tool("x", "c0"),)), *steps))
    log = replace(log, tools=(jobs, ToolSpec.function("other", "", {}, Effect("pure"))))
    environment = RecordedEnvironment([log])
    root = log.prefix(0)
    first = [await environment.step(root, act("status")) for _ in range(5)]
    assert {step.observations[0].content_text for step in first} == {"pending"}
    branch = await walk(environment, root, act("status"), act("status"))
    await walk(environment, root, act("status"), act("status"), act("status"))
    branch = await walk(environment, branch, act("status"))
    assert results(branch) == says
    assert grades(branch) == ["reused"] * 3
    assert "one more" in (await environment.step(branch, act("status"))).error
    together = await asyncio.gather(*(walk(environment, root, act("status"), act("status")) for _ in range(8)))
    assert {tuple(results(state)) for state in together} == {("pending", "running")}


async def test_pure_holds_after_anything_and_is_doubted_where_the_log_contradicts_it():
    log = await logged(put("a"), act(("add", {"x": 1, "y": 2})))
    fork = await walk(RecordedEnvironment([log]), log.prefix(0), act(("add", {"x": 1, "y": 2})))
    assert grades(fork) == ["reused"]
    lying = RecordedEnvironment([await logged(GET_A, put("a"), GET_A)], effects={"get": Effect("pure")})
    assert "declared pure" in (await lying.step(log.prefix(1), GET_A)).error


async def test_externals_answer_where_nothing_differs_and_nothing_is_ever_executed():
    log = await logged(put("a"), act("mail"), TOTAL)
    environment = RecordedEnvironment([log])
    assert grades(await walk(environment, log.prefix(1), act("mail"))) == ["exact"] * 2
    later = await walk(environment, log.prefix(0), put("a"), Message.assistant("hm", [ToolCall("m", "mail", "{}")]))
    assert grades(later) == ["exact"] * 2
    twice = await walk(environment, log.prefix(2), act("mail"))
    assert twice.steps[-1].error
    assert (await environment.step(log.prefix(0), act("mail"))).error
    assert not Shelf.executed


async def test_undeclared_tools_are_external_and_the_reason_says_so():
    log = await logged(GET_A, TOTAL)
    bare = replace(log, tools=())
    environment = RecordedEnvironment([bare])
    step = await environment.step(bare.prefix(0), TOTAL)
    assert "not declared" in step.error
    declared = RecordedEnvironment([bare], tools=Shelf.tools)
    assert grades(await walk(declared, bare.prefix(0), TOTAL)) == ["reused"]


async def test_stale_is_for_reads_and_only_on_request():
    log = await logged(GET_A, put("a"), TOTAL)
    environment = RecordedEnvironment([log], allow_stale=True)
    state = await walk(environment, log.prefix(1), act(("put", {"name": "a", "n": 1})), GET_A)
    assert grades(state)[-1] == "stale"
    assert state.grade == Grade.STALE
    assert (await environment.step(log.prefix(0), put("c"))).error
    assert "differs" in (await environment.step(state, put("a"))).error


async def test_writes_are_reused_where_their_resource_is_as_it_was():
    log = await logged(GET_A, put("a"), GET_A, put("a"), TOTAL)
    environment = RecordedEnvironment([log])
    state = await walk(environment, log.prefix(0), put("a"), put("a"), TOTAL)
    assert results(state) == ["a is 2", "a is 3", '{"a": 3, "b": 2}']
    assert grades(state) == ["reused"] * 3
    assert "differs" in (await environment.step(state, put("a"))).error


async def test_calls_of_one_action_see_each_other():
    log = await logged(act(("put", {"name": "a", "n": 1}), ("get", {"name": "a"})), GET_B)
    environment = RecordedEnvironment([log])
    assert (await environment.step(log.prefix(0), GET_A)).error
    both = await walk(environment, log.prefix(0), GET_B, act(("put", {"n": 1, "name": "a"}), ("get", {"name": "a"})))
    assert results(both)[1:] == ["a is 2", "2"]
    half = await environment.step(log.prefix(0), act(("get", {"name": "b"}), ("get", {"name": "nope"})))
    assert half.observations == ()
    assert "never called" in half.error


async def test_the_fallback_is_asked_for_what_is_not_recorded():
    log = await logged(put("a"), GET_A)
    environment = RecordedEnvironment([log], fallback=LiveEnvironment(SnapshotShelf))
    state = await walk(environment, log.prefix(0), put("a"), put("a", 7), GET_A, act("mail"))
    assert grades(state) == ["exact", "executed", "executed"]
    assert results(state)[-1] == "9"
    assert "external" in state.steps[-1].error
    assert Shelf.executed["mail"] == 0


async def test_several_attempts_at_one_task_answer_for_each_other():
    one, two = await logged(put("a"), GET_A), await logged(GET_B, put("b"), GET_B)
    state = await walk(RecordedEnvironment([one, two]), one.prefix(1), put("b"), GET_B)
    assert grades(state) == ["exact", "reused", "reused"]
    assert results(state)[1:] == ["b is 3", "3"]


async def test_a_wide_write_that_was_executed_carries_the_differences_it_met():
    """`level` gives every item the sum of all: after it `a` is other than recorded, though no write on `a` alone differs."""
    log = await logged(put("b"), act("level"), GET_A)
    environment = RecordedEnvironment([log], fallback=LiveEnvironment(SnapshotShelf))
    state = await walk(environment, log.prefix(0), act("level"), GET_A)
    assert grades(state) == ["executed", "executed"]
    assert results(state)[-1] == "3"


def told(tools: tuple[ToolSpec, ...], *pairs: tuple[str, str | None]) -> Trajectory:
    """One step a call without arguments; None is a call that was never answered."""
    steps = [Step(act(name), () if text is None else (Message.tool(text, "c0"),)) for name, text in pairs]
    return Trajectory(tools, (Message.user("go"),), tuple(steps))


def polled(*pairs: tuple[str, str]) -> Trajectory:
    tools = (
        ToolSpec.function("status", "", {}, Effect("read", "job")),
        ToolSpec.function("reset", "", {}, Effect("write", "job")),
        ToolSpec.function("look", "", {}, Effect("pure")),
        ToolSpec.function("see", "", {}, Effect("pure")),
    )
    steps = tuple(Step(act(name), (Message.tool(text, "c0"),), grades=(Grade.EXACT,)) for name, text in pairs)
    return Trajectory(tools, (Message.user("go"),), steps)


async def test_a_write_starts_the_count_of_equal_calls_anew():
    log = polled(("status", "old"), ("look", "1"), ("reset", "ok"), ("status", "pending"), ("status", "done"))
    state = await walk(RecordedEnvironment([log]), log.prefix(1), act("reset"), act("status"), act("status"))
    assert results(state) == ["old", "ok", "pending", "done"]


async def test_equal_writes_that_answer_differently_have_left_different_worlds():
    """A world that gives out numbers by chance: the second attempt's booking is another one."""
    tools = (spec("book", "write(trip)"), spec("show", "read(trip)"))
    runs = [told(tools, ("book", number), ("show", number)) for number in ("41", "42")]
    booked = runs[1].prefix(1)
    step = await RecordedEnvironment(runs[:1]).step(booked, act("show"))
    assert "something that it depends on differs" in step.error
    assert results(await walk(RecordedEnvironment(runs), booked, act("show")))[-1] == "42"


async def test_a_write_that_was_never_answered_equals_no_write_that_was():
    tools = (spec("book", "write(trip)"), spec("show", "read(trip)"), spec("think", "pure"))
    log = told(tools, ("book", None), ("show", "nothing booked"))
    done = told(tools, ("think", ""), ("book", "booked"))
    environment = RecordedEnvironment([log, done])
    assert "differs" in (await environment.step(done, act("show"))).error
    assert "differs" in (await environment.step(told(tools, ("think", ""), ("book", None)), act("show"))).error
    assert results(await walk(environment, log.prefix(1), act("show"))) == ["nothing booked"]


async def test_users_who_act_change_what_reads_may_say():
    """A phone's owner restarts it; an agent that looks before asking must not be told how it is afterwards."""
    tools = (spec("status", "read(phone)"),)
    steps = (
        Step(act("status"), (Message.tool("no signal", "c0"),)),
        Step(Message.assistant("Restart it, please."), (Message.user("Done."),)),
        Step(act("status"), (Message.tool("full signal", "c0"),)),
    )
    log = Trajectory(tools, (Message.user("help"),), steps)
    looked = log.prefix(1)
    assert results(await walk(RecordedEnvironment([log]), looked, act("status")))[-1] == "full signal"
    acting = RecordedEnvironment([log], users_act=True)
    assert results(await walk(acting, looked, act("status")))[-1] == "no signal"
    assert (await walk(acting, log.prefix(0), *(step.action for step in steps))).messages == log.messages
    assert acting.fingerprint != RecordedEnvironment([log]).fingerprint


async def test_writes_on_two_things_commute_and_writes_on_parts_of_one_that_is_looked_at_whole_do_not():
    tools = (spec("put", "write(item:{name})"), spec("both", "read(item:{names})"), spec("all", "read(item)"), spec("wait", "pure"))

    def call(name: str, /, **arguments: object) -> Message:
        return act((name, arguments))

    both = call("both", names=["a", "b"])
    said = (("put", "a is 1"), ("put", "b is 2"), ("both", "1, 2"), ("all", "a: 1, b: 2"))
    actions = (call("put", name="a"), call("put", name="b"), both, call("all"))
    log = Trajectory(tools, (Message.user("x"),), tuple(Step(a, (Message.tool(t, "c0"),)) for a, (_, t) in zip(actions, said, strict=True)))
    environment = RecordedEnvironment([log])
    turned = await walk(environment, log.prefix(0), actions[1], actions[0], both)
    assert (results(turned)[-1], grades(turned)) == ("1, 2", ["reused"] * 3)
    assert "differs" in (await environment.step(turned, actions[3])).error


async def test_the_reason_names_what_differs():
    log = await logged(put("a"), GET_A)
    step = await RecordedEnvironment([log]).step(log.prefix(0), GET_A)
    assert 'here it follows no write, in the log put({"n":1,"name":"a"})' in step.error


async def test_a_long_branch_asks_for_no_more_than_its_last_step(monkeypatch):
    """Each state is built on the one before: a hundred steps off the log look at a hundred steps, not at five thousand."""
    log = await logged(put("a"), *[GET_B] * 3)
    environment, taken = RecordedEnvironment([log], fallback=LiveEnvironment(SnapshotShelf)), []
    original = RecordedEnvironment._taken
    monkeypatch.setattr(RecordedEnvironment, "_taken", lambda self, branch, step: taken.append(step) or original(self, branch, step))
    state = await walk(environment, log.prefix(1), *[put("b", n) for n in range(100)])
    assert len(state) == 101
    assert len(taken) == 99


async def test_a_state_off_the_log_is_understood_without_having_seen_its_ancestors():
    log = await logged(put("a"), GET_A, GET_B)
    state = await walk(RecordedEnvironment([log], fallback=LiveEnvironment(SnapshotShelf)), log.prefix(1), put("b", 5), put("b", 6))
    cold = Trajectory(state.tools, state.prompt, state.steps)
    assert results(await walk(RecordedEnvironment([log]), cold, GET_A))[-1] == "2"
    assert "differs" in (await RecordedEnvironment([log]).step(cold, GET_B)).error


async def test_where_attempts_contradict_each_other_the_closest_one_is_asked():
    one, two = polled(("look", "1"), ("status", "p")), polled(("see", "1"), ("status", "q"))
    for closest, other, wanted in ((one, "see", "p"), (two, "look", "q")):
        state = await walk(RecordedEnvironment([one, two]), closest.prefix(1), act(other), act("status"))
        assert results(state)[-1] == wanted


async def test_equal_actions_after_different_answers_are_different_prefixes():
    one, two = talk("Q", "A1", "P", "B1"), talk("Q", "A2", "P", "B2")
    for log, wanted in ((one, "B1"), (two, "B2")):
        assert results(await walk(RecordedEnvironment([one, two]), log.prefix(1), Message.assistant("P")))[-1] == wanted


async def test_of_equal_logged_actions_the_one_with_the_same_ids_goes_on():
    logs = [
        replace(log, steps=(Step(act("look", ids=i), (Message.tool(i, f"{i}0"),)), log.steps[0]))
        for i in "xy"
        for log in [polled(("see", "1"))]
    ]
    for log, wanted in zip(logs, "xy", strict=True):
        assert results(await walk(RecordedEnvironment(logs), log.prefix(0), log.steps[0].action)) == [wanted]


def talk(*texts: str) -> Trajectory:
    steps = tuple(Step(Message.assistant(a), (Message.user(u),)) for a, u in zip(texts[::2], texts[1::2], strict=True))
    return Trajectory((), (Message.user("hello"),), steps)


async def test_a_users_answer_is_exact_or_not_at_all():
    log = talk("Which flight?", "The blue one.", "Paid?", "Yes.")
    environment = RecordedEnvironment([log])
    state = await walk(environment, log.prefix(0), Message.assistant(" Which  flight? "), Message.assistant("Paid?"))
    assert results(state) == ["The blue one.", "Yes."]
    assert grades(state) == ["exact", "exact"]
    step = await environment.step(log.prefix(1), Message.assistant("Which seat?"))
    assert step.truncated
    assert "what follows this text" in step.error
    assert (await environment.step(log.prefix(0), Message.assistant("Paid?"))).error


async def test_a_text_ends_the_episode_where_no_text_was_ever_followed():
    log = await logged(TOTAL, Message.assistant("It is 3."))
    step = await RecordedEnvironment([log]).step(log.prefix(1), Message.assistant("It is 4."))
    assert (step.terminated, step.error, step.reward) == (True, None, None)
    same = await RecordedEnvironment([log]).step(log.prefix(1), Message.assistant("It is 3."))
    assert (same.terminated, same.reward) == (True, log.steps[-1].reward)


async def test_a_log_that_breaks_off_ends_the_branch_there():
    log = Trajectory(Shelf.tools, (Message.user("x"),), (Step(act("total", "total"), (Message.tool("{}", "c0"),)),))
    step = await RecordedEnvironment([log]).step(log.prefix(0), act("total", "total"))
    assert step.truncated
    assert "ends before" in step.error


@pytest.mark.parametrize(
    ("ids", "wanted"), [(["1", "0"], ["b", "a"]), (["9", "8"], ["a", "b"]), (["1", "1"], ["a", "b"]), (["1"], [None, "a"])]
)
def test_results_are_matched_by_id_else_by_place(ids, wanted):
    action = Message.assistant(tool_calls=[ToolCall(str(i), "get", "{}") for i in range(2)])
    step = Step(action, tuple(Message.tool(text, i) for text, i in zip("ab", ids, strict=False)))
    assert [answer and answer.content_text for answer in call_answers(step)] == wanted


async def test_the_same_state_gives_the_same_step_whatever_was_asked_before():
    log = await logged(put("a"), GET_A, GET_B, TOTAL)
    environment, fresh = RecordedEnvironment([log]), RecordedEnvironment([log])
    actions = [put("a"), GET_A, GET_B, TOTAL, act("mail")]
    for length in (3, 0, 2, 1, 3):
        for action in actions:
            before = await environment.step(log.prefix(length), action)
            assert before == await RecordedEnvironment([log]).step(log.prefix(length), action)
    assert environment.fingerprint == fresh.fingerprint
    assert environment.fingerprint != RecordedEnvironment([log], allow_stale=True).fingerprint
    assert json.dumps(environment.fingerprint)
