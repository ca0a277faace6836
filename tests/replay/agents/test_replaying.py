"""Agents of five kinds, recorded and forked for real, against a server and tools that count what reaches them."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Step, ToolCall
from counterplay.recording import record
from counterplay.reenact import replay_agent, replay_agent_async
from counterplay.replay.effects import tool
from tests.replay.agents import kinds
from tests.replay.agents.kinds import DEFINITIONS, EXECUTED, LAST, PROMPT, SCRIPT, TOOLS, Model, answered, async_client_of, client_of, fresh

ROOT = Path(__file__).parents[3]
TEXT = SCRIPT[-1]


@pytest.fixture(autouse=True)
def _fresh():
    fresh()


@pytest.fixture
def recorded(tmp_path):
    """recorded(agent) -> the trace of one run, and the world as it was before it."""

    def run_it(agent, script=None, **arguments):
        with Model(script) as server, record(tmp_path / "runs.jsonl") as run:
            result = agent(server.base_url, **arguments)
            if asyncio.iscoroutine(result):
                with ThreadPoolExecutor(1) as pool:
                    result = pool.submit(asyncio.run, result).result()
        fresh()
        return run.trace()

    return run_it


def replayed(agent, trace, script=None, arguments=None, **options):
    """The replay, and how many requests reached the server."""
    fresh()
    with Model(script) as server:
        replay = replay_agent(agent, trace, arguments={"url": server.base_url, **(arguments or {})}, timeout_s=20, **options)
        return replay, len(server.requests)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_each_kind_of_agent_does_what_its_recording_says_without_a_model_or_a_tool(kind, recorded):
    agent = kinds.KINDS[kind]
    trace = recorded(agent)
    assert len(trace.trajectory) == len(SCRIPT)
    replay, requests = replayed(agent, trace)
    assert (replay.interruption, replay.error) == ("", None)
    assert replay.returned == TEXT
    assert replay.classes == {"same": len(SCRIPT)}
    assert replay.missing == ()
    assert replay.faithful
    assert (requests, replay.model_calls, dict(EXECUTED)) == (0, 0, {})
    assert replay.trajectory == trace.trajectory


@pytest.mark.parametrize("at", [0, 2, LAST])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_fork_asks_the_model_from_there_on_and_nobody_before(kind, at, recorded):
    agent = kinds.KINDS[kind]
    trace = recorded(agent)
    replay, requests = replayed(agent, trace, script=["So be it."], at=at)
    assert (replay.interruption, replay.error) == ("", None)
    assert replay.returned == "So be it."
    assert (requests, replay.model_calls, dict(EXECUTED)) == (1, 1, {})
    assert replay.classes == {"same": at + 1}
    assert replay.forked_at == at
    assert replay.trajectory.prefix(at).messages == trace.trajectory.prefix(at).messages
    assert replay.trajectory.steps[-1].action.content == "So be it."
    assert replay.trajectory.steps[-1].terminated
    assert replay.trajectory.grade == Grade.EXACT


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_counterfactual_action_is_played_and_its_tools_are_answered_by_the_recording(kind, at, recorded):
    agent = kinds.KINDS[kind]
    trace = recorded(agent)
    action = Message.assistant(None, [ToolCall("other", "look_up", '{"order": 2}')])
    replay, requests = replayed(agent, trace, script=["Enough."], at=at, action=action)
    assert (replay.interruption, replay.error) == ("", None)
    assert (requests, dict(EXECUTED)) == (1, {})
    step = replay.trajectory.steps[at]
    assert (step.action, step.grades) == (action, (Grade.REUSED,)) or (at == 0 and step.grade == Grade.EXACT)
    assert json.loads(step.observations[0].content_text) == {"paid": 8, "refunded": 0}
    assert replay.trajectory.steps[-1].terminated
    assert replay.returned == "Enough."


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"at": 3}, {"at": 3, "sample": "none"}, {"at": 0}, {"at": 3, "execute_tools": ["refund", "look_up"]}]
)
def test_mail_is_sent_in_no_mode_unless_it_is_named(kind, options, recorded):
    agent = kinds.KINDS[kind]
    trace = recorded(agent)
    mail = Message.assistant(None, [ToolCall("m", "send_mail", '{"to": "all@example.org", "text": "Hi"}')])
    replay, _ = replayed(agent, trace, **(options | {"action": mail} if "at" in options else options))
    assert EXECUTED["send_mail"] == 0
    if "at" in options:
        assert "send_mail was not executed" in replay.interruption
        assert replay.trajectory.steps[-1].truncated
    live, _ = replayed(agent, trace, script=[[("send_mail", {"to": "x", "text": "y"})]], at=1)
    assert EXECUTED["send_mail"] == 0
    assert "send_mail was not executed" in live.interruption


def test_mail_that_is_named_is_sent_once_on_the_branch_and_never_in_the_prefix(recorded):
    trace = recorded(kinds.plain)
    mail = Message.assistant(None, [ToolCall("m", "send_mail", '{"to": "all@example.org", "text": "Hi"}')])
    replay, _ = replayed(kinds.plain, trace, script=["Done."], at=LAST, action=mail, execute_tools=["send_mail"])
    assert dict(EXECUTED) == {"send_mail": 1}
    assert replay.executed == {"send_mail": 1}
    assert replay.trajectory.steps[LAST].grades == (Grade.EXECUTED,)
    assert replay.returned == "Done."


def test_after_a_write_on_the_branch_a_recorded_read_is_not_given_again(recorded):
    trace = recorded(kinds.plain)
    write = Message.assistant(None, [ToolCall("w", "refund", '{"order": 1, "amount": 7}')])
    replay, _ = replayed(kinds.plain, trace, script=SCRIPT[:1] * 9, at=1, action=write)
    assert "refund was not executed" in replay.interruption
    replay, _ = replayed(kinds.plain, trace, script=[[("look_up", {"order": 1})]], at=1, action=write, execute_tools=["refund"])
    assert "look_up was not executed" in replay.interruption
    assert dict(EXECUTED) == {"refund": 1}
    script = [[("look_up", {"order": 2})], [("look_up", {"order": 2})], [("look_up", {"order": 2})], "Fine."]
    replay, _ = replayed(kinds.plain, trace, script=script, at=1, action=write, execute_tools=["refund"])
    assert replay.returned == "Fine."
    assert [step.grade.name for step in replay.trajectory.steps] == ["EXACT", "EXECUTED", "REUSED", "EXACT"]


def test_a_write_in_the_very_action_counts_too(recorded):
    trace = recorded(kinds.plain)
    both = Message.assistant(None, [ToolCall("w", "refund", '{"order": 1, "amount": 7}'), *trace.trajectory.steps[0].action.tool_calls])
    replay, requests = replayed(kinds.plain, trace, at=0, action=both, execute_tools=["refund"])
    assert "look_up was not executed" in replay.interruption
    assert '"amount":7' in replay.interruption
    assert (requests, dict(EXECUTED)) == (0, {"refund": 1})


def test_a_write_of_the_agents_own_counts_too(recorded):
    trace = recorded(kinds.plain)

    def generous(order, amount):
        TOOLS["refund"](order=order, amount=amount + 1)
        return TOOLS["refund"](order=order, amount=amount)

    said = Message.assistant("Generously.", list(trace.trajectory.steps[1].action.tool_calls))
    options = {"arguments": {"tools": {**TOOLS, "refund": generous}}, "execute_tools": ["refund"]}
    replay, _ = replayed(kinds.plain, trace, at=1, action=said, **options)
    assert "look_up was not executed" in replay.interruption


def test_the_write_of_the_log_keeps_its_reads_true(recorded):
    trace = recorded(kinds.plain)
    same = trace.trajectory.steps[1].action
    other = Message.assistant("First this.", list(same.tool_calls))
    replay, requests = replayed(kinds.plain, trace, at=1, action=other)
    assert requests == 3
    assert replay.returned == TEXT
    assert dict(EXECUTED) == {}
    assert replay.trajectory.grade == Grade.EXACT
    assert [m.content_text for m in replay.trajectory.messages if m.role == "tool"] == [
        m.content_text for m in trace.trajectory.messages if m.role == "tool"
    ]


class Desk:
    """An environment for the branch; it keeps what it was asked."""

    def __init__(self):
        self.asked = []

    async def step(self, state, action):
        await asyncio.sleep(0)
        self.asked.append((state, action))
        call = action.tool_calls[0]
        if call.name == "send_mail":
            return Step(action, truncated=True, error="no mail here")
        return Step(action, (Message.tool('{"paid": 1, "refunded": 2}', call.id),), grades=(Grade.SIMULATED,))


def test_what_the_recording_lacks_is_asked_of_the_environment_in_the_state_of_the_branch(recorded):
    trace, desk = recorded(kinds.plain), Desk()
    action = Message.assistant(None, [ToolCall("a", "look_up", '{"order": 2}'), ToolCall("b", "look_up", '{"order": 3}')])
    replay, _ = replayed(kinds.plain, trace, script=["Well."], at=2, action=action, environment=desk)
    assert replay.interruption == ""
    assert replay.trajectory.steps[2].grades == (Grade.REUSED, Grade.SIMULATED)
    assert [message.content_text for message in replay.trajectory.steps[2].observations][1] == '{"paid": 1, "refunded": 2}'
    ((state, asked),) = desk.asked
    assert state.prefix(2) == trace.trajectory.prefix(2)
    assert [step.action.signature for step in state.steps[2:]] == ['look_up({"order":2})']
    assert asked.signature == 'look_up({"order":3})'
    mail = Message.assistant(None, [ToolCall("m", "send_mail", '{"to": "a", "text": "b"}')])
    replay, _ = replayed(kinds.plain, trace, at=2, action=mail, environment=desk)
    assert "no mail here" in replay.interruption


def test_one_step_where_nobody_is_to_be_asked_after_it(recorded):
    trace = recorded(kinds.plain)
    replay, requests = replayed(kinds.plain, trace, at=2, action=trace.trajectory.steps[0].action, sample="none")
    assert requests == 0
    assert (replay.interruption, replay.error, replay.returned) == ("", None, None)
    assert len(replay.trajectory) == 3
    assert not replay.trajectory.finished
    replay, requests = replayed(kinds.plain, trace, at=2, sample="none")
    assert requests == 0
    assert replay.trajectory.messages == trace.trajectory.prefix(2).messages


# What an agent's code may do to a divergence


def changed(**options):
    """The agent, with another system prompt."""
    return {"prompt": [{"role": "system", "content": "You keep orders well."}, PROMPT[1]], **options}


def test_an_agent_that_catches_everything_can_not_go_on(recorded):
    trace = recorded(kinds.catcher)
    kinds.PROMPT[0]["content"], kept = "You are another.", kinds.PROMPT[0]["content"]
    try:
        replay, requests = replayed(kinds.catcher, trace)
    finally:
        kinds.PROMPT[0]["content"] = kept
    assert replay.interruption.startswith("prompt drift at step 0")
    assert replay.returned is None
    assert (requests, dict(EXECUTED)) == (0, {})
    assert replay.trajectory.steps == ()


async def gathering(url):
    """Takes exceptions for values, and goes on."""

    async def one(client, text):
        messages = [PROMPT[0], {"role": "user", "content": text}]
        return (await client.chat.completions.create(model="m", messages=messages)).choices[0].message.content

    async with async_client_of(url) as client:
        found = await asyncio.gather(*(one(client, text) for text in ("one", "two", "three")), return_exceptions=True)
        found += await asyncio.gather(one(client, "four"), return_exceptions=True)
        return [str(each) for each in found]


async def test_gathered_exceptions_are_no_way_out(recorded):
    trace = recorded(gathering, script=["yes"])

    async def other(url):
        return await gathering(url) + [(await gathering(url))[-1]]

    with Model(["yes"]) as server:
        replay = await replay_agent_async(gathering, trace, arguments={"url": server.base_url})
        assert replay.returned == ["yes"] * 4
        replay = await replay_agent_async(other, trace, arguments={"url": server.base_url})
        assert replay.interruption.startswith("extra call at a request that was not recorded")
        assert "once more" in replay.interruption
        assert (replay.returned, server.requests) == (None, [])


def test_an_agent_of_its_own_error_and_one_that_gives_pieces(recorded):
    trace = recorded(kinds.plain)

    def broken(url):
        kinds.plain(url)
        raise RuntimeError("boom")

    def giving(url):
        yield kinds.plain(url)
        yield 2

    async def agiving(url):
        yield await kinds.parallel(url)

    replay, _ = replayed(broken, trace)
    assert str(replay.error) == "boom"
    replay, _ = replayed(broken, trace, at=LAST, script=["x"])
    assert replay.trajectory.steps[-1].error == "RuntimeError: boom"
    assert replayed(giving, trace)[0].returned == [TEXT, 2]
    assert replayed(agiving, trace)[0].returned == [TEXT]


def test_threads_of_the_agents_own_end_quietly(recorded):
    trace = recorded(kinds.plain)

    def threaded(url):
        worker = threading.Thread(target=once, args=(client_of(url), "something else"))
        worker.start()
        worker.join()
        return "fine"

    replay, requests = replayed(threaded, trace)
    assert "extra call" in replay.interruption
    assert requests == 0


def test_tools_that_failed_fail_again(recorded):
    @tool(effect="read(order:{order})", name="look_up")
    def failing(order: int) -> str:
        """One order."""
        EXECUTED["look_up"] += 1
        raise LookupError(f"no order {order}")

    def careful(order):
        try:
            return failing(order=order)
        except LookupError as error:
            return f"{type(error).__name__}: {error}"

    def agent(url):
        return kinds.plain(url, tools={**TOOLS, "look_up": careful})

    trace = recorded(agent)
    assert trace.trajectory.steps[0].observations[0].content == "LookupError: no order 1"
    replay, _ = replayed(agent, trace)
    assert replay.faithful
    assert dict(EXECUTED) == {}


def test_a_result_that_is_no_data_stops_the_re_enactment_and_names_the_tool(recorded):
    @tool(effect="pure", name="look_up")
    def odd(order: int):
        """One order."""
        return {1, 2}

    def agent(url):
        return kinds.plain(url, tools={**TOOLS, "look_up": lambda order: sorted(odd(order=order))})

    replay, _ = replayed(agent, recorded(agent))
    assert "what look_up gave is no JSON data" in replay.interruption


def test_what_is_no_chat_is_not_in_the_recording(recorded):
    trace = recorded(kinds.plain)

    def embedding(url):
        with client_of(url) as client:
            client.embeddings.create(model="e", input="x")

    replay, requests = replayed(embedding, trace)
    assert "/v1/embeddings asks no chat model" in replay.interruption
    assert requests == 0


def test_python_ends_though_a_pool_was_left_behind(tmp_path):
    program = """
