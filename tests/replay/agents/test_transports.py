"""Model calls of real clients, seen and answered in their transports."""

import asyncio
import contextvars
import gc
import gzip
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import httpx2
import openai
import pytest
from pydantic import BaseModel

from counterplay.core.errors import UserError
from counterplay.replay.agents.ambient import Interruption, ModelAnswer, current, intercepting
from counterplay.replay.agents.calls import unseen
from counterplay.replay.agents.sse import is_complete
from counterplay.replay.agents.transports import api_of, async_recording_transport, recording_transport
from tests.replay.agents.seen import Seen, Streaming, delta, sse
from tests.replay.loopback import Loopback, completion

HI = [{"role": "user", "content": "hi"}]
NOWHERE = "http://127.0.0.1:9/v1"


def client(url, **options):
    return openai.OpenAI(base_url=url, api_key="secret", max_retries=0, **options)


def async_client(url, **options):
    return openai.AsyncOpenAI(base_url=url, api_key="secret", max_retries=0, **options)


def ask(model, text="hi"):
    return model.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])


def said(text):
    return ModelAnswer(json.dumps(completion(text)).encode())


# --- seen ----------------------------------------------------------------------------------------------------------------------------


def test_a_call_is_shown_and_its_answer_reported_as_it_was():
    seen = Seen()
    with Loopback(completion("one")) as server, client(server.base_url) as model, intercepting(seen):
        assert ask(model).choices[0].message.content == "one"
    (request,), (answer,) = seen.requests, seen.answered
    assert (request.api, request.url, request.attempt, request.stream) == ("chat", "/v1/chat/completions", 0, False)
    assert request.body == server.bodies[0]
    assert json.loads(answer.body) == completion("one")
    assert (answer.status, answer.content_type, answer.error, answer.first_token_s) == (200, "application/json", None, None)
    assert answer.latency_s > 0
    assert answer.started_at_us > 1.7e15
    assert "secret" not in repr((seen.requests, seen.answered))


async def test_async_calls_are_seen_and_runs_side_by_side_never_mix():
    async def run(name):
        seen = Seen()
        with intercepting(seen):
            for at in range(5):
                await ask(model, f"{name} {at}")
        return seen

    with Loopback() as server:
        async with async_client(server.base_url) as model:
            runs = await asyncio.gather(*[run(f"run {at}") for at in range(10)])
    for at, seen in enumerate(runs):
        texts = [request.fields["messages"][0]["content"] for request in seen.requests]
        assert texts == [f"run {at} {i}" for i in range(5)]
        assert len(seen.answered) == 5


async def test_fifty_concurrent_calls_of_one_run_each_get_their_own_answer():
    seen = Seen()
    pool = openai.DefaultAsyncHttpx2Client(limits=httpx2.Limits(max_connections=8))  # the server's backlog is short
    with Loopback(default=lambda r: completion(r["messages"][0]["content"])) as server:
        async with async_client(server.base_url, http_client=pool) as model:
            with intercepting(seen):
                answers = await asyncio.gather(*[ask(model, str(at)) for at in range(50)])
    assert [a.choices[0].message.content for a in answers] == [str(at) for at in range(50)]
    assert sorted(json.loads(a.body)["choices"][0]["message"]["content"] for a in seen.answered) == sorted(map(str, range(50)))


