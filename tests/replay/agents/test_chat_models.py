"""LangChain models and tools, seen and answered; LangGraph agents made of them."""

import asyncio
import gc
import json
from typing import Annotated, Any

import pytest
from langchain.agents import AgentState, create_agent
from langchain.tools import InjectedState, InjectedToolCallId, ToolRuntime, tool
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel, SimpleChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import BaseTool, StructuredTool, Tool, ToolException
from langchain_openai import ChatOpenAI
from langgraph.types import Command, interrupt
from pydantic import Field

from counterplay.replay.agents.ambient import Interruption, ModelAnswer, ToolAnswer, intercepting
from counterplay.replay.agents.calls import inside_tool
from counterplay.replay.agents.chat_callbacks import callback_handler
from counterplay.replay.agents.chat_models import by_transport
from counterplay.replay.agents.sse import events
from counterplay.replay.effects import tool as declared
from tests.replay.agents.seen import Seen, Streaming, delta, sse
from tests.replay.loopback import Loopback, completion

CALL = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1", "type": "tool_call"}
USAGE = {
    "input_tokens": 9,
    "output_tokens": 4,
    "total_tokens": 13,
    "input_token_details": {"cache_read": 2},
    "output_token_details": {"reasoning": 1},
}


class Scripted(BaseChatModel):
    """A local model: answers in order, whole or in chunks."""

    answers: list[Any]
    chunks: list[Any] = Field(default_factory=list)
    asked: list[Any] = Field(default_factory=list)
    model_name: str = "local-1"

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append(messages)
        answer = self.answers[len(self.asked) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=answer)])


class Streamed(Scripted):
    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        self.asked.append(messages)
        for chunk in self.chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield ChatGenerationChunk(message=chunk)


CHUNKS = [
    AIMessageChunk("he"),
    AIMessageChunk("llo"),
    AIMessageChunk("", tool_call_chunks=[{"name": "add", "args": '{"a": 1,', "id": "call_1", "index": 0, "type": "tool_call_chunk"}]),
    AIMessageChunk("", tool_call_chunks=[{"name": None, "args": ' "b": 2}', "id": None, "index": 0, "type": "tool_call_chunk"}]),
    AIMessageChunk("", usage_metadata=USAGE, response_metadata={"finish_reason": "tool_calls"}),
]


def wire(answer):
    return json.loads(answer.body)["choices"][0]["message"]


# --- models --------------------------------------------------------------------------------------------------------------------------


async def test_a_local_model_is_shown_as_chat_completions():
    said = AIMessage("sum it", tool_calls=[CALL], usage_metadata=USAGE)
    model, seen = Scripted(answers=[said, AIMessage("3")]), Seen()

    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    with intercepting(seen):
        bound = model.bind_tools([add], stop=["END"])
        asked = [SystemMessage("be brief"), HumanMessage("1 + 2?")]
        answer = bound.invoke(asked)
        last = await bound.ainvoke([*asked, answer, ToolMessage("3", tool_call_id="call_1")])
    assert (answer.tool_calls, last.content) == ([CALL], "3")
    first, second = [json.loads(r.body) for r in seen.requests]
    assert first["model"] == "local-1"
    assert first["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1 + 2?"}]
    assert first["tools"][0]["function"]["name"] == "add"
    assert first["stop"] == ["END"]
    assert second["messages"][2:] == [wire(seen.answered[0]), {"role": "tool", "content": "3", "tool_call_id": "call_1"}]
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    assert wire(seen.answered[0]) == {"role": "assistant", "content": "sum it", "tool_calls": [call]}
    body = json.loads(seen.answered[0].body)
    assert (body["choices"][0]["finish_reason"], body["model"]) == ("tool_calls", "local-1")
    assert (body["usage"]["prompt_tokens"], body["usage"]["prompt_tokens_details"]["cached_tokens"]) == (9, 2)
    assert seen.requests[0].api == "chat"
    assert seen.answered[0].latency_s >= 0


def kept(message):
    return message.content, message.tool_calls, message.invalid_tool_calls, message.usage_metadata, message.additional_kwargs