from counterplay.core.nouns import *
from counterplay.reenact import replay_agent
from tests.replay.agents.left_behind import endless_pool
trace = Trace("t", Trajectory((), (Message.user("x"),), (Step(Message.assistant("y")),)), Source("chatlog"))
print(replay_agent(endless_pool, trace, arguments={"url": "http://127.0.0.1:9/v1"}).abandoned)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_nothing_reaches_out_beside_models_and_tools(recorded):
    import urllib.request

    trace = recorded(kinds.plain)

    def calling_home(url):
        with suppress(BaseException):
            urllib.request.urlopen(url.replace("/v1", "/home"))
        return kinds.plain(url)

    replay, requests = replayed(calling_home, trace)
    assert "was about to go live" in replay.interruption
    assert requests == 0


# What differs


def kind_of(recorded, agent, other, script=None, other_arguments=None, **options):
    trace = recorded(agent, script)
    replay, requests = replayed(other, trace, script, arguments=other_arguments, **options)
    assert (requests, dict(EXECUTED)) == (0, {})
    return replay


def test_prompt_drift_names_the_message(recorded):
    replay = kind_of(recorded, kinds.plain, kinds.plain, other_arguments=changed())
    (seen,) = replay.divergences
    assert (seen.kind, seen.step, seen.difference.path, seen.difference.message) == ("prompt_drift", 0, "messages[0].content", 0)
    assert (seen.difference.got, seen.difference.wanted) == ("You keep orders well.", "You keep orders.")
    assert replay.interruption