def test_a_streamed_answer_is_passed_on_as_it_comes_and_reported_once():
    gate, seen, pieces = threading.Event(), Seen(), sse(delta("a"), delta("b"))
    with Streaming(b": wait\n\n", pieces[0], gate, *pieces[1:]) as server, client(server.base_url) as model, intercepting(seen):
        stream = model.chat.completions.create(model="m", messages=HI, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        assert seen.answered == []
        gate.set()
        assert [chunk.choices[0].delta.content for chunk in stream] == ["b"]
    (answer,) = seen.answered
    assert answer.body == b": wait\n\n" + b"".join(pieces)
    assert (answer.content_type, answer.error) == ("text/event-stream", None)
    assert 0 < answer.first_token_s <= answer.latency_s


@pytest.mark.parametrize("how", ["close", "break"])
def test_a_stream_closed_early_is_reported_with_what_was_seen(how):
    gate, seen, pieces = threading.Event(), Seen(), sse(delta("a"), delta("b"))
    with Streaming(pieces[0], gate, *pieces[1:]) as server, client(server.base_url) as model, intercepting(seen):
        stream = model.chat.completions.create(model="m", messages=HI, stream=True)
        for _ in stream:
            break
        stream.close() if how == "close" else stream._iterator.close()
        gate.set()
    (answer,) = seen.answered
    assert (answer.body, answer.error, answer.status) == (pieces[0], "closed early", 200)


async def test_async_streams_are_seen_to_their_end_and_when_closed_early():
    gate, seen, pieces = threading.Event(), Seen(), sse(delta("a"), delta("b"))
    gate.set()
    with Streaming(pieces[0], gate, *pieces[1:]) as server:
        async with async_client(server.base_url) as model:
            with intercepting(seen):
                stream = await model.chat.completions.create(model="m", messages=HI, stream=True)
                assert [c.choices[0].delta.content async for c in stream] == ["a", "b"]
                async with await model.chat.completions.create(model="m", messages=HI, stream=True) as stream:
                    await anext(aiter(stream))
    assert [a.error for a in seen.answered] == [None, "closed early"]
    assert seen.answered[0].body == b"".join(pieces)


def test_a_stream_that_does_not_say_so_is_passed_on_as_it_comes_too():
    gate, seen, pieces = threading.Event(), Seen(), sse(delta("a"), delta("b"))
    with (
        Streaming(pieces[0], gate, *pieces[1:], content_type="text/plain") as server,
        client(server.base_url) as model,
        intercepting(seen),
    ):
        stream = model.chat.completions.create(model="m", messages=HI, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        assert seen.answered == []
        gate.set()
        assert len(list(stream)) == 1
    assert [(a.content_type, a.error) for a in seen.answered] == [("text/plain", None)]


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        (b"", False),
        (b": ping\n\n", False),
        (b'data: {"a": 1}\n\n', False),
        (b'data: {"a": 1}\n\ndata: [DONE]', True),
        (b"data: [DONE]\r\n\r\n", True),
        (b'event: response.completed\ndata: {"type":"response.completed"}\n\n', True),
        (b'event: response.created\ndata: {"type":"response.created"}\n\n: ping\n\n', False),
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n: ping\n\n', True),
        (b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n', False),
    ],
)
def test_whether_a_stream_came_to_its_end(body, complete):
    assert is_complete(body) is complete


def test_a_client_that_stops_reading_at_the_last_event_has_read_it_all():
    seen, pieces = Seen(), sse(delta("a"))
    body = {"model": "m", "messages": HI, "stream": True}
    with (
        Streaming(*pieces) as server,
        intercepting(seen),
        httpx2.Client(base_url=server.base_url) as http,
        http.stream("POST", "/chat/completions", json=body) as response,
    ):
        assert any("[DONE]" in line for line in response.iter_lines())
    assert [a.error for a in seen.answered] == [None]


def test_a_connection_that_breaks_in_a_stream_is_reported_and_raised():
    seen, pieces = Seen(), sse(delta("a"))
    with Streaming(pieces[0], None) as server, client(server.base_url) as model, intercepting(seen):
        stream = model.chat.completions.create(model="m", messages=HI, stream=True)
        with pytest.raises(openai.APIConnectionError):
            list(stream)
    (answer,) = seen.answered
    assert (answer.body, answer.status) == (pieces[0], 200)
    assert answer.error.startswith("RemoteProtocolError: ")


def test_an_answer_that_never_came_has_status_0_and_the_error_goes_on():
    seen = Seen()
    with client(NOWHERE) as model, intercepting(seen), pytest.raises(openai.APIConnectionError):
        ask(model)
    (answer,) = seen.answered
    assert (answer.status, answer.body) == (0, b"")
    assert answer.error.startswith("ConnectError: ")
    with Loopback(1.0) as server, client(server.base_url, timeout=0.1) as model, intercepting(seen), pytest.raises(openai.APITimeoutError):
        ask(model)
    assert seen.answered[-1].error.startswith("ReadTimeout")


def test_a_cancelled_call_is_reported():
    async def main(seen, server):
        async with async_client(server.base_url) as model:
            with intercepting(seen):
                task = asyncio.create_task(ask(model))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    seen = Seen()
    with Loopback(0.5, completion("late")) as server:
        asyncio.run(main(seen, server))
    assert [(a.status, a.error) for a in seen.answered] == [(0, "CancelledError: ")]


def test_retries_are_attempts_of_their_own():
    seen, brief = Seen(), {"retry-after-ms": "1"}
    script = [(429, {"error": {"message": "slow"}}, brief), (500, b"oops", brief), completion("at last")]
    with Loopback(*script) as server, openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=2) as model, intercepting(seen):
        assert ask(model).choices[0].message.content == "at last"
    assert [(r.attempt, a.status) for r, a in zip(seen.requests, seen.answered, strict=True)] == [(0, 429), (1, 500), (2, 200)]
    assert seen.answered[1].body == b"oops"


