"""Requests compared with a recording: kinds, places, order, what counts as equal."""

import json
import re
from dataclasses import replace

import pytest

from counterplay.core.nouns import Call, Completeness, Message, Source, Step, SubTrajectory, ToolCall, ToolSpec, Trace, Trajectory
from counterplay.replay.agents.matching import Matcher
from counterplay.replay.agents.requests import Asked, Conversations, Normaliser, params_of

SYSTEM, USER = Message.system("You are it."), Message.user("Do it.")
TOOLS = (ToolSpec.function("f", "does f", {"type": "object", "properties": {"a": {"type": "integer"}}}),)


def act(number, arguments='{"a": 1}'):
    return Message.assistant(None, [ToolCall(f"c{number}", "f", arguments)])


def path(*results, prompt=(SYSTEM, USER)):
    steps = [Step(act(i), (Message.tool(result, f"c{i}"),)) for i, result in enumerate(results)]
    return Trajectory(TOOLS, prompt, (*steps, Step(Message.assistant("done"))))


def trace_of(trajectory, *subs, parents=None, calls=(), source="tape"):
    parents = parents or [0] * len(subs)
    sub_trajectories = tuple(SubTrajectory(sub, parent_step=parent) for sub, parent in zip(subs, parents, strict=True))
    return Trace("t", trajectory, Source(source), sub_trajectories, calls=tuple(calls))


def asked(trajectory, step, **params):
    state = trajectory.prefix(step)
    return Asked(state.messages, state.tools, params)


def renamed(request, change):
    """The request with every message's JSON changed."""
    return replace(request, messages=tuple(Message.from_openai(change(message.to_openai())) for message in request.messages))


MAIN = path("one", "two", "three")


def test_requests_in_order_are_the_same():
    matcher = Matcher(trace_of(MAIN))
    for step in range(4):
        match = matcher.match(asked(MAIN, step))
        assert (match.kind, match.call.step, match.skipped, match.difference) == ("same", step, 0, None)
        matcher.take(match, asked(MAIN, step))
    assert matcher.open() == []


def ids(message):
    return json.loads(re.sub(r'"c(\d)"', r'"other-\1"', json.dumps(message)))


def key_order(message):
    message = dict(reversed(message.items()))
    for call in message.get("tool_calls", []):
        call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]), indent=1)
    return message


def parts(message):
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content, "cache_control": {"type": "ephemeral"}}]} if content else message


def decorated(message):
    return {
        **message,
        "refusal": None,
        "annotations": [],
        "reasoning_content": "hm",
        "vendor": {"x": 1},
        "content": message["content"] or "",
    }


def developer(message):
    return {**message, "role": "developer"} if message["role"] == "system" else message


@pytest.mark.parametrize("change", [ids, key_order, parts, decorated, developer])
def test_what_the_model_is_not_shown_does_not_count(change):
    match = Matcher(trace_of(MAIN)).match(renamed(asked(MAIN, 3), change))
    assert match.difference is None
    assert match.call.step == 3