def test_argument_drift_of_the_request(recorded):
    replay = kind_of(recorded, kinds.plain, kinds.plain, other_arguments={"temperature": 0.3})
    assert str(replay.divergences[0]) == "argument drift at step 0: temperature: got 0.3, wanted nothing"
    definitions = json.loads(json.dumps(DEFINITIONS))
    definitions[1]["function"]["description"] = "pay back"
    replay = kind_of(recorded, kinds.plain, kinds.plain, other_arguments={"definitions": definitions})
    assert str(replay.divergences[0]) == "argument drift at step 0: tools[1].function.description: got pay back, wanted refund"


def rewriting(url, change):
    """Changes its messages before each request."""

    class Rewritten(list):
        def append(self, message):
            super().append(change(message))

    return kinds.plain(url, prompt=Rewritten(PROMPT))


def edited(url):
    """Changes what the model called."""
    with client_of(url) as client:
        messages = [*PROMPT]
        for _ in range(2):
            said = client.chat.completions.create(model="m", messages=messages, tools=DEFINITIONS).choices[0].message
            sent = said.model_dump(exclude_none=True)
            sent["tool_calls"][1]["function"]["arguments"] = '{"order": 3}'
            messages.append(sent)
            messages += [answered(call.id, TOOLS[call.function.name](**json.loads(call.function.arguments))) for call in said.tool_calls]
        return messages