def test_an_error_answer_to_a_streamed_request_is_read_whole():
    seen = Seen()
    with (
        Loopback((400, {"error": {"message": "no"}})) as server,
        client(server.base_url) as model,
        intercepting(seen),
        pytest.raises(openai.BadRequestError, match="no"),
    ):
        model.chat.completions.create(model="m", messages=HI, stream=True)
    assert [(a.status, json.loads(a.body)["error"]["message"]) for a in seen.answered] == [(400, "no")]


def test_an_answer_that_is_no_json_is_reported_as_it_is():
    seen = Seen()
    with Loopback(b"<html>") as server, client(server.base_url) as model, intercepting(seen):
        ask(model)
    assert seen.answered[0].body == b"<html>"


def test_compressed_answers_are_recorded_plain_and_passed_on_as_they_were():
    seen, body = Seen(), json.dumps(completion("packed")).encode()
    packed, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
    with Loopback((200, packed, headers)) as server, client(server.base_url) as model, intercepting(seen):
        assert ask(model).choices[0].message.content == "packed"
    assert seen.answered[0].body == body
    whole = gzip.compress(b"".join(sse(delta("a"))))
    with Streaming(whole[:20], whole[20:], headers=headers) as server, client(server.base_url) as model, intercepting(seen):
        stream = model.chat.completions.create(model="m", messages=HI, stream=True)
        assert [c.choices[0].delta.content for c in stream] == ["a"]
    assert seen.answered[1].body == b"".join(sse(delta("a")))
    with (
        Loopback((200, b"torn", headers)) as server,
        client(server.base_url) as model,
        intercepting(seen),
        pytest.raises(openai.APIConnectionError),
    ):
        ask(model)
    assert (seen.answered[2].body, seen.answered[2].error) == (b"torn", None)


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_plain_httpx_is_seen_and_what_is_no_model_call_is_not(library):
    seen, body = Seen(), {"model": "m", "input": "x"}
    with Loopback(default=lambda _: {"ok": True}) as server, library.Client(base_url=server.base_url) as http, intercepting(seen):
        for path in (
            "/embeddings",
            "/responses",
            "/messages",
            "/completions",
            "/openai/deployments/x/chat/completions?api-version=1&key=s",
        ):
            assert http.post(path, json=body).json() == {"ok": True}
        http.post("/files", json=body)
        http.post("/responses", json={"form": 3})
        http.post("/responses", content=b"[]")
        http.post("/chat/completions", content=iter([b'{"mod', b'el": "m"}']), headers={"content-length": "14"})
    assert [r.api for r in seen.requests] == ["other", "responses", "messages", "other", "chat", "chat"]
    assert seen.requests[4].url == "/v1/openai/deployments/x/chat/completions"
    assert seen.requests[5].body == b'{"model": "m"}' == server.bodies[-1]


async def test_an_async_body_is_read_and_still_sent():
    async def pieces():
        yield b'{"mod'
        yield b'el": "m"}'

    seen = Seen()
    with Loopback(default=lambda _: {"ok": True}) as server, intercepting(seen):
        for library in (httpx, httpx2):
            async with library.AsyncClient(base_url=server.base_url) as http:
                await http.post("/chat/completions", content=pieces(), headers={"content-length": "14"})
    assert [r.body for r in seen.requests] == server.bodies == [b'{"model": "m"}'] * 2


