"""The front door to re-enactment: traces from a file or a store, agents by name, what a person reads; and agents of other APIs."""

import json
import sys

import pytest

from counterplay.console import plain
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolCall
from counterplay.core.store import Store
from counterplay.recording import record
from counterplay.reenact import agent_environment, reenact_all, replay_agent, replay_agent_async, report_of, shown, trace_of
from tests.replay.agents import kinds
from tests.replay.agents.kinds import EXECUTED, LAST, PROMPT, SCRIPT, TOOLS, Model, client_of, fresh
from tests.replay.loopback import Loopback


@pytest.fixture
def server():
    fresh()
    with Model() as model:
        yield model


def recorded(server, to, agent=kinds.plain):
    with record(to) as run:
        agent(server.base_url)
    fresh()
    server.requests.clear()
    return run


def test_a_trace_may_be_a_tape(server, tmp_path):
    tape = tmp_path / "runs.jsonl"
    first = recorded(server, tape)
    options = {"arguments": {"url": server.base_url}}
    assert replay_agent(kinds.plain, tape, **options).faithful
    second = recorded(server, tape, kinds.streamer)
    with pytest.raises(UserError, match="holds 2 traces"):
        replay_agent(kinds.plain, str(tape), **options)
    assert replay_agent(kinds.plain, f"{tape}#{first.id}", **options).faithful
    assert replay_agent(kinds.streamer, f"{tape}#{second.trace().id}", **options).faithful
    with pytest.raises(UserError, match="0 of them nothing"):
        replay_agent(kinds.plain, f"{tape}#nothing", **options)
    assert server.requests == []


async def test_a_trace_may_be_in_a_store_that_redacts(server, tmp_path):
    secret = "sk-proj-" + "a1B2c3D4e5F6g7H8" * 3

    def telling(url):
        return kinds.plain(url, prompt=[{"role": "system", "content": f"The key is {secret}."}, PROMPT[1]])

    with Store.open(tmp_path / "s.duckdb") as store:
        trace = recorded(server, store, telling).trace()
        held = await trace_of(trace.id, store)
        assert secret not in held.trajectory.prompt[0].content
        options = {"arguments": {"url": server.base_url}, "store": store}
        assert (await replay_agent_async(telling, trace.id, **options)).faithful
        replay = await replay_agent_async(telling, trace.id, **options, comparable=str)
        assert replay.classes == {"prompt_drift": 1}
        environment = agent_environment(telling, trace.id, **options)
        assert (await environment.step(held.trajectory.prefix(1), Message.assistant("End."))).terminated


