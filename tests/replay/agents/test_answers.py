"""Recorded actions, rendered as a server's answer and read by the real client and by the log's own reader."""

import json

import httpx2
import openai
import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Call, Message, ToolCall, Usage
from counterplay.reenact import LogReader
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest
from counterplay.replay.agents.answers import answer
from counterplay.replay.agents.matching import Difference

CALL = Call(
    0, model="gpt-4o", usage=Usage(11, 7, 5, 2), finish_reason="tool_calls", response_id="chatcmpl-9", started_at_us=1_700_000_000_000_000
)
LONG = "A longer text, with äöü and 🙂, so that a stream of it has several pieces."
ACTIONS = {
    "text": Message.assistant(LONG),
    "empty text": Message.assistant(""),
    "calls": Message.assistant(None, [ToolCall("c1", "look_up", '{ "b": 1,\n"a": "x" }'), ToolCall("c2", "mail", "")]),
    "text and calls": Message.assistant(LONG, [ToolCall("c1", "look_up", '{"text": "' + LONG + '"}')], reasoning="Let me think. " * 5),
    "broken arguments": Message.assistant(None, [ToolCall("c1", "look_up", '{"a": ')]),
    "vendor fields": Message.from_openai(
        {"role": "assistant", "content": "x", "provider_state": {"a": [1, None]}, "scores": [{"index": 0, "p": 0.5}], "reasoning": "hm"}
    ),
    "refusal": Message.from_openai({"role": "assistant", "content": None, "refusal": "I would rather not, for a number of reasons."}),
}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
READER = LogReader()


def serving(action, call=CALL, seen=None):
    """A transport that answers every request with `action`."""

    def handle(request):
        api = "responses" if request.url.path.endswith("/responses") else "chat"
        given = answer(ModelRequest(api, request.read(), str(request.url.path)), [action], call)
        if seen is not None:
            seen.append(given)
        return httpx2.Response(given.status, content=given.body, headers={"content-type": given.content_type})

    return httpx2.MockTransport(handle)


def client(action, **options):
    return openai.OpenAI(base_url="http://x/v1", api_key="k", http_client=httpx2.Client(transport=serving(action, **options)))


def as_logged(message):
    """A message of the client as it would be sent back, without what it adds empty."""
    return {name: value for name, value in message.items() if value not in (None, []) or name == "content"}


def same(dumped, action):
    assert as_logged(dumped) == as_logged(json.loads(action.wire)), dumped


@pytest.mark.parametrize("name", ACTIONS)
def test_chat_create(name):
    completion = client(ACTIONS[name]).chat.completions.create(model="m", messages=[], tools=TOOLS)
    same(completion.choices[0].message.model_dump(), ACTIONS[name])
    assert (completion.id, completion.model, completion.created) == ("chatcmpl-9", "gpt-4o", 1_700_000_000)
    assert completion.choices[0].finish_reason == "tool_calls"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (11, 7, 18)
    assert completion.usage.prompt_tokens_details.cached_tokens == 5
    assert completion.usage.completion_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize("name", ACTIONS)
def test_chat_stream_in_pieces(name):
    action = ACTIONS[name]
    chunks = list(client(action).chat.completions.create(model="m", messages=[], stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens == 7
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == action.content_text
    for at, call in enumerate(action.tool_calls):
        parts = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or () if part.index == at]
        assert "".join(part.function.arguments for part in parts) == call.arguments
        assert (parts[0].id, parts[0].function.name) == (call.id, call.name)
    if len(action.content_text) > 50:
        assert len(chunks) > 4


@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "broken arguments"])
def test_chat_stream_helper(name):
    with client(ACTIONS[name]).chat.completions.stream(model="m", messages=[]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message.model_dump(exclude_unset=True)
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    message.pop("parsed", None)
    same(message, ACTIONS[name])


async def test_async_client():
    http = httpx2.AsyncClient(transport=serving(ACTIONS["text and calls"]))
    async with openai.AsyncOpenAI(base_url="http://x/v1", api_key="k", http_client=http) as asking:
        completion = await asking.chat.completions.create(model="m", messages=[])
        same(completion.choices[0].message.model_dump(), ACTIONS["text and calls"])
        stream = await asking.chat.completions.create(model="m", messages=[], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == LONG
        response = await asking.responses.create(model="m", input="hi")
        assert response.output_text == LONG


@pytest.mark.parametrize("name", [name for name in ACTIONS if name not in ("refusal", "vendor fields")])
def test_responses_create(name):
    action = ACTIONS[name]
    response = client(action).responses.create(model="m", input="hi")
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.name, call.arguments) for call in calls] == [(c.id, c.name, c.arguments) for c in action.tool_calls]
    assert response.output_text == action.content_text
    assert response.usage.input_tokens_details.cached_tokens == 5
    assert response.status == "completed"
    assert [item.type for item in response.output][:1] == (
        ["reasoning"] if action.reasoning else [item.type for item in response.output][:1]
    )