def test_argument_drift_of_a_tool_call(recorded):
    replay = kind_of(recorded, kinds.plain, edited)
    seen = replay.divergences[0]
    assert (seen.kind, seen.step, seen.difference.message) == ("argument_drift", 1, 2)
    assert seen.difference.path == "messages[2].tool_calls[1].function.arguments.order"
    assert (seen.difference.got, seen.difference.wanted) == ("3", "2")


def test_argument_drift_of_a_tool_that_is_called_otherwise_in_the_prefix(recorded):
    def other(order):
        return TOOLS["look_up"](order=order + 5)

    replay = kind_of(recorded, kinds.plain, kinds.plain, other_arguments={"tools": {**TOOLS, "look_up": other}})
    seen = replay.divergences[0]
    assert (seen.kind, seen.tool, seen.step) == ("argument_drift", "look_up", 0)
    assert (seen.difference.got, seen.difference.wanted) == ('look_up({"order":6})', 'look_up({"order":1})')


def test_a_tool_call_that_was_not_recorded_in_the_prefix(recorded):
    def twice(order):
        TOOLS["send_mail"](to="me", text="looking")
        return TOOLS["look_up"](order=order)

    trace = recorded(kinds.plain, script=[[("look_up", {"order": 1})], "Done."])
    replay, _ = replayed(kinds.plain, trace, arguments={"tools": {**TOOLS, "look_up": twice}}, execute_tools=["send_mail"])
    assert (replay.divergences[0].kind, replay.divergences[0].tool) == ("extra_call", "send_mail")
    assert dict(EXECUTED) == {}
    for mode in ("warn", "live"):
        options = {"execute_tools": ["send_mail"], "environment": Desk(), "on_divergence": mode}
        replay, _ = replayed(kinds.plain, trace, arguments={"tools": {**TOOLS, "look_up": twice}}, **options)
        assert "before the fork nothing is executed" in replay.interruption
        assert (dict(EXECUTED), options["environment"].asked) == ({}, [])