@pytest.mark.parametrize(
    ("method", "path", "api"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/v1/chat/completions/", "chat"),
        ("GET", "/v1/chat/completions", None),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/v1/responses/resp_1/cancel", None),
        ("POST", "/v1/messages", "messages"),
        ("POST", "/v1/messages/count_tokens", None),
        ("POST", "/v1/threads/t/messages", None),
        ("POST", "/v1/embeddings", "other"),
    ],
)
def test_which_requests_are_model_calls(method, path, api):
    assert api_of(method, path) == api


# --- answered in place ---------------------------------------------------------------------------------------------------------------


class Reply(BaseModel):
    n: int


def test_answers_in_place_reach_every_way_of_asking():
    stream = ModelAnswer(b"".join(sse(delta("a"), delta("b"))), content_type="text/event-stream")
    seen = Seen([said("1"), said("2"), said("3"), stream, said('{"n": 5}'), stream])
    with client(NOWHERE) as model, intercepting(seen):
        completions = model.chat.completions
        assert ask(model).choices[0].message.content == "1"
        raw = completions.with_raw_response.create(model="m", messages=HI)
        assert (raw.status_code, raw.parse().choices[0].message.content) == (200, "2")
        with completions.with_streaming_response.create(model="m", messages=HI) as response:
            assert json.loads(b"".join(response.iter_bytes())) == completion("3")
        assert [c.choices[0].delta.content for c in completions.create(model="m", messages=HI, stream=True)] == ["a", "b"]
        assert completions.parse(model="m", messages=HI, response_format=Reply).choices[0].message.parsed == Reply(n=5)
        with completions.stream(model="m", messages=HI) as events:
            assert events.get_final_completion().choices[0].message.content == "ab"
    assert seen.answered == []


async def test_async_answers_in_place():
    stream = ModelAnswer(b"".join(sse(delta("a"), delta("b"))), content_type="text/event-stream")
    with intercepting(Seen([said("1"), stream, said("3")])):
        async with async_client(NOWHERE) as model:
            assert (await ask(model)).choices[0].message.content == "1"
            chunks = await model.chat.completions.create(model="m", messages=HI, stream=True)
            assert [c.choices[0].delta.content async for c in chunks] == ["a", "b"]
            async with model.chat.completions.with_streaming_response.create(model="m", messages=HI) as response:
                assert await response.json() == completion("3")


def test_the_responses_api_is_seen_and_answered():
    body = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [],
        "output": [
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "yes", "annotations": []}]}
        ],
    }  # fmt: skip
    events = [{"type": "response.created", "sequence_number": 0, "response": {**body, "status": "in_progress", "output": []}}]
    events.append({"type": "response.completed", "sequence_number": 1, "response": body})
    seen = Seen()
    with Loopback(body) as server, client(server.base_url) as model, intercepting(seen):
        assert model.responses.create(model="m", input="hi").output_text == "yes"
    with Streaming(*sse(*events, end=())) as server, client(server.base_url) as model, intercepting(seen):
        assert [e.type for e in model.responses.create(model="m", input="hi", stream=True)] == ["response.created", "response.completed"]
    assert [(r.api, r.url) for r in seen.requests] == [("responses", "/v1/responses")] * 2
    assert [a.error for a in seen.answered] == [None, None]
    with client(NOWHERE) as model, intercepting(Seen(list(seen.answered))):
        assert model.responses.create(model="m", input="hi").output_text == "yes"
        assert [e.type for e in model.responses.create(model="m", input="hi", stream=True)][-1] == "response.completed"