@pytest.mark.parametrize(
    "said",
    [
        AIMessage("plain"),
        AIMessage("", tool_calls=[CALL, {**CALL, "id": "call_2"}], usage_metadata=USAGE),
        AIMessage("odd", invalid_tool_calls=[{"type": "invalid_tool_call", "id": "c", "name": "add", "args": "oops", "error": None}]),
        AIMessage("thought", additional_kwargs={"reasoning_content": "hm"}),
        AIMessage("named", id="msg_1"),
    ],
)
async def test_what_was_recorded_comes_back_as_it_was(said):
    seen, model = Seen(), Scripted(answers=[said])
    with intercepting(seen):
        first = model.invoke("hi")
    again, streamed = Seen(seen.answered * 2), Seen(seen.answered * 2)
    idle = Streamed(answers=[])
    with intercepting(again):
        for message in (idle.invoke("hi"), await idle.ainvoke("hi")):
            assert kept(message) == kept(first)
            assert message.response_metadata["finish_reason"] in {"stop", "tool_calls"}
            if said.id == "msg_1":
                assert message.id == said.id
    with intercepting(streamed):
        whole = list(idle.stream("hi"))
        message = whole[0]
        for chunk in whole[1:]:
            message += chunk
        assert kept(message)[:2] == kept(first)[:2]
        assert "".join([c.text async for c in idle.astream("hi")]) == first.text
    assert (idle.asked, again.answered, streamed.answered) == ([], [], [])
    assert json.loads(again.requests[0].body) == json.loads(seen.requests[0].body)


async def test_streams_are_seen_chunk_by_chunk_and_given_again_so():
    seen, model = Seen(), Streamed(answers=[], chunks=[chunk.model_copy() for chunk in CHUNKS])
    with intercepting(seen):
        stream = model.stream("hi")
        next(stream)
        assert seen.answered == []
        rest = list(stream)
        again = [chunk async for chunk in model.astream("hi")]
    assert len(rest) == len(again) - 1
    assert [a.content_type for a in seen.answered] == ["text/event-stream"] * 2
    first, second = (next(events(answer.body)) for answer in seen.answered)
    assert first["choices"] == second["choices"]
    assert seen.answered[0].body.endswith(b"data: [DONE]\n\n")
    assert [e["choices"][0]["delta"]["content"] for e in events(seen.answered[0].body)] == ["he", "llo", "", "", ""]
    assert seen.requests[0].stream
    assert 0 <= seen.answered[0].first_token_s <= seen.answered[0].latency_s
    idle = Streamed(answers=[])
    with intercepting(Seen(seen.answered * 2)):
        chunks = list(idle.stream("hi"))
        assert [c.content for c in chunks[:5]] == ["he", "llo", "", "", ""]
        message = await idle.ainvoke("hi")
    assert (message.content, message.tool_calls) == ("hello", [CALL])
    assert message.usage_metadata["total_tokens"] == 13
    assert idle.asked == []


async def test_a_stream_that_is_closed_early_or_breaks():
    seen = Seen()
    with intercepting(seen):
        stream = Streamed(answers=[], chunks=CHUNKS).stream("hi")
        next(stream)
        stream.close()
        stream = Streamed(answers=[], chunks=CHUNKS).astream("hi")
        await anext(stream)
        await stream.aclose()
        with pytest.raises(ValueError, match="broke"):
            list(Streamed(answers=[], chunks=[CHUNKS[0], ValueError("broke")]).stream("hi"))
        with pytest.raises(ValueError, match="at once"):
            list(Streamed(answers=[], chunks=[ValueError("at once")]).stream("hi"))
    for _ in range(200):  # LangChain leaves it to the interpreter to close the stream below
        if len(seen.answered) == 4:
            break
        gc.collect()
        await asyncio.sleep(0.01)
    errors = [(a.status, a.error) for a in seen.answered]
    assert (200, "ValueError: broke") in errors
    assert (0, "ValueError: at once") in errors
    assert errors.count((200, "closed early")) == 2
    assert [e["choices"][0]["delta"]["content"] for e in events(seen.answered[0].body)] == ["he"]


@pytest.mark.parametrize(
    "make",
    [lambda: GenericFakeChatModel(messages=iter([AIMessage("a b"), "c d", "e f"])), lambda: FakeListChatModel(responses=["a b"] * 3)],
)
async def test_fakes_are_seen_in_every_way_of_asking(make):
    seen, model = Seen(), make()
    with intercepting(seen):
        model.invoke("1")
        await model.ainvoke("2")
        assert "".join(chunk.content for chunk in model.stream("3"))
    assert [r.fields["messages"][0]["content"] for r in seen.requests] == ["1", "2", "3"]
    assert len(seen.answered) == 3
    with intercepting(Seen(seen.answered[:1] * 3)):
        assert model.batch(["1"])[0].content == wire(seen.answered[0])["content"]
        assert [e async for e in model.astream_events("1", version="v2")]


