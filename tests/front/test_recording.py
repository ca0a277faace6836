"""`counterplay.record` round agents of every kind, with real clients: what the server got is what is stored, and no agent is disturbed."""

import asyncio
import functools
import gzip
import json
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import pytest

from counterplay import loop
from counterplay.connectors.base import detect
from counterplay.core.errors import CounterplayError, UserError
from counterplay.core.nouns import Outcome
from counterplay.core.store import Store
from counterplay.recording import RecordedAgent, record
from counterplay.replay.agents.tape import read_tape
from counterplay.replay.effects import tool
from tests.replay.agents.seen import Streaming, delta, sse
from tests.replay.loopback import Loopback, completion

ROOT = Path(__file__).parents[2]
KEY = "sk-counterplay-0123456789abcdefABCDEF"
PARAMETERS = {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "An order, by its id: ü.", "parameters": PARAMETERS}}
    for name in ("look_up", "refund")
]


@tool(effect="read(order:{order_id})")
def look_up(order_id: str) -> dict:
    """Find an order."""
    return {"order": order_id, "paid": 12.5, "name": "Zoë"}


@tool(effect="write(order:{order_id})")
async def refund(order_id: str) -> str:
    """Refund an order."""
    await asyncio.sleep(0)
    return f"refunded {order_id}"


def model(request):
    """Two parallel calls, then two more, then an answer."""
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    name = ("look_up", "refund")[turn] if turn < 2 else None
    if name is None:
        return completion("All done. €")
    return completion(None, calls=[(f"call_{turn}_{order}", name, json.dumps({"order_id": order})) for order in ("17", "18")])


def opening(task="17"):
    return [{"role": "system", "content": "You run a shop. ü"}, {"role": "user", "content": f"Refund {task}."}]


def client(server, **options):
    return openai.OpenAI(base_url=server.base_url, api_key=KEY, **{"max_retries": 0, **options})


def async_client(server, **options):
    return openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, **{"max_retries": 0, **options})


def plain_agent(task, *, model):
    """A loop round the SDK."""
    messages = opening(task)
    while True:
        said = model.chat.completions.create(model="m", messages=messages, tools=TOOLS, temperature=0.5).choices[0].message
        messages.append(said.model_dump(exclude_none=True))
        if not said.tool_calls:
            return said.content
        for call in said.tool_calls:
            arguments = json.loads(call.function.arguments)
            text = json.dumps(look_up(**arguments)) if call.function.name == "look_up" else asyncio.run(refund(**arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})


async def async_agent(task, *, model):
    """An async loop whose tools run side by side."""
    messages = opening(task)

    async def run(call):
        arguments = json.loads(call.function.arguments)
        text = json.dumps(look_up(**arguments)) if call.function.name == "look_up" else await refund(**arguments)
        return {"role": "tool", "tool_call_id": call.id, "content": text}

    while True:
        said = (await model.chat.completions.create(model="m", messages=messages, tools=TOOLS)).choices[0].message
        messages.append(said.model_dump(exclude_none=True))
        if not said.tool_calls:
            return said.content
        messages += await asyncio.gather(*map(run, said.tool_calls))


def stubborn_agent(task, *, model):
    """It catches everything, and tries again."""
    for _ in range(3):
        try:
            return plain_agent(task, model=model)
        except Exception:  # noqa: BLE001
            continue
    return "gave up"


def stored(path, tmp_path):
    """What a store holds of a tape, by task."""
    with Store.open(tmp_path / "s.duckdb") as store:
        loop.ingest([path], store, processes=0)
        assert not store.rejected()
        assert store.verify() == []
        return {trace.task: trace for trace in store.load()}


def sent(trace):
    """The messages of the last request, as a request holds them."""
    return ("[" + ",".join(message.wire for message in trace.trajectory.messages[:-1]) + "]").encode()