def test_result_drift(recorded):
    def other(order):
        return {**TOOLS["look_up"](order=order), "note": "new"}

    replay = kind_of(recorded, kinds.plain, kinds.plain, other_arguments={"tools": {**TOOLS, "look_up": other}})
    seen = replay.divergences[0]
    assert (seen.kind, seen.step, seen.difference.path) == ("result_drift", 1, "messages[3].content")
    assert '"note": "new"' in seen.difference.got


def once(client, text, said=None):
    messages = [{"role": "system", "content": "One word."}, {"role": "user", "content": text}]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}] if said else []
    return client.chat.completions.create(model="m", messages=messages).choices[0].message.content


def asking(*texts):
    """An agent that asks separate things, one after the other."""

    def agent(url):
        with client_of(url) as client:
            return [once(client, text) for text in texts]

    return agent


NAMES = ("alpha plan", "beta check", "gamma write", "delta read", "epsilon send", "zeta stop")


def test_reordered_requests_are_answered_truly_and_named(recorded):
    replay = kind_of(recorded, asking(*NAMES[:4]), asking(NAMES[0], NAMES[2], NAMES[1], NAMES[3]), ["yes"])
    assert replay.classes == {"same": 3, "reordered": 1}
    assert replay.returned == ["yes"] * 4
    assert replay.faithful


def test_extra_call(recorded):
    def planning(url):
        with client_of(url) as client:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Make a plan."}])
        return kinds.plain(url)

    replay = kind_of(recorded, kinds.plain, planning)
    said = "extra call at a request that was not recorded: got user: Make a plan., wanted the request of step 0"
    assert [str(seen) for seen in replay.divergences] == [said]
    replay = kind_of(recorded, asking(*NAMES[:2]), asking(*NAMES[:2], NAMES[1]), ["yes"])
    assert replay.divergences[-1].kind == "extra_call"
    assert "once more the request of" in str(replay.divergences[-1])
    replay = kind_of(recorded, asking(*NAMES[:2]), asking(*NAMES[:3]), ["yes"])
    assert str(replay.divergences[-1]).endswith("wanted no further request: the recording is over")
    assert replay.returned is None