def test_ids_are_renamed_consistently_or_not_at_all():
    two = Message.assistant(None, [ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}")])
    recorded = Trajectory((), (USER,), (Step(two, (Message.tool("x", "a"), Message.tool("y", "b"))), Step(Message.assistant("done"))))
    matcher = Matcher(trace_of(recorded))
    swap = {"a": "b", "b": "a"}
    crossed = renamed(asked(recorded, 1), lambda m: {**m, "tool_call_id": swap[m["tool_call_id"]]} if m["role"] == "tool" else m)
    match = matcher.match(crossed)
    assert (match.kind, match.difference.path) == ("result_drift", "messages[2].tool_call_id")
    for lost in ("", "same"):
        again = Message.assistant(None, [ToolCall(lost, "f", "{}"), ToolCall(lost, "f", "{}")])
        bare = Trajectory((), (USER,), (Step(again, (Message.tool("x", lost), Message.tool("y", lost))), Step(Message.assistant("done"))))
        assert Matcher(trace_of(bare)).match(asked(bare, 1)).difference is None


def test_parameters_at_their_default_do_not_count():
    calls = [Call(0, model="m-2024", params={"model": "m", "temperature": 0.2})]
    matcher = Matcher(trace_of(MAIN, calls=calls))
    fields = {
        "model": "m",
        "temperature": 0.2,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": None,
        "top_p": 1.0,
    }
    assert matcher.match(asked(MAIN, 0, **fields)).kind == "same"
    assert params_of({**fields, "messages": [], "tools": []}) == {"model": "m", "temperature": 0.2}
    match = matcher.match(asked(MAIN, 0, model="m", temperature=0.2, top_p=0.5))
    assert (match.kind, match.difference.path, match.difference.got, match.difference.wanted) == ("argument_drift", "top_p", "0.5", "")
    match = matcher.match(asked(MAIN, 0, model="m"))
    assert (match.difference.path, match.difference.got, match.difference.wanted) == ("temperature", "", "0.2")


def test_logs_that_leave_parameters_out_are_not_held_to_them():
    assert (
        Matcher(trace_of(MAIN, source="chatlog", calls=[Call(0, params={"temperature": 0})]))
        .match(asked(MAIN, 0, temperature=0, seed=3, model="m"))
        .kind
        == "same"
    )
    assert (
        Matcher(trace_of(MAIN, source="chatlog", calls=[Call(0, params={"temperature": 0})])).match(asked(MAIN, 0, temperature=0.1)).kind
        == "argument_drift"
    )
    assert Matcher(trace_of(MAIN)).match(asked(MAIN, 0, model="m", temperature=0.1)).kind == "same"


def test_tools_that_the_log_does_not_know_are_not_compared():
    bare = replace(MAIN, tools=())
    unknown = Call(0, completeness=Completeness(tools=False))
    assert Matcher(trace_of(bare, calls=[unknown])).match(asked(MAIN, 0)).kind == "same"
    match = Matcher(trace_of(bare)).match(asked(MAIN, 0))
    assert (match.kind, match.difference.path) == ("argument_drift", "tools[0]")


@pytest.mark.parametrize(
    ("step", "place", "message", "kind", "path"),
    [
        (0, 0, Message.system("You are another."), "prompt_drift", "messages[0].content"),
        (2, 1, Message.user("Do that."), "prompt_drift", "messages[1].content"),
        (2, 2, act(0, '{"a": 2}'), "argument_drift", "messages[2].tool_calls[0].function.arguments.a"),
        (2, 2, Message.assistant(None, [ToolCall("c0", "g", '{"a": 1}')]), "argument_drift", "messages[2].tool_calls[0].function.name"),
        (2, 2, Message.assistant("hm", [ToolCall("c0", "f", '{"a": 1}')]), "prompt_drift", "messages[2].content"),
        (2, 5, Message.tool("2", "c1"), "result_drift", "messages[5].content"),
        (2, 5, Message.user("two"), "prompt_drift", "messages[5].role"),
        (1, 4, Message.user("Hurry."), "prompt_drift", "messages[4]"),
    ],
)
def test_the_first_difference_is_named(step, place, message, kind, path):
    matcher = Matcher(trace_of(MAIN))
    for before in range(step):
        matcher.take(matcher.match(asked(MAIN, before)), asked(MAIN, before))
    request = asked(MAIN, step)
    request = replace(request, messages=(*request.messages[:place], message, *request.messages[place + 1 :]))
    match = matcher.match(request)
    assert (match.kind, match.call.step, match.difference.path) == (kind, step, path)
    assert match.difference.message == place


def test_a_message_that_is_gone():
    matcher = Matcher(trace_of(MAIN))
    matcher.take(matcher.match(asked(MAIN, 0)), asked(MAIN, 0))
    request = asked(MAIN, 1)
    match = matcher.match(replace(request, messages=request.messages[:-1]))
    assert (match.kind, match.difference.got, match.difference.wanted) == ("result_drift", "", "tool: one")


def test_a_tolerated_change_is_expected_from_then_on():
    matcher = Matcher(trace_of(MAIN))
    changed = path("one", "two", "three", prompt=(Message.system("Another."), Message.user("More."), USER))
    kinds = []
    for step in range(4):
        match = matcher.match(asked(changed, step))
        matcher.take(match, asked(changed, step))
        kinds.append((match.kind, match.call.step))
    assert kinds == [("prompt_drift", 0), ("same", 1), ("same", 2), ("same", 3)]


def test_after_a_change_the_recording_is_found_again_within_the_window():
    far = path(*map(str, range(6)))
    matcher = Matcher(trace_of(far))
    match = matcher.match(asked(far, 3))
    assert (match.kind, match.call.step, match.skipped) == ("reordered", 3, 3)
    assert matcher.match(asked(far, 4)).kind == "missing_call"
    assert Matcher(trace_of(far), window=4).match(asked(far, 4)).kind == "reordered"
    matcher.take(match, asked(far, 3))
    assert matcher.match(asked(far, 4)).kind == "same"
    assert [call.step for call in matcher.open()] == [0, 1, 2, 4, 5, 6]
    assert matcher.match(asked(far, 1)).kind == "same"


def test_an_extra_call_is_none_of_the_recorded():
    matcher = Matcher(trace_of(MAIN))
    match = matcher.match(Asked((Message.user("Something else."),)))
    assert (match.kind, match.call) == ("extra_call", None)
    matcher.take(matcher.match(asked(MAIN, 0)), asked(MAIN, 0))
    match = matcher.match(asked(MAIN, 0))
    assert (match.kind, match.difference.got) == ("extra_call", "once more the request of step 0")


def test_equal_requests_answer_as_often_as_they_were_recorded():
    first, second = path(), replace(path(), steps=(Step(Message.assistant("other")),))
    matcher = Matcher(trace_of(first, second, parents=[None]))
    said = []
    for _ in range(2):
        match = matcher.match(asked(first, 0))
        matcher.take(match, asked(first, 0))
        said.append((match.kind, match.call.action.content))
    assert said == [("same", "done"), ("same", "other")]
    assert matcher.match(asked(first, 0)).kind == "extra_call"


def test_choices_of_one_call_belong_together():
    first, second = path(), replace(path(), steps=(Step(Message.assistant("other")),))
    calls = [Call(0, 0, response_id="r"), Call(0, 1, response_id="r")]
    matcher = Matcher(trace_of(first, second, calls=calls, parents=[None]))
    assert [call.action.content for call in matcher.alike(matcher.match(asked(first, 0)))] == ["other"]
    apart = Matcher(trace_of(first, second, calls=[Call(0, 0, response_id="r"), Call(0, 1, response_id="s")], parents=[None]))
    assert apart.alike(apart.match(asked(first, 0))) == []


def sub(name):
    return path("x", prompt=(Message.system(name), USER))


def test_sub_agents_side_by_side_have_no_order_and_those_after_each_other_have():
    left, right = sub("left"), sub("right")
    beside = Matcher(trace_of(MAIN, left, right, parents=[1, 1]))
    after = Matcher(trace_of(MAIN, left, right, parents=[0, 1]))
    for matcher in (beside, after):
        matcher.take(matcher.match(asked(MAIN, 0)), asked(MAIN, 0))
        assert matcher.match(asked(left, 0)).kind == ("reordered" if matcher is beside else "same")
        assert matcher.match(asked(right, 0)).kind == "reordered"
    assert beside.match(asked(right, 0)).skipped == 1
    assert after.match(asked(right, 0)).skipped == 3


def timed(trajectory, step, start, seconds):
    return Call(step, trajectory, started_at_us=start * 1_000_000, latency_s=seconds)


def test_times_tell_which_contexts_ran_side_by_side():
    left, right, late = sub("left"), sub("right"), sub("late")
    calls = [timed(0, 0, 0, 1), timed(0, 1, 20, 1), timed(0, 2, 30, 1), timed(0, 3, 40, 1)]
    calls += [timed(1, 0, 2, 1), timed(1, 1, 8, 1), timed(2, 0, 4, 1), timed(2, 1, 6, 1), timed(3, 0, 10, 1), timed(3, 1, 12, 1)]
    matcher = Matcher(trace_of(MAIN, left, right, late, parents=[None] * 3, calls=calls))
    matcher.take(matcher.match(asked(MAIN, 0)), asked(MAIN, 0))
    assert matcher.match(asked(left, 0)).kind == "same"
    assert matcher.match(asked(right, 0)).kind == "same"
    assert matcher.match(asked(late, 0)).skipped == 4
    assert matcher.match(asked(MAIN, 1)).skipped == 6
    for trajectory in (right, left):
        for step in range(2):
            match = matcher.match(asked(trajectory, step))
            assert match.kind == "same"
            matcher.take(match, asked(trajectory, step))
    assert matcher.match(asked(late, 0)).kind == "same"


def test_contexts_that_need_not_be_made_are_neither_missed_nor_waited_for():
    matcher = Matcher(trace_of(MAIN, sub("left"), parents=[0], source="chatlog"))
    matcher.take(matcher.match(asked(MAIN, 0)), asked(MAIN, 0))
    assert matcher.match(asked(MAIN, 1)).kind == "reordered"
    matcher.excuse((0, 0))
    assert matcher.match(asked(MAIN, 1)).kind == "same"
    assert {call.trajectory for call in matcher.open()} == {0}
    assert matcher.match(asked(sub("left"), 0)).kind == "same"


def test_texts_of_both_sides_are_mapped():
    def stamped(number):
        return path(f"one at {number}", prompt=(Message.system(f"It is {number}."), USER))

    matcher = Matcher(trace_of(stamped(1)), comparable=lambda text: "".join(c for c in text if not c.isdigit()))
    assert matcher.match(asked(stamped(2), 1)).difference is None
    match = matcher.match(asked(path("two at 2", prompt=(Message.system("It is 2."), USER)), 1))
    assert (match.difference.path, match.difference.got, match.difference.wanted) == ("messages[3].content", "two at ", "one at ")


def test_steps_without_a_call_are_nobodys_request():
    put = replace(MAIN, steps=(MAIN.steps[0], replace(MAIN.steps[1], sampled=False), *MAIN.steps[2:]))
    assert [call.step for call in Matcher(trace_of(put)).calls] == [0, 2, 3]
    assert [call.step for call in Matcher(trace_of(MAIN, calls=[Call(0), Call(2)])).calls] == [0, 2]


def test_conversations_that_a_server_keeps_are_read_in_full():
    kept = Conversations()
    first = kept.in_full(Asked((USER,), instructions=(SYSTEM,)))
    assert first.messages == (SYSTEM, USER)
    kept.answered("r1", first, act(0))
    result = Message.tool("one", "c0")
    assert kept.in_full(Asked((result,), instructions=(SYSTEM,), previous="r1")).messages == (SYSTEM, USER, act(0), result)
    assert kept.in_full(Asked((result,), previous="gone")).messages == (result,)


def test_content_that_is_no_text_counts():
    image = {"type": "image_url", "image_url": {"url": "data:1"}}
    left, right = (
        Message.from_openai({"role": "user", "content": [{"type": "text", "text": "see"}, part]})
        for part in (image, {**image, "image_url": {"url": "data:2"}})
    )
    assert Normaliser().of([left]) != Normaliser().of([right])
    recorded = Trajectory((), (left,), (Step(Message.assistant("x")),))
    match = Matcher(trace_of(recorded)).match(Asked((right,)))
    assert (match.kind, match.difference.path) == ("prompt_drift", "messages[0].content[1].image_url.url")