def check_shop(trace, server):
    """The run of the shop, byte for byte what the server got."""
    assert sent(trace) in server.bodies[-1]
    assert ('"tools":[' + ",".join(tool.wire for tool in trace.trajectory.tools) + "]").encode() in server.bodies[-1]
    assert trace.trajectory.messages[-1].content == "All done. €"
    assert [call.step for call in trace.calls] == [0, 1, 2]
    assert (trace.calls[0].usage.input_tokens, trace.calls[0].usage.cached_tokens, trace.calls[0].finish_reason) == (10, 3, "tool_calls")
    assert [step.terminated for step in trace.trajectory.steps] == [False, False, True]


def runs_of(trace):
    return sorted((told["name"], told["arguments"]["order_id"], told["step"], told["observation"]) for told in trace.metadata["tool_runs"])


SHOP_RUNS = [("look_up", "17", 0, 0), ("look_up", "18", 0, 1), ("refund", "17", 1, 0), ("refund", "18", 1, 1)]


def holds_no_secret(path):
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return KEY.encode() not in data and b"bearer" not in data.lower() and b"authorization" not in data.lower()


# --- agents of each kind -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_plain_loop(tmp_path, name):
    path = tmp_path / name
    with Loopback(default=model) as server, client(server) as sdk, record(path, task="17", agent="shop", tags=["a"]) as run:
        assert plain_agent("17", model=sdk) == "All done. €"
        run.outcome(reward=1.0, success=True, source="environment")
        run.score("tone", 3, 1, 5, "fair")
        run.tag("b")
    assert detect(path).name == "tape"
    trace = stored(path, tmp_path)["17"]
    check_shop(trace, server)
    assert runs_of(trace) == SHOP_RUNS
    assert {spec.name: str(spec.effect) for spec in trace.trajectory.tools} == {
        "look_up": "read(order:{order_id})", "refund": "write(order:{order_id})",
    }  # fmt: skip
    assert (trace.agent, trace.tags, trace.outcome) == ("shop", ("a", "b"), Outcome(1.0, True, "environment"))
    assert trace.scores[0].scaled == 0.5
    assert trace.calls[0].params["temperature"] == 0.5
    assert holds_no_secret(path)
    assert run.incomplete is None
    again = run.trace()
    assert (again.id, again.trajectory, again.metadata) == (trace.id, trace.trajectory, trace.metadata)


async def test_an_async_loop_with_parallel_tools_and_parallel_runs(tmp_path):
    path = tmp_path / "t.jsonl"

    async def one(task):
        async with record(path, task=task) as run:
            await async_agent(task, model=sdk)
        return run.id

    with Loopback(default=model) as server:
        async with async_client(server) as sdk:
            ids = await asyncio.gather(*map(one, ("17", "18", "19")))
    traces = await asyncio.to_thread(stored, path, tmp_path)
    assert sorted(trace.metadata["run"] for trace in traces.values()) == sorted(ids)
    for task, trace in traces.items():
        assert runs_of(trace) == SHOP_RUNS
        assert any(sent(trace) in body for body in server.bodies)
        assert f"Refund {task}." in trace.trajectory.messages[1].content
    assert holds_no_secret(path)


def graph_of(server, pool):
    from langchain.agents import create_agent
    from langchain.tools import tool as langchain_tool
    from langchain_openai import ChatOpenAI

    @langchain_tool("look_up")
    def look(order_id: str) -> str:
        """Find an order."""
        return f"order {order_id}: Zoë"

    @langchain_tool("refund")
    async def give_back(order_id: str) -> str:
        """Refund an order."""
        return f"refunded {order_id}"

    llm = ChatOpenAI(model="m", base_url=server.base_url, api_key=KEY, max_retries=0, http_async_client=pool)
    return create_agent(llm, [look, give_back], system_prompt="You run a shop. ü")