def test_missing_call(recorded):
    replay = kind_of(recorded, asking(*NAMES[:3]), asking(NAMES[0], NAMES[1]), ["yes"])
    assert replay.classes == {"same": 2, "missing_call": 1}
    assert len(replay.missing) == 1
    assert not replay.faithful
    assert replay.returned == ["yes", "yes"]
    replay = kind_of(recorded, asking(*NAMES), asking(NAMES[0], NAMES[5]), ["yes"])
    assert replay.classes == {"same": 1, "missing_call": 1}
    assert "first the requests of" in replay.interruption
    replay = kind_of(recorded, asking(*NAMES[:4]), asking(NAMES[0], NAMES[2], NAMES[3]), ["yes"])
    assert replay.classes == {"same": 2, "reordered": 1, "missing_call": 1}


def test_a_call_that_is_missing_before_the_fork(recorded):
    trace = recorded(asking(*NAMES[:3]), ["yes"])
    options = {"at": 0, "trajectory": 2, "script": ["no"]}
    replay, requests = replayed(asking(NAMES[0], NAMES[2]), trace, **options)
    assert "missing call at step 0 of sub-trajectory 2" in replay.interruption
    assert requests == 0
    replay, requests = replayed(asking(NAMES[0], NAMES[2]), trace, **options, on_divergence="warn")
    assert (replay.returned, requests) == (["yes", "no"], 1)


def test_a_context_that_took_over_from_the_forked_one_is_live_as_well(recorded):
    trace = recorded(asking(*NAMES[:3]), ["yes"])
    assert [sub.continues for sub in trace.sub_trajectories] == [0, 1]
    replay, requests = replayed(asking(*NAMES[:3]), trace, at=0, script=["no"])
    assert (replay.returned, requests) == (["no"] * 3, 3)
    replay, requests = replayed(asking(*NAMES[:3]), trace, at=0, trajectory=1, script=["no"])
    assert (replay.returned, requests) == (["yes", "no", "no"], 2)


def test_a_tolerated_divergence_is_one_and_the_rest_is_the_same(recorded):
    trace = recorded(kinds.plain)
    replay, requests = replayed(kinds.plain, trace, arguments=changed(), on_divergence="warn")
    assert replay.classes == {"same": len(SCRIPT) - 1, "prompt_drift": 1}
    assert (replay.returned, replay.interruption, requests) == (TEXT, "", 0)
    assert not replay.faithful
    replay, _ = replayed(kinds.plain, trace, arguments={"temperature": 0.3}, on_divergence="warn")
    assert replay.classes == {"same": len(SCRIPT) - 1, "argument_drift": 1}


def test_a_tolerated_divergence_shows_in_the_branch(recorded):
    trace = recorded(kinds.plain)
    replay, requests = replayed(kinds.plain, trace, arguments=changed(), on_divergence="warn", at=0, script=["x"])
    assert requests == 1
    assert replay.trajectory.prompt[0].content == "You keep orders well."


def test_going_live_at_the_divergence(recorded):
    trace = recorded(kinds.plain)

    def other(order):
        return {**TOOLS["look_up"](order=order), "note": "new"}

    options = {"arguments": {"tools": {**TOOLS, "look_up": other}}, "on_divergence": "live"}
    replay, requests = replayed(kinds.plain, trace, script=["a", "I see."], **options)
    assert (requests, replay.forked_at, replay.returned) == (1, 1, "I see.")
    assert '"note": "new"' in replay.trajectory.steps[0].observations[0].content_text
    assert replay.trajectory.steps[0].grades == (Grade.EXECUTED, Grade.EXECUTED)
    assert replay.trajectory.tools == trace.trajectory.tools


def test_texts_are_mapped_before_they_are_compared(recorded):
    now = iter(range(100))

    def timed(url):
        return kinds.plain(url, prompt=[{"role": "system", "content": f"It is {next(now)} o'clock."}, PROMPT[1]])

    trace = recorded(timed)
    replay, _ = replayed(timed, trace)
    assert replay.classes == {"prompt_drift": 1}
    replay, _ = replayed(timed, trace, comparable=lambda text: "" if "o'clock" in text else text)
    assert replay.classes == {"same": len(SCRIPT)}