class Simple(SimpleChatModel):
    @property
    def _llm_type(self):
        return "simple"

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        return "simple " + messages[0].content


def test_a_model_that_inherits_its_way_of_asking_is_seen():
    seen = Seen()
    with intercepting(seen):
        assert Simple().invoke("one").content == "simple one"
    assert len(seen.requests) == len(seen.answered) == 1


def test_errors_are_recorded_and_raised_again():
    seen, model = Seen(), Scripted(answers=[ValueError("too long"), KeyError("k")])
    with intercepting(seen):
        for kind in (ValueError, KeyError):
            with pytest.raises(kind):
                model.invoke("hi")
    assert [(a.status, a.error) for a in seen.answered] == [(0, "ValueError: too long"), (0, "KeyError: 'k'")]
    idle = Streamed(answers=[])
    with intercepting(Seen([*seen.answered, seen.answered[0], ModelAnswer(b"busy", status=503)])):
        for kind, text in ((ValueError, "too long"), (KeyError, "'k'")):
            with pytest.raises(kind, match=text):
                idle.invoke("hi")
        with pytest.raises(ValueError, match="too long"):
            list(idle.stream("hi"))
        with pytest.raises(RuntimeError, match="503: busy"):
            idle.invoke("hi")
    broken = ModelAnswer(b"".join(sse(delta("a"), end=())), content_type="text/event-stream", error="ValueError: broke")
    with intercepting(Seen([broken] * 2)):
        stream = idle.stream("hi")
        assert next(stream).content == "a"
        with pytest.raises(ValueError, match="broke"):
            next(stream)
        with pytest.raises(ValueError, match="broke"):
            idle.invoke("hi")


def test_a_langchain_cache_still_works():
    seen, model = Seen(), Scripted(answers=[AIMessage("once")], cache=InMemoryCache())
    with intercepting(seen):
        assert [model.invoke("hi").content for _ in range(3)] == ["once"] * 3
    assert len(seen.requests) == 1


def test_callbacks_fire_as_ever_when_answers_are_given():
    told = []

    class Told(BaseCallbackHandler):
        def on_chat_model_start(self, *_, **__):
            told.append("start")

        def on_llm_end(self, response, **_):
            told.append(response.generations[0][0].text)

        def on_tool_start(self, *_, **__):
            told.append("tool")

        def on_tool_end(self, output, **_):
            told.append(output)

    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        raise AssertionError

    config = {"callbacks": [Told()]}
    with intercepting(Seen([ModelAnswer(json.dumps(completion("given")).encode())], [ToolAnswer(3)])):
        Scripted(answers=[]).invoke("hi", config)
        add.invoke({"a": 1, "b": 2}, config)
    assert told == ["start", "given", "tool", 3]


async def test_a_model_that_goes_through_a_transport_is_seen_there_and_once():
    seen, pieces = Seen(), sse(delta("a"), delta("b"))
    with Loopback(completion("whole"), completion("async")) as server, Streaming(*pieces) as streams:
        model = ChatOpenAI(base_url=server.base_url, api_key="k", model="m", max_retries=0)
        streaming = ChatOpenAI(base_url=streams.base_url, api_key="k", model="m", max_retries=0)
        with intercepting(seen):
            assert model.invoke("hi").content == "whole"
            assert (await model.ainvoke("hi")).content == "async"
            assert "".join(c.content for c in streaming.stream("hi")) == "ab"
            assert "".join([c.content async for c in streaming.astream("hi")]) == "ab"
        assert len(seen.requests) == len(seen.answered) == 4
        assert seen.requests[0].body == server.bodies[0]
        with intercepting(Seen(list(seen.answered))):
            assert model.invoke("hi").content == "whole"
            assert (await model.ainvoke("hi")).content == "async"
            assert "".join(c.content for c in streaming.stream("hi")) == "ab"
        assert (len(server.requests), streams.served) == (2, 2)