def test_an_agent_may_be_named(server, tmp_path, monkeypatch):
    trace = recorded(server, tmp_path / "runs.jsonl").trace()
    (tmp_path / "my_agent.py").write_text("from tests.replay.agents.kinds import plain\nNUMBER = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert replay_agent("my_agent:plain", trace, arguments={"url": server.base_url}).faithful
    (report,) = reenact_all("my_agent:plain", [trace], arguments={"url": server.base_url}, at=1, execute_tools=["refund"])
    assert (report.faithful, report.forked_at, report.model_calls, dict(report.executed)) == (True, 1, 4, {})
    with pytest.raises(UserError, match="a int"):
        replay_agent("my_agent:NUMBER", trace)


def test_a_report_says_what_differed_first(server, tmp_path):
    trace = recorded(server, tmp_path / "runs.jsonl").trace()
    url = {"url": server.base_url}
    good = report_of(trace, replay_agent(kinds.plain, trace, arguments=url))
    assert (good.faithful, good.first_divergence, dict(good.classes)) == (True, None, {"same": len(SCRIPT)})
    bad = report_of(trace, replay_agent(kinds.plain, trace, arguments={**url, "temperature": 0.5}))
    assert not bad.faithful
    assert bad.first_divergence["path"] == "temperature"
    assert json.loads(json.dumps(plain(bad)))["first_divergence"]["kind"] == "argument_drift"
    assert len(shown(good)) == 2
    assert len(shown(bad)) == 3


def test_an_agent_that_failed_when_it_was_recorded_is_to_fail_again(server, tmp_path):
    def failing(url):
        kinds.plain(url)
        raise KeyError("lost")

    with pytest.raises(KeyError), record(tmp_path / "runs.jsonl") as run:
        failing(server.base_url)
    trace = run.trace()
    assert report_of(trace, replay_agent(failing, trace, arguments={"url": server.base_url})).faithful
    assert not report_of(trace, replay_agent(kinds.plain, trace, arguments={"url": server.base_url})).faithful


class Responding(Loopback):
    """A server of the Responses API that keeps the conversation: answer k goes on from the answer that the request names."""

    def __init__(self, script):
        super().__init__(default=self._answer)
        self.plays = script

    def _answer(self, request):
        before = request.get("previous_response_id")
        number = int(before.split("_")[1]) + 1 if before and before.split("_")[1].isdigit() else 0
        number += sum(item.get("type") == "reasoning" for item in request["input"])
        play = self.plays[min(number, len(self.plays) - 1)]
        if isinstance(play, str):
            content = [{"type": "output_text", "text": play, "annotations": []}]
            output = [{"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "content": content}]
        else:
            output = [{"type": "reasoning", "id": f"rs_{number}", "summary": [{"type": "summary_text", "text": "Hm."}]}]
            for at, (name, arguments) in enumerate(play):
                head = {"type": "function_call", "id": f"fc_{number}_{at}", "call_id": f"call_{number}_{at}", "status": "completed"}
                output.append({**head, "name": name, "arguments": json.dumps(arguments)})
        body = {"id": f"resp_{number}", "object": "response", "created_at": 1, "status": "completed", "model": "m", "output": output}
        body |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        if not request.get("stream"):
            return body
        event = f"event: response.completed\ndata: {json.dumps({'type': 'response.completed', 'sequence_number': 0, 'response': body})}\n\n"
        return (200, event.encode(), {"Content-Type": "text/event-stream"})


DEFINITIONS = [{"type": "function", **tool["function"]} for tool in kinds.DEFINITIONS]


def responding(url, keep=True, stream=False):
    """A loop over the Responses API; the server keeps the conversation, or the agent sends it whole."""
    with client_of(url) as client:
        items, previous, whole = [{"role": "user", "content": PROMPT[1]["content"]}], None, []
        while True:
            asked = {"model": "m", "instructions": PROMPT[0]["content"], "tools": DEFINITIONS}
            whole += items
            asked |= {"input": items, "previous_response_id": previous} if keep else {"input": whole}
            if stream:
                events = list(client.responses.create(**asked, stream=True))
                response = events[-1].response
            else:
                response = client.responses.create(**asked)
            previous = response.id
            whole += [item.model_dump(exclude_none=True) for item in response.output]
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            items = []
            for call in calls:
                value = TOOLS[call.name](**json.loads(call.arguments))
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": json.dumps(value)})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_agents_of_the_responses_api_are_forked_alike(keep, stream, tmp_path):
    fresh()
    options = {"keep": keep, "stream": stream}
    with Responding(SCRIPT) as server:
        with record(tmp_path / "runs.jsonl") as run:
            responding(server.base_url, **options)
        trace = run.trace()
        fresh()
        server.requests.clear()
        arguments = {"url": server.base_url, **options}
        replay = replay_agent(responding, trace, arguments=arguments)
        assert (replay.interruption, replay.error, replay.returned) == ("", None, SCRIPT[-1])
        assert replay.classes == {"same": len(SCRIPT)}
        assert (server.requests, dict(EXECUTED)) == ([], {})
        for at in (0, 2, LAST):
            server.requests.clear()
            server.plays = ["Else."]
            replay = replay_agent(responding, trace, arguments=arguments, at=at)
            assert (replay.returned, len(server.requests), dict(EXECUTED)) == ("Else.", 1, {})
            assert replay.trajectory.steps[-1].action.content_text == "Else."
        action = Message.assistant(None, [ToolCall("z", "look_up", '{"order": 2}')])
        replay = replay_agent(responding, trace, arguments=arguments, at=2, action=action)
        if keep:
            assert "by an id that its server does not know" in replay.interruption
        else:
            assert replay.returned == "Else."
        assert json.loads(replay.trajectory.steps[2].observations[0].content_text) == {"paid": 8, "refunded": 0}