def falling_back(url):
    """Asks another model where the first one fails."""
    with client_of(url, max_retries=1) as client:
        messages = [*PROMPT]
        for _ in SCRIPT:
            try:
                completion = client.chat.completions.create(model="large", messages=messages, tools=DEFINITIONS)
            except openai.RateLimitError:
                completion = client.chat.completions.create(model="small", messages=messages, tools=DEFINITIONS)
            said = completion.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            messages += [answered(c.id, TOOLS[c.function.name](**json.loads(c.function.arguments))) for c in said.tool_calls or ()]
        return said.content


def test_a_model_that_failed_fails_again(recorded, tmp_path):
    with Model() as server, record(tmp_path / "failing.jsonl") as run:
        busy = (429, {"error": {"message": "too many"}}, {"retry-after-ms": "1"})
        server.script.extend([busy, busy])
        falling_back(server.base_url)
    trace = run.trace()
    assert len(trace.metadata["retries"]) == 2
    replay, requests = replayed(falling_back, trace)
    assert (replay.interruption, replay.error, requests) == ("", None, 0)
    assert replay.classes == {"same": len(SCRIPT)}
    replay, requests = replayed(falling_back, trace, at=LAST, script=["x"])
    assert (replay.returned, requests) == ("x", 1)


# Sub-agents


def manager(order, late=None):
    """Asks three sub-agents side by side, in the given order, then says what they found."""

    async def sub(client, name):
        messages = [{"role": "system", "content": f"You are {name}."}, {"role": "user", "content": "Look at order 1."}]
        if name == late:
            await asyncio.sleep(0.02)
        for _ in range(2):
            said = (await client.chat.completions.create(model="m", messages=messages)).choices[0].message
            messages += [said.model_dump(exclude_none=True), {"role": "user", "content": "Go on."}]
        return f"{name}: {said.content}"

    async def agent(url):
        async with async_client_of(url) as client:
            messages = [*PROMPT]
            said = (await client.chat.completions.create(model="m", messages=messages)).choices[0].message
            found = sorted(await asyncio.gather(*(sub(client, name) for name in order)))
            messages += [said.model_dump(exclude_none=True), {"role": "user", "content": "; ".join(found)}]
            return (await client.chat.completions.create(model="m", messages=messages)).choices[0].message.content

    return agent


SUBS = ["first", "second", "third", "fourth", "fifth"]


def test_sub_agents_side_by_side_match_in_whatever_order_they_come(recorded):
    trace = recorded(manager(SUBS), script=["a", "b"])
    assert len(trace.sub_trajectories) == 5
    for agent in (manager(SUBS), manager(SUBS[::-1]), manager(SUBS[::-1], late="third")):
        replay, requests = replayed(agent, trace)
        assert replay.classes == {"same": 12}, replay.divergences
        assert (replay.returned, requests) == ("b", 0)


def test_a_fork_of_the_main_line_keeps_the_sub_agents_before_it(recorded):
    trace = recorded(manager(SUBS), script=["a", "b"])
    replay, requests = replayed(manager(SUBS), trace, script=["x", "c"], at=1)
    assert (replay.returned, requests) == ("c", 1)
    assert replay.classes == {"same": 12}


def test_a_sub_agent_that_asks_what_was_recorded_is_answered_after_the_fork(recorded):
    trace = recorded(manager(SUBS), script=["a", "b"])
    replay, requests = replayed(manager(SUBS), trace, script=["x", "c"], at=0)
    assert requests == 2
    assert replay.returned == "c"
    assert [step.action.content for step in replay.trajectory.steps] == ["x", "c"]
    replay, requests = replayed(manager(["sixth", *SUBS]), trace, script=["x", "c"], at=0)
    assert requests == 4
    assert len(replay.sub_trajectories) == 1
    assert replay.sub_trajectories[0].trajectory.prompt[0].content == "You are sixth."


def test_a_fork_in_a_sub_agent(recorded):
    trace = recorded(manager(SUBS), script=["a", "b"])
    replay, requests = replayed(manager(SUBS), trace, script=["x", "c"], at=1, trajectory=2)
    assert replay.interruption == ""
    assert replay.trajectory.prompt == trace.sub_trajectories[1].trajectory.prompt
    assert requests >= 1
    assert replay.returned == "c"