async def test_a_local_model_that_asks_a_server_is_seen_once():
    class Wrapping(Scripted):
        url: str

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            import openai

            said = openai.OpenAI(base_url=self.url, api_key="k").chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}]
            )
            return ChatResult(generations=[ChatGeneration(message=AIMessage(said.choices[0].message.content))])

    seen = Seen()
    with Loopback() as server, intercepting(seen):
        model = Wrapping(answers=[], url=server.base_url)
        assert model.invoke("hi").content == (await model.ainvoke("hi")).content == "answer 0"
    assert [r.fields["messages"][0]["content"] for r in seen.requests] == ["hi", "hi"]
    assert len(seen.answered) == 2


def test_which_models_speak_http():
    class Mine(ChatOpenAI):
        pass

    assert by_transport(ChatOpenAI(api_key="k"))
    assert by_transport(Mine(api_key="k"))
    assert not by_transport(Scripted(answers=[]))


class Diverged(Interruption):
    pass


def interrupted(_request):
    raise Diverged


async def test_an_interruption_goes_through_langchain():
    with intercepting(Seen([interrupted] * 6, [interrupted] * 2)):
        model = Streamed(answers=[])
        for act in (model.invoke, lambda text: list(model.stream(text)), lambda text: model.with_fallbacks([model]).invoke(text)):
            with pytest.raises(Diverged):
                act("hi")
        with pytest.raises(Diverged):
            await model.ainvoke("hi")
        with pytest.raises(Diverged):
            async for _ in model.astream("hi"):
                pass
        with pytest.raises(Diverged):
            ChatOpenAI(base_url="http://127.0.0.1:9", api_key="k").invoke("hi")


def test_nothing_is_left_behind():
    before = {name: vars(Scripted).get(name) for name in ("_generate", "_agenerate", "_stream")}
    entry, run = BaseChatModel._generate_with_cache, BaseTool.run
    with intercepting(Seen()):
        Scripted(answers=[AIMessage("a")]).invoke("hi")
        assert vars(Scripted)["_generate"] is not before["_generate"]
    assert {name: vars(Scripted).get(name) for name in before} == before
    assert (BaseChatModel._generate_with_cache, BaseTool.run) == (entry, run)


# --- tools ---------------------------------------------------------------------------------------------------------------------------


@tool
def add(a: int, b: int = 5) -> int:
    """Add."""
    return a + b


@tool
async def slow_add(a: int, b: int) -> dict:
    """Add."""
    return {"sum": a + b}


@tool(response_format="content_and_artifact")
def with_artifact(n: int) -> tuple[str, list[int]]:
    """Count."""
    return f"counted to {n}", list(range(n))


