"""Live environments: every branch acts on its own instance, in exactly its state."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from counterplay.core.errors import DivergenceError
from counterplay.core.nouns import Grade, Message, ToolCall, ToolSpec
from counterplay.replay.live import LiveEnvironment, initial
from tests.replay.shelf import CopyShelf, Shelf, SnapshotShelf, act, results, walk

MAKES = pytest.mark.parametrize("make", [Shelf, CopyShelf, SnapshotShelf])
PUT, TOTAL = act(("put", {"name": "a", "n": 4})), act("total")


def put(name: str, n: int) -> Message:
    return act(("put", {"name": name, "n": n}))


def tampered(state, step: int, text: str):
    old = state.steps[step]
    new = replace(old, observations=(Message.tool(text, "c0"), *old.observations[1:]))
    return replace(state, steps=(*state.steps[:step], new, *state.steps[step + 1 :]))


@MAKES
async def test_papers_5_1_after_a_backtrack_the_requested_action_is_executed(make):
    """Not the last one of the restored prefix."""
    environment = LiveEnvironment(make)
    root = await environment.initial()
    deep = await walk(environment, root, put("a", 1), put("a", 2), put("b", 5))
    back = await walk(environment, deep.prefix(1), put("a", 10), TOTAL)
    assert results(back) == ["a is 2", "a is 12", '{"a": 12, "b": 2}']


@MAKES
async def test_papers_5_2_branches_act_on_their_own_state_whatever_order_they_are_played_in(make):
    environment = LiveEnvironment(make)
    root = await environment.initial()
    left = right = await walk(environment, root, put("a", 1))
    for n in range(3):
        left = await walk(environment, left, put("a", 1))
        right = await walk(environment, right, put("a", 100 + n))
    left, right = await walk(environment, left, TOTAL), await walk(environment, right, TOTAL)
    assert results(left)[-1] == '{"a": 5, "b": 2}'
    assert results(right)[-1] == '{"a": 305, "b": 2}'
    alone = await walk(LiveEnvironment(make), root, *(step.action for step in right.steps))
    assert results(alone) == results(right)


async def test_papers_5_14_redacted_or_repeated_call_ids_do_not_break_a_fork():
    environment = LiveEnvironment(Shelf)
    logged = await walk(environment, await environment.initial(), act(("get", {"name": "a"}), "total", ids="x"), act("total", ids="x"))
    for redacted in ("", "REDACTED", None):
        steps = []
        for step in logged.steps:
            fields = step.action.to_openai()
            for call in fields["tool_calls"]:
                call["id"] = redacted or ""
            seen = []
            for message in step.observations:
                wire = {k: v for k, v in message.to_openai().items() if k != "tool_call_id" or redacted is not None}
                seen.append(Message.from_openai(wire | ({} if redacted is None else {"tool_call_id": redacted})))
            steps.append(replace(step, action=Message.from_openai(fields), observations=tuple(seen)))
        state = replace(logged, steps=tuple(steps))
        after = await walk(LiveEnvironment(Shelf), state, act(("get", {"name": "b"})))
        assert results(after)[-1] == "2"


@MAKES
async def test_siblings_played_at_once_do_not_meet(make):
    environment = LiveEnvironment(make, blocking=True)
    fork = await walk(environment, await environment.initial(), put("a", 1))
    actions = [act(("put", {"name": "a", "n": n}), "total") for n in range(20)]
    steps = await asyncio.gather(*(environment.step(fork, action) for action in actions))
    assert [step.observations[1].content_text for step in steps] == [f'{{"a": {2 + n}, "b": 2}}' for n in range(20)]


@pytest.mark.parametrize("make", [CopyShelf, SnapshotShelf])
async def test_a_kept_state_costs_no_tool_call(make):
    environment = LiveEnvironment(make)
    state = await walk(environment, await environment.initial(), *[put("a", 1)] * 10)
    Shelf.executed.clear()
    for n in range(5):
        await environment.step(state.prefix(7), put("b", n))
    assert Shelf.executed["put"] == 5


async def test_without_snapshots_a_linear_walk_is_linear_and_a_fork_is_executed_again():
    environment = LiveEnvironment(Shelf)
    state = await walk(environment, await environment.initial(), *[put("a", 1)] * 10)
    assert Shelf.executed["put"] == 10
    await environment.step(state.prefix(7), put("b", 1))
    assert Shelf.executed["put"] == 18


async def test_the_cache_is_bounded_and_the_nearest_kept_ancestor_is_used():
    environment = LiveEnvironment(SnapshotShelf, cache_states=2)
    state = await walk(environment, await environment.initial(), *[put("a", 1)] * 10)
    assert len(environment._kept) == 2
    Shelf.executed.clear()
    await environment.step(state.prefix(10), TOTAL)
    assert Shelf.executed["put"] == 0
    environment.close()
    await environment.step(state.prefix(6), TOTAL)
    await environment.step(state.prefix(9), TOTAL)
    assert Shelf.executed["put"] == 6 + 3


@MAKES
async def test_a_tampered_prefix_is_refused_and_named(make):
    logged = await walk(LiveEnvironment(make), initial(make), put("a", 1), TOTAL, put("b", 1))
    bad = tampered(logged, 1, '{"a": 3, "b": 2}')
    with pytest.raises(DivergenceError, match=r"at step 1 of total \(result_drift\)") as caught:
        await LiveEnvironment(make).step(bad, TOTAL)
    assert (caught.value.step, caught.value.kind) == (1, "result_drift")
    assert '\'{"a": 2, "b": 2}\'' in caught.value.got
    assert '"a": 3' in caught.value.wanted
    trusting = await LiveEnvironment(make, on_divergence="ignore").step(bad, TOTAL)
    assert trusting.observations[0].content_text == '{"a": 2, "b": 3}'
    lenient = LiveEnvironment(make, comparable=lambda text: "".join(c for c in text if not c.isdigit()))
    assert (await lenient.step(bad, TOTAL)).observations


async def test_every_kind_of_divergence_has_its_name():
    logged = await walk(LiveEnvironment(Shelf), initial(Shelf), act("total", "total"), TOTAL)
    first = logged.steps[0]

    async def kind(step, make=Shelf, state=logged):
        with pytest.raises(DivergenceError) as caught:
            await LiveEnvironment(make).step(replace(state, steps=(step, *state.steps[1:])), TOTAL)
        return caught.value.kind

    assert await kind(replace(first, observations=first.observations[:1])) == "extra_observation"
    assert await kind(replace(first, observations=(*first.observations, first.observations[0]))) == "missing_observation"
    assert await kind(replace(first, observations=(Message.user("hm"), first.observations[1]))) == "role_drift"
    assert await kind(replace(first, action=act("crash"))) == "world_error"
    over = replace(first, action=act("finish"), observations=(Message.tool("bye", "c0"),))
    assert await kind(over) == "ended_early"
    assert await kind(first, make=lambda: Shelf("another")) == "prompt_drift"


async def test_bad_calls_are_answered_as_agent_loops_do():
    action = Message.assistant(
        tool_calls=[
            ToolCall("1", "gte", "{}"),
            ToolCall("2", "get", '{"name": '),
            ToolCall("3", "get", '{"name": "zzz"}'),
            ToolCall("4", "get", "[1]"),
        ]
    )
    step = await LiveEnvironment(Shelf).step(initial(Shelf), action)
    unknown, malformed, refused, no_object = [message.content_text for message in step.observations]
    assert "unknown tool 'gte'" in unknown
    assert "not a JSON object" in malformed
    assert refused == "no item zzz"
    assert "not a JSON object" in no_object
    assert [message.tool_call_id for message in step.observations] == ["1", "2", "3", "4"]
    assert step.grades == (Grade.EXECUTED,) * 4
    assert not step.finished


async def test_a_crash_is_data():
    step = await LiveEnvironment(Shelf).step(initial(Shelf), act("total", "crash", "total"))
    assert step.error == "RuntimeError: the shelf fell down"
    assert len(step.observations) == len(step.grades) == 1


@MAKES
async def test_external_tools_are_never_executed_unless_named(make):
    environment = LiveEnvironment(make)
    state = await walk(environment, await environment.initial(), put("a", 1))
    step = await environment.step(state, act("total", "mail"))
    assert Shelf.executed["mail"] == 0
    assert Shelf.executed["total"] == 0
    assert step.truncated
    assert step.observations == ()
    assert "mail is external" in step.error
    assert results(await walk(environment, state, TOTAL))[-1] == '{"a": 2, "b": 2}'
    allowed = LiveEnvironment(make, allow_external={"mail"})
    assert (await allowed.step(state, act("mail"))).observations[0].content_text == "sent"
    assert Shelf.executed["mail"] == 1


@MAKES
async def test_an_external_call_in_a_prefix_is_answered_by_its_recording(make):
    logged = await walk(
        LiveEnvironment(make, allow_external={"mail"}), initial(make), put("a", 1), act("mail", "total"), act("mail"), TOTAL
    )
    logged = tampered(logged, 1, "sent, number 7")
    Shelf.executed.clear()
    after = await walk(LiveEnvironment(make), logged, put("a", 1))
    assert results(after)[-1] == "a is 3"
    assert Shelf.executed["mail"] == 0


async def test_the_end_its_reward_and_the_step_limit():
    environment = LiveEnvironment(SnapshotShelf, max_steps=3)
    state = await walk(environment, await environment.initial(), PUT, act("finish"))
    assert (state.steps[-1].terminated, state.steps[-1].reward, state.steps[0].reward) == (True, 1.0, None)
    late = await walk(environment, state.prefix(1), TOTAL, TOTAL)
    assert (late.steps[-1].truncated, late.steps[-1].terminated, late.steps[-1].reward) == (True, False, 1.0)
    said = await environment.step(state.prefix(1), Message.assistant("I am done"))
    assert (said.terminated, said.reward) == (True, 1.0)


class Talking(SnapshotShelf):
    def reply(self, action: Message) -> list[Message]:
        return [Message.user(f"you said {action.content_text}")] if "bye" not in action.content_text else []


async def test_a_user_answers_texts_and_recorded_answers_are_inputs_where_no_user_is_there():
    environment = LiveEnvironment(Talking)
    state = await walk(environment, await environment.initial(), Message.assistant("hi"), PUT)
    assert results(state) == ["you said hi", "a is 5"]
    assert not state.finished
    assert (await environment.step(state, Message.assistant("bye"))).terminated
    assert results(await walk(LiveEnvironment(SnapshotShelf), state, TOTAL))[-1] == '{"a": 5, "b": 2}'
    other = replace(state.steps[0], observations=(Message.user("what?"),))
    with pytest.raises(DivergenceError):
        await LiveEnvironment(Talking).step(replace(state, steps=(other, state.steps[1])), TOTAL)


async def test_every_instance_is_closed():
    class Closing(Shelf):
        open_now = 0

        def __init__(self, task: str = "t") -> None:
            super().__init__(task)
            Closing.open_now += 1

        def close(self) -> None:
            Closing.open_now -= 1

    class ClosingSnapshots(Closing, SnapshotShelf):
        pass

    for make in (Closing, ClosingSnapshots):
        environment = LiveEnvironment(make)
        state = await walk(environment, await environment.initial(), PUT, TOTAL)
        await environment.step(state.prefix(1), TOTAL)
        await environment.step(state.prefix(1), act("finish"))
        bad = tampered(state, 0, "wrong")
        with pytest.raises(DivergenceError):
            await LiveEnvironment(make).step(bad, TOTAL)
        assert environment.fingerprint
        environment.close()
        assert Closing.open_now == 0


def test_a_tool_named_close_is_no_way_to_let_go_of_a_world():
    class Closing(Shelf):
        def __init__(self, task: str = "t") -> None:
            super().__init__(task)
            self.tools = (*self.tools, ToolSpec.function("close", "Close the shelf.", {"type": "object", "properties": {}}))

        def close(self) -> str:
            pytest.fail("nobody called this tool")

    assert initial(Closing).tools[-1].name == "close"


def test_fingerprints_tell_worlds_tasks_and_limits_apart():
    class Other(Shelf):
        fingerprint = "shelf-2"

    prints = {
        LiveEnvironment(Shelf).fingerprint,
        LiveEnvironment(Other).fingerprint,
        LiveEnvironment(Shelf, task="x").fingerprint,
        LiveEnvironment(Shelf, max_steps=4).fingerprint,
        LiveEnvironment(Shelf, allow_external={"mail"}).fingerprint,
    }
    assert len(prints) == 5