@pytest.mark.parametrize("name", [name for name in ACTIONS if name not in ("refusal", "vendor fields", "broken arguments")])
def test_responses_stream(name):
    action = ACTIONS[name]
    events = list(client(action).responses.create(model="m", input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == action.content_text
    assert events[-1].type == "response.completed"
    with client(action).responses.stream(model="m", input="hi") as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text == action.content_text
    assert [item.arguments for item in final.output if item.type == "function_call"] == [call.arguments for call in action.tool_calls]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["text", "calls", "text and calls"])
def test_every_api_is_read_back_as_the_same_action(api, stream, name):
    action = ACTIONS[name]
    request = ModelRequest(
        api, json.dumps({"model": "m", "messages": [], "stream": stream, "stream_options": {"include_usage": True}}).encode()
    )
    read = READER.answered(request, answer(request, [action], CALL))
    assert read.action.content_text == action.content_text
    assert read.action.reasoning == action.reasoning
    assert [(c.id, c.name, c.args) for c in read.action.tool_calls] == [(c.id, c.name, c.args) for c in action.tool_calls]
    assert read.usage == Usage(11, 7, 5, 2) if api != "messages" else read.usage == Usage(11, 7, 5)
    assert (read.model, read.response_id) == ("gpt-4o", "chatcmpl-9")
    assert read.finish_reason == ("stop" if api == "responses" and not action.tool_calls else "tool_calls")


def test_chat_and_responses_give_the_very_bytes_of_a_read_message():
    for api in ("chat", "responses"):
        request = ModelRequest(api, b'{"model": "m"}')
        first = READER.answered(request, answer(request, [ACTIONS["text and calls"]], CALL)).action
        assert READER.answered(request, answer(request, [first], CALL)).action == first


def test_reasoning_items_go_back_as_they_came():
    items = [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}]
    request = ModelRequest("responses", b"{}")
    action = Message.from_openai({"role": "assistant", "content": "hi", "reasoning_items": items})
    body = json.loads(answer(request, [action], CALL).body)
    assert body["output"][0] == items[0]
    assert READER.answered(request, answer(request, [action], CALL)).action == action
    assert "reasoning_items" not in json.loads(answer(ModelRequest("chat", b"{}"), [action], CALL).body)["choices"][0]["message"]


def test_custom_and_hosted_tools_keep_their_kind():
    tools = [{"type": "custom", "name": "shell"}, {"type": "local_shell"}]
    request = ModelRequest("responses", json.dumps({"tools": tools}).encode())
    calls = [ToolCall("c1", "shell", "ls -l"), ToolCall("c2", "local_shell", '{"action":{"type":"exec"}}')]
    action = Message.assistant(None, calls)
    items = json.loads(answer(request, [action], CALL).body)["output"]
    assert [item["type"] for item in items] == ["custom_tool_call", "local_shell_call"]
    assert (items[0]["input"], items[1]["action"]) == ("ls -l", {"type": "exec"})
    assert [c.signature for c in READER.answered(request, answer(request, [action], CALL)).action.tool_calls] == [
        c.signature for c in calls
    ]


def test_several_choices():
    request = ModelRequest("chat", b'{"n": 2}')
    body = json.loads(answer(request, [Message.assistant("a"), Message.assistant("b")], CALL).body)
    assert [(choice["index"], choice["message"]["content"]) for choice in body["choices"]] == [(0, "a"), (1, "b")]


def test_what_the_log_lacks_is_filled_in_the_same_way_each_time():
    request = ModelRequest("chat", b'{"model": "asked-for"}')
    action = Message.from_openai({"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]})
    first, second = (json.loads(answer(request, [action], Call(0)).body) for _ in range(2))
    assert first == second
    call = first["choices"][0]["message"]["tool_calls"][0]
    assert call["id"]
    assert call["function"]["arguments"] == '{"a":1}'
    assert (first["model"], first["choices"][0]["finish_reason"]) == ("asked-for", "tool_calls")
    assert first["id"] != json.loads(answer(request, [Message.assistant("x")], Call(0)).body)["id"]


def test_a_cut_answer_says_so():
    call = Call(0, finish_reason="length")
    request = ModelRequest("responses", b"{}")
    assert json.loads(answer(request, [ACTIONS["text"]], call).body)["incomplete_details"] == {"reason": "max_output_tokens"}
    assert READER.answered(request, answer(request, [ACTIONS["text"]], call)).finish_reason == "length"
    assert json.loads(answer(ModelRequest("messages", b"{}"), [ACTIONS["text"]], call).body)["stop_reason"] == "max_tokens"


def test_an_api_without_actions_is_refused():
    with pytest.raises(UserError, match="embeddings"):
        answer(ModelRequest("other", b"{}", "/v1/embeddings"), [ACTIONS["text"]], CALL)


def test_failures_are_read_as_such():
    assert READER.answered(ModelRequest("chat", b"{}"), ModelAnswer(error="ConnectError: x", status=0)).error == "ConnectError: x"
    assert "503" in READER.answered(ModelRequest("chat", b"{}"), ModelAnswer(b"busy", status=503)).error


def test_excerpts_are_round_the_difference():
    difference = Difference("p", 0, "x" * 500 + "A" + "y" * 500, "x" * 500 + "B" + "y" * 500)
    assert "A" in difference.got
    assert "B" in difference.wanted
    assert len(difference.got) <= 160