async def test_a_langgraph_agent(tmp_path):
    path = tmp_path / "t.jsonl"
    with Loopback(default=model) as server:
        async with httpx2.AsyncClient() as pool:
            agent = record(graph_of(server, pool), to=path, task=lambda inputs, *_: inputs["messages"][0][1])
            assert isinstance(agent, RecordedAgent)
            result = await agent.ainvoke({"messages": [("user", "Refund 17.")]})
    assert result["messages"][-1].content == "All done. €"
    trace = (await asyncio.to_thread(stored, path, tmp_path))["Refund 17."]
    check_shop(trace, server)
    assert runs_of(trace) == SHOP_RUNS
    assert all("value" not in told for told in trace.metadata["tool_runs"])
    assert trace.agent == "LangGraph"
    assert holds_no_secret(path)


def test_an_agent_that_catches_everything(tmp_path):
    path = tmp_path / "t.jsonl"
    with Loopback((500, {"error": {"message": "down"}}), default=model) as server, client(server) as sdk:
        agent = record(functools.partial(stubborn_agent, model=sdk), to=path, task=lambda task: task)
        assert agent("17") == "All done. €"
    trace = stored(path, tmp_path)["17"]
    check_shop(trace, server)
    assert trace.metadata["failed_calls"] == ["500: down"]
    assert trace.metadata["retries"][0]["step"] == 0


def test_the_client_s_own_retries_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    script = [(429, {"error": {"message": "slow down"}}, {"Retry-After-Ms": "1"})]
    with Loopback(*script, default=model) as server, client(server, max_retries=2) as sdk, record(path, task="17"):
        plain_agent("17", model=sdk)
    assert [event["attempt"] for event in read_tape(path) if event["kind"] == "model"] == [0, 1, 0, 0]
    trace = stored(path, tmp_path)["17"]
    assert trace.metadata["retries"] == [{"trajectory": 0, "step": 0, "model": "m", "error": "429: slow down"}]
    check_shop(trace, server)


def test_a_streaming_agent(tmp_path):
    path = tmp_path / "t.jsonl"
    last = delta(None) | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    pieces = sse(delta("Hel"), delta("lo ü"), last)
    with Streaming(*pieces) as server, client(server) as sdk, record(path, task="17"):
        chunks = sdk.chat.completions.create(model="m", messages=opening(), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello ü"
        for chunk in sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "more"}], stream=True):
            assert chunk.choices[0].delta.content == "Hel"
            break
    first, second = [event for event in read_tape(path) if event["kind"] == "model"]
    assert first["events"].encode() == b"".join(pieces)
    assert 0 < first["first_token_s"] <= first["latency_s"]
    trace = stored(path, tmp_path)["17"]
    assert trace.trajectory.messages[-1].content == "Hello ü"
    assert (trace.calls[0].streamed, trace.trajectory.steps[0].sampled) == (True, True)
    assert second["run"] == first["run"]


def test_threads_and_executors_of_an_agent_belong_to_its_run(tmp_path):
    path = tmp_path / "t.jsonl"

    @record(path)
    def agent(task):
        thread = threading.Thread(target=plain_agent, args=(task,), kwargs={"model": sdk})
        thread.start()
        thread.join()

    with Loopback(default=model) as server, client(server) as sdk:
        agent("17")
    (trace,) = stored(path, tmp_path).values()
    check_shop(trace, server)
    assert trace.agent == "agent"


# --- the three ways ------------------------------------------------------------------------------------------------------------------


def ask(sdk, text):
    return sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": text}]).choices[0].message.content


@pytest.fixture
def asked(tmp_path):
    """A client, and what was recorded of it by task."""
    with Loopback() as server, client(server) as sdk:
        sdk.path = tmp_path / "t.jsonl"
        sdk.runs = lambda: stored(sdk.path, tmp_path)
        sdk.url = server.base_url
        yield sdk