@tool
def as_message(n: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> ToolMessage:
    """Say."""
    return ToolMessage(f"said {n}", tool_call_id=tool_call_id, status="error", artifact={"n": n})


@tool
def to_state(n: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
    """Update the state."""
    return Command(update={"messages": [ToolMessage(str(n), tool_call_id=tool_call_id)]})


def call(name, **args):
    return {"type": "tool_call", "name": name, "args": args, "id": "call_9"}


async def test_tools_are_seen_with_what_the_model_gave():
    seen = Seen()
    with intercepting(seen):
        assert add.invoke({"a": 1}) == 6
        assert (await add.ainvoke(call("add", a=1, b=2))).content == "3"
        assert (await slow_add.ainvoke({"a": 1, "b": 2})) == {"sum": 3}
        assert Tool("look", str.upper, "Look.").invoke("it") == "IT"
    assert [(r.name, dict(r.arguments), str(r.effect)) for r in seen.tool_requests] == [
        ("add", {"a": 1}, "external"),
        ("add", {"a": 1, "b": 2}, "external"),
        ("slow_add", {"a": 1, "b": 2}, "external"),
        ("look", {"tool_input": "it"}, "external"),
    ]
    assert [a.value for a in seen.tool_answered_with] == [6, 3, {"sum": 3}, "IT"]
    assert all(a.replayable for a in seen.tool_answered_with)


async def test_results_of_every_form_come_back_as_they_were():
    requests = [add.invoke, with_artifact.invoke, as_message.invoke]
    calls = [call("add", a=1), call("with_artifact", n=2), call("as_message", n=3)]
    seen = Seen()
    with intercepting(seen):
        first = [act(one) for act, one in zip(requests, calls, strict=True)]
        first.append(await slow_add.ainvoke(call("slow_add", a=1, b=2)))
    executed = []

    def never(*_, **__):
        executed.append(1)

    idle = [each.model_copy(update={"func": never, "coroutine": None}) for each in (add, with_artifact, as_message, slow_add)]
    again = Seen(tools=list(seen.tool_answered_with))
    with intercepting(again):
        second = [each.invoke(one) for each, one in zip(idle, [*calls, call("slow_add", a=1, b=2)], strict=True)]
    assert [m.model_dump() for m in second] == [m.model_dump() for m in first]
    assert (second[1].artifact, second[2].artifact, second[2].status) == ([0, 1], {"n": 3}, "error")
    assert executed == []
    assert again.tool_answered_with == []


def test_a_command_is_not_replayable():
    seen = Seen()
    with intercepting(seen):
        assert isinstance(to_state.invoke(call("to_state", n=1)), Command)
    assert [(dict(r.arguments), a.replayable) for r, a in zip(seen.tool_requests, seen.tool_answered_with, strict=True)] == [
        ({"n": 1}, False)
    ]
    assert "Command" in seen.tool_answered_with[0].value


def test_errors_of_tools_are_handled_as_langchain_does():
    @tool
    def fail(kind: str) -> str:
        """Fail."""
        raise ToolException("no luck") if kind == "tool" else KeyError("k")

    fail.handle_tool_error = True
    seen = Seen()
    with intercepting(seen):
        assert fail.invoke({"kind": "tool"}) == "no luck"
        with pytest.raises(KeyError):
            fail.invoke({"kind": "key"})
    assert [a.error for a in seen.tool_answered_with] == ["ToolException: no luck", "KeyError: 'k'"]
    with intercepting(Seen(tools=list(seen.tool_answered_with))):
        assert fail.invoke({"kind": "tool"}) == "no luck"
        with pytest.raises(KeyError):
            fail.invoke({"kind": "key"})


def test_effects_are_read_from_metadata_and_marks():
    @declared(effect="read(order:{number})")
    def look(number: int) -> str:
        """Look."""
        return str(number)

    marked = StructuredTool.from_function(look)
    named = StructuredTool.from_function(lambda: "x", name="named", description="d", metadata={"effect": "pure"})
    seen = Seen()
    with intercepting(seen):
        assert marked.invoke({"number": 3}) == "3"
        named.invoke({})
    assert [(r.name, str(r.effect)) for r in seen.tool_requests] == [("look", "read(order:{number})"), ("named", "pure")]


async def test_a_tool_that_is_a_class_and_a_tool_in_a_tool_are_seen_once():
    class Own(BaseTool):
        name: str = "own"
        description: str = "Own."

        def _run(self, n: int) -> int:
            assert inside_tool()
            return add.invoke({"a": n, "b": n})

    seen = Seen()
    with intercepting(seen):
        assert Own().invoke({"n": 2}) == 4
        assert await Own().ainvoke({"n": 3}) == 6
    assert [(r.name, dict(r.arguments)) for r in seen.tool_requests] == [("own", {"n": 2}), ("own", {"n": 3})]


# --- LangGraph -----------------------------------------------------------------------------------------------------------------------


class Orders(AgentState):
    owner: str


LIVE = []


@tool
def owner_of(order: int, state: Annotated[dict, InjectedState], runtime: ToolRuntime) -> str:
    """Whose order it is."""
    LIVE.append(order)
    assert runtime.tool_call_id
    return f"{order}: {state['owner']}"


@tool
def send_mail(to: str) -> str:
    """Send a mail."""
    LIVE.append(to)
    return f"sent to {to}"


def script():
    calls = [
        {"name": name, "args": args, "id": f"c{at}", "type": "tool_call"}
        for at, (name, args) in enumerate([("owner_of", {"order": 1}), ("send_mail", {"to": "x"})])
    ]
    return [AIMessage("both", tool_calls=calls), AIMessage("done")]


def play(model, *, asynchronous):
    agent = create_agent(model, [owner_of, send_mail], state_schema=Orders)
    given = {"messages": [HumanMessage("go", id="h")], "owner": "Ada"}
    return asyncio.run(agent.ainvoke(given)) if asynchronous else agent.invoke(given)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_langgraph_agent_is_recorded_and_played_again_without_a_live_call(asynchronous):
    LIVE.clear()
    seen = Seen()
    with intercepting(seen):
        first = play(Scripted(answers=script()), asynchronous=asynchronous)
    assert sorted(map(str, LIVE)) == ["1", "x"]
    by_name = {r.name: dict(r.arguments) for r in seen.tool_requests}
    assert by_name == {"owner_of": {"order": 1}, "send_mail": {"to": "x"}}
    assert len(seen.requests) == len(seen.answered) == 2
    recorded = {"owner_of": ToolAnswer("1: Ada"), "send_mail": ToolAnswer("sent to x")}
    again = Seen(list(seen.answered), [lambda r: recorded[r.name]] * 2)
    LIVE.clear()
    with intercepting(again):
        second = play(Scripted(answers=[]), asynchronous=asynchronous)
    assert LIVE == []
    assert [m.content for m in second["messages"]] == [m.content for m in first["messages"]]
    assert [r.body for r in again.requests] == [r.body for r in seen.requests]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_interruption_ends_a_langgraph_agent(asynchronous):
    LIVE.clear()
    with intercepting(Seen(tools=[interrupted, interrupted])), pytest.raises(Diverged):
        play(Scripted(answers=script()), asynchronous=asynchronous)
    assert LIVE == []
    with intercepting(Seen([interrupted])), pytest.raises(Diverged):
        play(Scripted(answers=script()), asynchronous=asynchronous)


def test_a_langgraph_interrupt_is_no_result():
    from langgraph.checkpoint.memory import InMemorySaver

    @tool
    def approve(n: int) -> str:
        """Ask."""
        return interrupt(f"may I {n}?")

    answers = [AIMessage("", tool_calls=[{"name": "approve", "args": {"n": 1}, "id": "c", "type": "tool_call"}]), AIMessage("done")]
    agent = create_agent(Scripted(answers=answers), [approve], checkpointer=InMemorySaver())
    seen, config = Seen(), {"configurable": {"thread_id": "1"}}
    with intercepting(seen):
        assert agent.invoke({"messages": ["go"]}, config)["__interrupt__"]
        assert agent.invoke(Command(resume="yes"), config)["messages"][-1].content == "done"
    assert [(a.replayable, a.error) for a in seen.tool_answered_with] == [(False, None), (True, None)]
    assert seen.tool_answered_with[1].value == "yes"


# --- callbacks alone -----------------------------------------------------------------------------------------------------------------


async def test_callbacks_alone_record_models_and_tools():
    LIVE.clear()
    seen = Seen()
    told = callback_handler(seen)

    seen.model_answered = lambda r, a: (seen.requests.append(r), seen.answered.append(a))
    seen.tool_answered = lambda r, a: (seen.tool_requests.append(r), seen.tool_answered_with.append(a))
    agent = create_agent(Scripted(answers=script()), [owner_of, send_mail], state_schema=Orders)
    given = {"messages": [HumanMessage("go")], "owner": "Ada"}
    await agent.ainvoke(given, {"callbacks": [told]})
    assert [wire(a)["content"] for a in seen.answered] == ["both", "done"]
    assert json.loads(seen.requests[1].body)["messages"][-1] == {
        "role": "tool",
        "content": "sent to x",
        "tool_call_id": "c1",
        "name": "send_mail",
    }
    assert {(r.name, str(dict(r.arguments))) for r in seen.tool_requests} == {("owner_of", "{'order': 1}"), ("send_mail", "{'to': 'x'}")}
    assert sorted(a.value["tool_message"]["content"] for a in seen.tool_answered_with) == ["1: Ada", "sent to x"]
    with Loopback(completion("whole")) as server:
        ChatOpenAI(base_url=server.base_url, api_key="k", model="m", max_retries=0).bind_tools([add]).invoke("hi", {"callbacks": [told]})
    assert (seen.requests[2].fields["model"], seen.requests[2].fields["tools"][0]["function"]["name"]) == ("m", "add")
    assert wire(seen.answered[2])["content"] == "whole"
    with pytest.raises(ValueError, match="no"):
        Scripted(answers=[ValueError("no")]).invoke("hi", {"callbacks": [told]})
    assert seen.answered[3].error == "ValueError: no"


def test_a_handler_inside_of_its_own_run_does_not_record_twice():
    seen = Seen()
    # LangChain takes it for no error if a handler raises one.
    seen.model_answered = lambda _, answer: seen.answered.append(answer)
    seen.tool_answered = lambda _, answer: seen.tool_answered_with.append(answer)
    config = {"callbacks": [callback_handler(seen)]}
    with intercepting(seen):
        Scripted(answers=[AIMessage("a")]).invoke("hi", config)
        add.invoke({"a": 1}, config)
    assert (len(seen.answered), len(seen.tool_answered_with)) == (1, 1)