def drawing(order, together=True):
    """Sub-agents, side by side or one after the other, that call one tool alike, which answers each otherwise."""
    draws = iter(range(100))

    @tool(effect="external")
    async def draw() -> int:
        """A number."""
        return next(draws)

    async def sub(client, name):
        messages = [{"role": "system", "content": f"You are {name}."}, {"role": "user", "content": "Draw."}]
        said = (await client.chat.completions.create(model="m", messages=messages)).choices[0].message
        messages += [said.model_dump(exclude_none=True), answered(said.tool_calls[0].id, await draw())]
        await client.chat.completions.create(model="m", messages=messages)
        return messages[-1]["content"]

    async def agent(url):
        async with async_client_of(url) as client:
            if not together:
                return {name: await sub(client, name) for name in order}
            return dict(zip(order, await asyncio.gather(*(sub(client, name) for name in order)), strict=True))

    return agent


def test_a_tool_gives_each_sub_agent_what_it_was_given(recorded):
    trace = recorded(drawing(SUBS[:3], together=False), script=[[("draw", {})], "Thanks."])
    for order in (SUBS[:3], SUBS[2::-1]):
        replay, _ = replayed(drawing(order), trace, window=9)
        assert replay.faithful, replay.divergences
        assert replay.returned == {"first": "0", "second": "1", "third": "2"}


def test_models_inside_of_a_tool_that_the_recording_answers_are_not_missed(recorded):
    def expert(order):
        with client_of(expert.url) as client:
            return {"said": once(client, f"order {order}", said="Let me see.")}

    def look_up(order: int) -> dict[str, str]:
        """An expert's word."""
        return expert(order)

    expert_tool = tool(effect="pure")(look_up)

    def agent(url):
        expert.url = url
        return kinds.plain(url, tools={**TOOLS, "look_up": expert_tool})

    trace = recorded(agent, script=[[("look_up", {"order": 1})], "Done."])
    assert trace.sub_trajectories
    replay, requests = replayed(agent, trace)
    assert replay.faithful, replay
    assert requests == 0
    assert replay.missing == ()


# Other ways to give a trace, and to be wrong


def test_a_step_that_can_not_be_forked_is_refused(recorded):
    trace = recorded(kinds.plain)
    with pytest.raises(UserError, match="fork step 9"):
        replay_agent(kinds.plain, trace, at=9)
    with pytest.raises(UserError, match="over before it"):
        replay_agent(kinds.plain, trace, at=len(SCRIPT))


def test_a_log_without_tool_runs_answers_tools_by_their_observations(recorded):
    def telling(url):
        return kinds.plain(url, tools={"refund": TOOLS["refund"], "send_mail": TOOLS["send_mail"], "look_up": untyped})

    @tool(effect="read(order:{order})", name="look_up")
    def untyped(order: int):
        return json.dumps(TOOLS["look_up"](order=order))

    trace = recorded(telling)
    bare = replace(trace, metadata={}, calls=())
    replay, requests = replayed(telling, bare)
    assert replay.classes == {"same": len(SCRIPT)}
    assert (replay.returned, requests) == (TEXT, 0)


def test_time_and_chance_are_those_of_the_recording(tmp_path):
    import random
    import uuid

    def chancy(url):
        return kinds.plain(url, prompt=[{"role": "system", "content": f"{random.random()} {uuid.uuid4()}"}, PROMPT[1]])

    with Model() as server, record(tmp_path / "pinned.jsonl", pin=True) as run:
        chancy(server.base_url)
    trace = run.trace()
    assert replayed(chancy, trace)[0].faithful
    assert replayed(chancy, trace, pin=False)[0].classes == {"prompt_drift": 1}
    began = time.time()
    assert replayed(lambda url: time.time(), trace, clock=True)[0].returned < began


def test_agents_that_end_leave_no_thread_behind(recorded):
    trace = recorded(kinds.plain)
    before = set(threading.enumerate())
    for options in ({}, {"at": 1, "sample": "none"}, {"arguments": changed()}):
        replayed(kinds.plain, trace, **options)
    left = [thread for thread in threading.enumerate() if thread.name == "counterplay-agent" and thread not in before]
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()