def test_decorated_functions_of_every_form(asked):
    class Shop:
        @record(asked.path, task=lambda self, order, **_: order, session=lambda self, order, **_: self.name)
        def method(self, order, *, loud=False):
            return ask(asked, f"{order} {loud}")

        name = "s1"

    class Callable:
        def __call__(self, order):
            return ask(asked, order)

    class AsyncCallable:
        async def __call__(self, order):
            return ask(asked, order)

    async def coroutine(order):
        return ask(asked, order)

    assert Shop().method("a", loud=True) == "answer 0"
    assert Shop.method.__name__ == "method"
    by_order = {"to": asked.path, "task": str}
    assert record(Callable(), **by_order)("b") == "answer 0"
    assert record(lambda order: ask(asked, order), **by_order)("c") == "answer 0"
    assert asyncio.run(record(AsyncCallable(), **by_order)("d")) == "answer 0"
    assert asyncio.run(record(coroutine, **by_order)("e")) == "answer 0"
    assert asyncio.run(record(lambda order: coroutine(order), **by_order)("f")) == "answer 0"  # noqa: PLW0108  gives a coroutine, is none
    assert record(Callable().__call__, **by_order)("g") == "answer 0"
    traces = asked.runs()
    assert sorted(traces) == list("abcdefg")
    assert {task: (trace.agent, len(trace.trajectory)) for task, trace in traces.items()} == {
        "a": ("method", 1), "b": ("Callable", 1), "c": ("<lambda>", 1), "d": ("AsyncCallable", 1), "e": ("coroutine", 1),
        "f": ("<lambda>", 1), "g": ("__call__", 1),
    }  # fmt: skip
    assert traces["a"].session == "s1"
    assert all(trace.trajectory.steps[-1].terminated for trace in traces.values())


def test_an_agent_object_keeps_everything_else(asked):
    class Agent:
        name = "shopkeeper"
        memory = ("x",)

        def invoke(self, order):
            return ask(asked, order)

        def stream(self, order):
            yield order

        def reset(self):
            return "reset"

    agent = record(Agent(), to=asked.path, task=str)
    assert (agent.invoke("a"), agent.reset(), agent.memory) == ("answer 0", "reset", ("x",))
    with pytest.raises(UserError, match=r"stream.*Put it into a block"):
        agent.stream("a")
    with pytest.raises(AttributeError):
        agent.nothing  # noqa: B018
    assert not hasattr(agent, "astream")
    assert asked.runs()["a"].agent == "shopkeeper"


def test_a_block_within_a_block_is_a_run_of_its_own(asked):
    with record(asked.path, task="outer") as outer:
        ask(asked, "one")
        with record(asked.path, task="inner"):
            ask(asked, "two")
        ask(asked, "three")
    traces = asked.runs()
    contexts = {task: [trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories)] for task, trace in traces.items()}
    assert {task: [each.prompt[0].content for each in found] for task, found in contexts.items()} == {
        "outer": ["one", "three"], "inner": ["two"],
    }  # fmt: skip
    assert traces["inner"].metadata["parent_run"] == outer.id
    assert "parent_run" not in traces["outer"].metadata


def test_one_recording_used_again_and_at_once(asked):
    recording = record(asked.path, task="t")
    with recording as one, recording as two:
        ask(asked, "inner")
    with recording as three:
        ask(asked, "again")
    assert len({one.id, two.id, three.id}) == 3
    assert [event["kind"] for event in read_tape(asked.path)] == ["run", "run", "model", "end", "end", "run", "model", "end"]

    async def block(number):
        async with recording:
            await asyncio.sleep(0.01 * (3 - number))
            await asyncio.to_thread(ask, asked, str(number))

    async def all_of_them():
        await asyncio.gather(*map(block, range(3)))

    asyncio.run(all_of_them())
    events = list(read_tape(asked.path))[8:]
    for run in {event["run"] for event in events}:
        assert [event["kind"] for event in events if event["run"] == run] == ["run", "model", "end"]