def test_recorded_failures_fail_again_and_are_tried_again_without_waiting():
    refused = ModelAnswer(b'{"error": {"message": "slow"}}', status=429)
    down = ModelAnswer(status=0, error="ReadTimeout: too long")
    seen = Seen([refused, down, said("at last")])
    with openai.OpenAI(base_url=NOWHERE, api_key="k", max_retries=2) as model, intercepting(seen):
        assert ask(model).choices[0].message.content == "at last"
    assert [r.attempt for r in seen.requests] == [0, 1, 2]
    for library in (httpx2, httpx):
        with intercepting(Seen([refused])):
            response = library.post(f"{NOWHERE}/chat/completions", json={"model": "m"})
        assert (response.status_code, response.headers["retry-after-ms"], response.json()) == (429, "1", {"error": {"message": "slow"}})
    with client(NOWHERE) as model, intercepting(Seen([down, ModelAnswer(status=0, error="odd")])):
        with pytest.raises(openai.APITimeoutError) as caught:
            ask(model)
        assert isinstance(caught.value.__cause__, httpx2.ReadTimeout)
        with pytest.raises(openai.APIConnectionError):
            ask(model)
    broken = ModelAnswer(sse(delta("a"))[0], content_type="text/event-stream", error="RemoteProtocolError: gone")
    with client(NOWHERE) as model, intercepting(Seen([broken])):
        stream = model.chat.completions.create(model="m", messages=HI, stream=True)
        assert next(stream).choices[0].delta.content == "a"
        with pytest.raises(openai.APIConnectionError) as broke:
            next(stream)
        assert isinstance(broke.value.__cause__, httpx2.RemoteProtocolError)


class Diverged(Interruption):
    pass


def interrupt(_request):
    raise Diverged


async def test_an_interruption_goes_through_the_client_unwrapped():
    with intercepting(Seen([interrupt] * 9)):
        with client(NOWHERE) as model:
            for options in ({}, {"stream": True}):
                with pytest.raises(Diverged):
                    model.chat.completions.create(model="m", messages=HI, **options)
        async with async_client(NOWHERE) as model:
            for options in ({}, {"stream": True}):
                with pytest.raises(Diverged):
                    await model.chat.completions.create(model="m", messages=HI, **options)
            with pytest.raises(Diverged):
                await asyncio.gather(ask(model), ask(model))


def test_a_call_that_is_interrupted_while_it_is_made_was_answered_by_nobody():
    seen = Seen()
    with httpx2.Client(transport=httpx2.MockTransport(interrupt)) as http, intercepting(seen), pytest.raises(Diverged):
        http.post("http://x/v1/chat/completions", json={"model": "m"})
    assert (len(seen.requests), seen.answered) == (1, [])


def test_an_interruption_when_the_answer_is_reported_goes_through_and_frees_the_connection():
    class Strict(Seen):
        def model_answered(self, request, answer):
            raise Diverged

    with Loopback() as server, client(server.base_url) as model, intercepting(Strict()):
        for _ in range(2):
            with pytest.raises(Diverged):
                ask(model)
    pieces = sse(delta("a"))
    with Streaming(*pieces) as server, client(server.base_url) as model, intercepting(Strict()), pytest.raises(Diverged):
        list(model.chat.completions.create(model="m", messages=HI, stream=True))


def test_code_that_catches_every_exception_does_not_catch_an_interruption():
    def agent(model):
        try:
            return ask(model)
        except Exception:  # noqa: BLE001
            return "swallowed"

    with client(NOWHERE) as model, intercepting(Seen([interrupt])), pytest.raises(Diverged):
        agent(model)


# --- which run -----------------------------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_outside_of_a_run_nor_left_behind():
    originals = [vars(library.HTTPTransport)["handle_request"] for library in (httpx, httpx2)]
    start = threading.Thread.start
    with intercepting(Seen()), intercepting(Seen()):
        assert vars(httpx2.HTTPTransport)["handle_request"] is not originals[1]
    assert [vars(library.HTTPTransport)["handle_request"] for library in (httpx, httpx2)] == originals
    assert threading.Thread.start is start
    assert all(type(finder).__module__ != "counterplay.replay.agents.patches" for finder in sys.meta_path)