def test_what_goes_wrong_in_the_agent_is_recorded_and_raised(asked):
    with pytest.raises(KeyError), record(asked.path, task="a") as run:  # noqa: PT012
        ask(asked, "x")
        raise KeyError("lost")
    assert run.trace().trajectory.steps[-1].error == "KeyError: 'lost'"

    @record(asked.path, task="b")
    async def cancelled():
        ask(asked, "x")
        await asyncio.sleep(10)

    async def go():
        task = asyncio.create_task(cancelled())
        while len(list(read_tape(asked.path))) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    with pytest.raises(KeyboardInterrupt):
        record(lambda: (ask(asked, "x"), (_ for _ in ()).throw(KeyboardInterrupt())), to=asked.path, task="c")()
    assert {task: trace.metadata["error"] for task, trace in asked.runs().items()} == {
        "a": "KeyError: 'lost'", "b": "CancelledError: ", "c": "KeyboardInterrupt: ",
    }  # fmt: skip


def test_what_is_said_after_the_end_counts(asked):
    with record(asked.path, task="a") as run:
        ask(asked, "x")
    assert run.trace().outcome == Outcome()
    run.outcome(success=False)
    run.outcome(reward=0.25, source="human", details={"why": "late"})
    run.score("tone", True)
    run.tag("late")
    assert asked.runs()["a"].outcome == Outcome(0.25, None, "human", {"why": "late"})
    assert (asked.runs()["a"].scores[0].scaled, asked.runs()["a"].tags) == (1.0, ("late",))


@pytest.mark.parametrize(
    "use",
    [
        lambda path: record(3),
        lambda path: record(path, to=path),
        lambda path: record(lambda: (yield)),
        lambda path: record(path)(type("Agent", (), {})),
        lambda path: record(path, redact=["nonsense"]),
        lambda path: record(path, task=lambda: "x").__enter__(),
    ],
)
def test_wrong_use_is_an_error_that_helps(tmp_path, use):
    with pytest.raises(UserError, match="wanted"):
        use(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    "use",
    [
        lambda run: run.trace(),
        lambda run: run.outcome(),
        lambda run: run.outcome(reward="high"),
        lambda run: run.outcome(reward=float("nan")),
        lambda run: run.outcome(success=1),
        lambda run: run.outcome(success=True, source="me"),
        lambda run: run.score("n", float("inf")),
        lambda run: run.score("n", 1, 2, 2),
        lambda run: run.score("n", None),
    ],
)
def test_wrong_words_about_a_run_are_an_error_that_helps(tmp_path, use):
    with record(tmp_path / "t.jsonl") as run, pytest.raises(UserError, match="wanted"):
        use(run)


def test_a_naming_function_that_fails_costs_the_name_only(asked):
    agent = record(lambda order: ask(asked, order), to=asked.path, task=lambda order: order["id"])
    with pytest.warns(RuntimeWarning, match="names a run failed: TypeError"):
        assert agent("x") == "answer 0"
    assert list(asked.runs()) == [None]


def test_a_run_without_a_model_call_says_so(tmp_path):
    with record(tmp_path / "t.jsonl") as run:
        pass
    with pytest.raises(UserError, match="holds no model call"):
        run.trace()


# --- where it goes -------------------------------------------------------------------------------------------------------------------