def test_a_library_imported_inside_of_a_run_is_seen():
    import subprocess

    code = """
import sys
from counterplay.replay.agents.ambient import intercepting
from tests.replay.agents.seen import Seen
from tests.replay.agents.test_late import answer
seen = Seen([answer, answer])
assert "httpx2" not in sys.modules and "httpx" not in sys.modules
with intercepting(seen):
    import httpx2, httpx
    for library in (httpx2, httpx):
        assert library.post("http://127.0.0.1:9/v1/chat/completions", json={"model": "m"}).json() == {"late": True}
assert len(seen.requests) == 2
"""
    code = code.replace("from tests.replay.agents.test_late import answer\n", "from counterplay.replay.agents.ambient import ModelAnswer\n")
    code = code.replace("[answer, answer]", "[ModelAnswer(b'{\"late\": true}')] * 2")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_pool_and_threads_belong_to_the_run_that_uses_them():
    seen, other = Seen(), Seen()

    def in_thread(model, text):
        thread = threading.Thread(target=ask, args=(model, text))
        thread.start()
        thread.join()

    with Loopback() as server, client(server.base_url) as model, ThreadPoolExecutor(1) as pool:
        pool.submit(ask, model, "before").result()
        with intercepting(seen):
            pool.submit(ask, model, "mine").result()
            in_thread(model, "my thread")
            with intercepting(other):
                pool.submit(ask, model, "other").result()
                in_thread(model, "other thread")
            nobody = contextvars.Context()
            nobody.run(lambda: pool.submit(ask, model, "nobody").result())
            nobody.run(in_thread, model, "nobody's thread")
        pool.submit(ask, model, "after").result()
    texts = [[r.fields["messages"][0]["content"] for r in each.requests] for each in (seen, other)]
    assert texts == [["mine", "my thread"], ["other", "other thread"]]
    assert len(server.requests) == 8


def test_threads_that_code_outside_of_the_one_run_starts_are_not_of_it():
    found, seen = [], Seen()

    def search():
        thread = threading.Thread(target=lambda: found.append(current()))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: found.append(current())).result()

    with intercepting(seen):
        contextvars.Context().run(search)
        search()
    assert found == [None, None, seen, seen]


def test_a_thread_that_was_there_before_belongs_to_the_one_run_and_to_none_of_two():
    asked, found = threading.Event(), []
    work, done = threading.Semaphore(0), threading.Semaphore(0)

    def worker():
        while not asked.is_set():
            work.acquire()
            found.append(current())
            done.release()

    thread = threading.Thread(target=worker)
    thread.start()
    first, second = Seen(), Seen()

    def look():
        work.release()
        done.acquire()

    look()
    with intercepting(first):
        look()
        with intercepting(second):
            look()
    asked.set()
    look()
    thread.join()
    assert found == [None, first, None, None]


def test_a_thread_that_outlives_its_run_belongs_to_the_next():
    found, work, done, over = [], threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def worker():
        while not over.is_set():
            work.acquire()
            found.append(current())
            done.release()

    first, second = Seen(), Seen()
    thread = threading.Thread(target=worker)
    with intercepting(first):
        thread.start()
        work.release()
        done.acquire()
    over.set()
    with intercepting(second):
        work.release()
        done.acquire()
    thread.join()
    assert found == [first, second]


async def test_other_tasks_of_the_same_loop_are_not_of_the_run():
    """A search that asks its own policy while an agent runs beside it."""
    seen, go = Seen(), asyncio.Event()

    async def search(model):
        await go.wait()
        await ask(model, "policy")

    with Loopback() as server:
        async with async_client(server.base_url) as model:
            policy = asyncio.create_task(search(model))
            with intercepting(seen):
                go.set()
                await ask(model, "agent")
                await policy
    assert [r.fields["messages"][0]["content"] for r in seen.requests] == ["agent"]


def test_calls_that_the_interceptor_makes_itself_are_not_the_agents():
    with Loopback() as server, client(server.base_url) as model:
        seen = Seen([lambda _: ModelAnswer(ask(model, "policy").to_json().encode())])
        with intercepting(seen):
            ask(model, "agent")
            with unseen():
                ask(model, "mine")
    assert [r.fields["messages"][0]["content"] for r in seen.requests] == ["agent"]
    assert [r["messages"][0]["content"] for r in server.requests] == ["policy", "mine"]