def test_without_a_target_it_is_runs_jsonl(asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with record(task="a"):
        ask(asked, "x")
    assert record(lambda: ask(asked, "x"))() == "answer 0"
    assert [event["kind"] for event in read_tape("runs.jsonl")] == ["run", "model", "end"] * 2


def test_into_a_store_by_its_path_and_into_an_open_one(asked, tmp_path):
    path = tmp_path / "new" / "s.duckdb"
    path.parent.mkdir()
    with record(path, task="a") as run:
        ask(asked, f"my key is {KEY}")
    with Store.open(path) as store:
        (first,) = store.load()
        assert (first.task, first.id) == ("a", run.trace().id)
        assert "redacted" in first.trajectory.prompt[0].content, "as everything that is ingested"
        with record(store, task="b") as second:
            ask(asked, "y")
        second.outcome(reward=1.0)
        assert {trace.task: trace.outcome.reward for trace in store.load()} == {"a": None, "b": 1.0}
        assert store.verify() == []

    async def one(task):
        async with record(path, task=task):
            await asyncio.to_thread(ask, asked, task)

    async def all_of_them():
        await asyncio.gather(*map(one, "cd"))

    asyncio.run(all_of_them())
    with Store.open(path) as store:
        assert sorted(trace.task for trace in store.load()) == list("abcd")


def test_a_store_that_is_in_use_costs_nothing(asked, tmp_path, monkeypatch):
    from counterplay import recording_targets

    monkeypatch.setattr(recording_targets, "_PATIENCE_S", 0.1)
    path = tmp_path / "s.duckdb"
    with Store.open(path), pytest.warns(RuntimeWarning, match=r"could not be stored.*counterplay ingest"), record(path, task="a"):
        ask(asked, "x")
    assert [event["kind"] for event in read_tape(f"{path}.tape.jsonl")] == ["run", "model", "end"]


def test_a_sink_of_one_s_own(asked):
    class Sink:
        def __init__(self):
            self.lines = []

        def write(self, line):
            self.lines.append(line)

    sink = Sink()
    with record(sink, task="a") as run:
        ask(asked, "x")
    assert [json.loads(line)["kind"] for line in sink.lines] == ["run", "model", "end"]
    with pytest.raises(UserError, match="sink of your own"):
        run.trace()


def test_a_target_that_can_t_be_written_never_reaches_the_agent(asked, tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "t.jsonl", tmp_path, tmp_path / "file" / "s.duckdb"):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with record(target) as run:
                assert ask(asked, "x") == "answer 0"
        assert ["not complete" in str(each.message) for each in warned] == [True]
        assert run.incomplete, target
    foreign = tmp_path / "notes.jsonl"
    foreign.write_text('{"my": "notes"}\n')
    with pytest.warns(RuntimeWarning, match="not a tape"):
        assert record(lambda: ask(asked, "x"), to=foreign)() == "answer 0"
    assert foreign.read_text() == '{"my": "notes"}\n'


def test_strict_ends_the_agent_with_an_error_for_a_person(asked, tmp_path):
    with pytest.raises(CounterplayError, match="can't be written"), record(tmp_path, strict=True):
        pytest.fail("the agent never began")

    class Filling:
        count = 0

        def write(self, line):
            self.count += 1
            if self.count == 2:
                raise OSError(28, "No space left on device")

    reached = []

    def agent():
        for _ in range(3):
            with suppress(Exception):
                ask(asked, "x")
            reached.append(1)

    with pytest.raises(CounterplayError, match="No space left"):
        record(agent, to=Filling(), strict=True)()
    assert reached == []


# --- secrets, pins, kills ------------------------------------------------------------------------------------------------------------


def test_keys_that_errors_repeat_are_written_nowhere(tmp_path, monkeypatch):
    odd, inside = "hunter2-of-no-known-form", "another2-odd-one"
    monkeypatch.setenv("SHOP_API_KEY", inside)
    path = tmp_path / "t.jsonl"
    script = [
        (401, {"error": {"message": f"Incorrect API key provided: {odd}"}}),
        (400, {"error": {"message": f"no such deployment for {inside}, key {KEY}"}}),
    ]

    @tool()
    def broken() -> None:
        """Fails with what it should not say."""
        raise ValueError(f"can't log in with {inside}")

    with Loopback(*script) as server, openai.OpenAI(base_url=server.base_url, api_key=odd, max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError, match=odd), record(path, task="a"):
            ask(sdk, "x")
        with pytest.raises(openai.BadRequestError, match=inside), record(path, task="b"):
            ask(sdk, "x")
        with pytest.raises(ValueError, match=inside), record(path, task="c"):  # noqa: PT012
            ask(sdk, "x")
            broken()
        bad = openai.OpenAI(base_url=server.base_url, api_key=f"{odd}\nx", max_retries=0)
        with pytest.raises(openai.APIConnectionError), record(path, task="d"), bad:
            ask(bad, "x")
    data = path.read_bytes()
    assert [secret for secret in (odd, inside, KEY) if secret.encode() in data] == []
    assert data.count(b'"kind":"end"') == 4
    assert b"[key:redacted]" in data


def test_redaction_on_the_way_out(tmp_path):
    path = tmp_path / "t.jsonl"
    last = delta(None) | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    pieces = sse(delta("Write to jo"), delta("e@exam"), delta("ple.com"), last)
    with record(path, redact=True, metadata={"customer": "joe@example.com"}), Loopback() as server, client(server) as sdk:
        ask(sdk, f"I am joe@example.com and my key is {KEY}")
        ask(sdk, "nothing here")
        with Streaming(*pieces) as other, client(other) as stream:
            list(stream.chat.completions.create(model="m", messages=[{"role": "user", "content": "joe@example.com"}], stream=True))
    data = path.read_bytes()
    assert b"joe@" not in data
    assert b"ple.com" not in data
    assert KEY.encode() not in data
    assert server.bodies[1] in data, "what holds nothing stays byte for byte"
    first, _, streamed = [event for event in read_tape(path) if event["kind"] == "model"]
    token = first["request"]["messages"][0]["content"].split()[2]
    assert token.startswith("[email:redacted:")
    assert streamed["response"]["choices"][0]["message"]["content"] == f"Write to {token}"


def test_pinned_runs_say_what_they_draw_from(asked):
    import random
    import uuid

    drawn = []

    @record(asked.path, pin=True, task=str)
    def agent(task):
        drawn.append((random.random(), uuid.uuid4()))
        ask(asked, task)

    agent("a")
    agent("b")
    seeds = [trace.metadata["pins"]["seed"] for trace in asked.runs().values()]
    assert len(set(seeds)) == 2
    from counterplay.replay.agents.pins import pinned

    again = []
    for seed in (asked.runs()[task].metadata["pins"]["seed"] for task in "ab"):
        with pinned(seed=seed):
            again.append((random.random(), uuid.uuid4()))
    assert again == drawn
    with record(asked.path, pin=True, task="c"):
        ask(asked, "c")
        with pytest.warns(RuntimeWarning, match="not pinned"):
            agent("d")
    assert "pins" not in asked.runs()["d"].metadata


AGENT = """
import json, os, signal, sys
import openai
from counterplay.recording import record
from counterplay.replay.effects import tool

@tool(effect="pure")
def step(task: str) -> str:
    if os.environ.get("DIE") == task:
        os.kill(os.getpid(), signal.SIGKILL)
    return "x" * 3000

url, path, name = sys.argv[1:]
with openai.OpenAI(base_url=url, api_key="none") as client:
    for number in range(4):
        with record(path, task=f"{name}{number}"):
            messages = [{"role": "user", "content": "go"}]
            for _ in range(3):
                said = client.chat.completions.create(model="m", messages=messages).choices[0].message.content
                messages += [{"role": "assistant", "content": said}, {"role": "user", "content": step(f"{name}{number}")}]
"""


def test_kill_9_in_the_middle_and_two_processes_on_one_tape(tmp_path):
    import os

    path = tmp_path / "t.jsonl"
    with Loopback() as server:
        children = [
            subprocess.Popen([sys.executable, "-c", AGENT, server.base_url, str(path), name], cwd=ROOT, env={**os.environ, "DIE": "b2"})
            for name in "ab"
        ]
        assert [child.wait(60) for child in children] == [0, -signal.SIGKILL]
    traces = stored(path, tmp_path)
    assert sorted(traces) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2"]
    assert {task: len(trace.trajectory) for task, trace in traces.items() if task != "b2"} == dict.fromkeys(set(traces) - {"b2"}, 3)
    assert {task for task, trace in traces.items() if trace.completeness.open_spans} == {"b2"}
    assert len(traces["b2"].trajectory) == 1