def test_a_run_begun_inside_of_a_call_of_another_is_seen_in_full():
    inner, inner_texts = Seen(), []

    def play(_request):
        with intercepting(inner):
            inner_texts.append(ask(model, "inner").choices[0].message.content)
        return said("outer")

    with Loopback() as server, client(server.base_url) as model, intercepting(Seen([play])):
        assert ask(model).choices[0].message.content == "outer"
    assert inner_texts == ["answer 0"]
    assert (len(inner.requests), len(inner.answered), len(server.requests)) == (1, 1, 1)


def test_a_stream_that_is_collected_inside_of_the_interceptor_is_reported_after_it():
    held = []

    class Locked(Seen):
        def model(self, request):
            with lock:
                held.clear()  # the last reference to the open stream
                gc.collect()
                return super().model(request)

        def model_answered(self, request, answer):
            assert lock.acquire(blocking=False)
            super().model_answered(request, answer)
            lock.release()

    lock, gate, seen, pieces = threading.Lock(), threading.Event(), Locked(), sse(delta("a"), delta("b"))
    with Streaming(pieces[0], gate, *pieces[1:]) as server, client(server.base_url) as model, intercepting(seen):
        held.append(model.chat.completions.create(model="m", messages=HI, stream=True))
        next(held[0])
        gate.set()
        list(model.chat.completions.create(model="m", messages=HI, stream=True))
    assert [a.error for a in seen.answered] == ["closed early", None]


def test_a_task_left_over_from_a_run_that_is_over_is_nobodys():
    leftover = contextvars.Context()
    with intercepting(Seen()):
        leftover = contextvars.copy_context()
    with intercepting(Seen()):
        assert leftover.run(current) is None


# --- clients with transports of their own ----------------------------------------------------------------------------------------------


class Custom(httpx2.BaseTransport):
    closed = False

    def handle_request(self, _request):
        return httpx2.Response(200, json=completion("custom"))

    def close(self):
        self.closed = True


class AsyncCustom(httpx.AsyncBaseTransport):
    closed = False

    async def handle_async_request(self, _request):
        return httpx.Response(200, json=completion("custom"))

    async def aclose(self):
        self.closed = True


async def test_a_transport_of_the_users_own_is_seen_when_it_is_named():
    seen, inner, async_inner = Seen(), Custom(), AsyncCustom()
    http = httpx2.Client(transport=recording_transport(inner))
    with client(NOWHERE, http_client=http) as model:
        with intercepting(seen):
            assert ask(model).choices[0].message.content == "custom"
        ask(model)
    async with httpx.AsyncClient(transport=async_recording_transport(async_inner)) as http:
        with intercepting(seen):
            await http.post("http://x/v1/chat/completions", json={"model": "m"})
    assert len(seen.requests) == len(seen.answered) == 2
    assert json.loads(seen.answered[0].body) == json.loads(seen.answered[1].body) == completion("custom")
    assert (inner.closed, async_inner.closed) == (True, True)


def test_a_named_transport_round_a_real_one_is_seen_once():
    seen = Seen()
    http = httpx2.Client(transport=recording_transport(httpx2.HTTPTransport()))
    with Loopback() as server, client(server.base_url, http_client=http) as model, intercepting(seen):
        ask(model)
    assert len(seen.requests) == len(seen.answered) == 1


@pytest.mark.parametrize("odd", [None, httpx2.AsyncHTTPTransport(), "x"])
def test_what_is_no_transport_is_refused(odd):
    with pytest.raises(UserError, match="no sync transport"):
        recording_transport(odd)


async def test_test_transports_are_seen():
    seen = Seen()

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(completion("app")).encode()})

    with intercepting(seen):
        for library in (httpx, httpx2):
            with library.Client(transport=library.MockTransport(lambda _: library.Response(200, json={"a": 1}))) as http:  # noqa: B023
                assert http.post("http://x/v1/chat/completions", json={"model": "m"}).json() == {"a": 1}
            async with library.AsyncClient(transport=library.ASGITransport(app)) as http:
                assert (await http.post("http://x/v1/chat/completions", json={"model": "m"})).json() == completion("app")
    assert [json.loads(a.body) for a in seen.answered] == [{"a": 1}, completion("app")] * 2
