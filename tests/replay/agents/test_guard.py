"""Nothing live inside of a guarded run, by whatever way."""

import asyncio
import http.client
import multiprocessing
import os
import smtplib
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import httpx2
import openai
import pytest
import requests

from counterplay.core.errors import UserError
from counterplay.replay.agents.ambient import Interruption, ModelAnswer, intercepting
from counterplay.replay.agents.guard import LiveEffect, guarded
from counterplay.replay.effects import tool
from tests.replay.agents.seen import Seen
from tests.replay.loopback import Loopback, completion


@pytest.fixture
def server():
    with Loopback(default=lambda _: completion("live")) as running:
        yield running


def place(server):
    return server.base_url.removeprefix("http://").removesuffix("/v1")


def blocked(act, what, kind=None):
    with pytest.raises(LiveEffect) as caught:
        act()
    assert what in caught.value.what
    assert kind is None or caught.value.kind == kind
    assert isinstance(caught.value, Interruption)
    assert what in str(caught.value)


def test_no_way_out_is_open(server):
    host, port = place(server).split(":")
    body = {"form": 1}
    stream, datagrams = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ways = [
        lambda: httpx.post(server.base_url, json=body),
        lambda: httpx2.post(server.base_url, json=body),
        lambda: requests.post(server.base_url, json=body, timeout=5),
        lambda: socket.create_connection((host, int(port))),
        lambda: stream.connect_ex((host, int(port))),
        lambda: datagrams.sendto(b"x", (host, int(port))),
        lambda: http.client.HTTPConnection(host, int(port)).request("GET", "/"),
        lambda: smtplib.SMTP(host, int(port)),
        lambda: asyncio.run(asyncio.open_connection(host, int(port))),
        lambda: asyncio.run(apost(httpx2.AsyncClient, server.base_url)),
        lambda: asyncio.run(apost(httpx.AsyncClient, server.base_url)),
    ]
    with intercepting(Seen()), guarded():
        for way in ways:
            blocked(way, f"{host}:{port}", "connection")
    datagrams.close()
    assert server.requests == []


async def apost(kind, url):
    async with kind() as client:
        return await client.post(url, json={"form": 1})


def test_names_are_not_even_looked_up_and_are_said():
    with intercepting(Seen()), guarded():
        blocked(lambda: httpx2.get("https://mail.example.test/x"), "mail.example.test:443", "connection")
        blocked(lambda: socket.getaddrinfo("mail.example.test", 25), "mail.example.test:25", "lookup")
        blocked(lambda: asyncio.run(asyncio.open_connection("mail.example.test", 25)), "mail.example.test:25", "lookup")
        blocked(lambda: smtplib.SMTP("mail.example.test"), "mail.example.test:25")
        blocked(lambda: requests.get("http://mail.example.test/", timeout=5), "mail.example.test:80")


def test_no_process_is_started():
    code = [sys.executable, "-c", "print(1)"]
    with intercepting(Seen()), guarded():
        blocked(lambda: subprocess.run(code, check=True), "print(1)", "process")
        blocked(lambda: subprocess.run("echo hi", shell=True, check=True), "echo hi", "process")
        blocked(lambda: os.system("true"), "true", "process")
        blocked(lambda: os.execv(sys.executable, code), "print(1)", "process")
        blocked(lambda: os.posix_spawn(sys.executable, code, {}), "print(1)", "process")
        blocked(lambda: asyncio.run(asyncio.create_subprocess_exec(*code)), "print(1)", "process")
        blocked(os.fork, "a copy", "process")
        for method in ("fork", "spawn"):
            blocked(multiprocessing.get_context(method).Process(target=print).start, "", "process")
    assert subprocess.run(code, check=True, capture_output=True).stdout == b"1\n"


def test_a_connection_that_is_open_already_is_no_way_out(server):
    host, port = place(server).split(":")
    with httpx2.Client(base_url=server.base_url) as client, requests.Session() as session:
        client.post("/x", json={})
        session.post(server.base_url, json={}, timeout=5)
        with intercepting(Seen()), guarded():
            blocked(lambda: client.post("/x", json={"form": 1}), f"{host}:{port}")
            blocked(lambda: session.post(server.base_url, json={"form": 1}, timeout=5), f"{host}:{port}")
    assert len(server.requests) == 2


async def test_an_open_async_connection_is_no_way_out_either(server):
    async with httpx2.AsyncClient(base_url=server.base_url) as client:
        await client.post("/x", json={})
        with intercepting(Seen()), guarded(), pytest.raises(LiveEffect):
            await client.post("/x", json={"form": 1})
    assert len(server.requests) == 1


def test_threads_and_pools_of_the_run_are_guarded_and_others_are_not(server):
    host, port = place(server).split(":")
    errors = []

    def act():
        try:
            socket.create_connection((host, int(port))).close()
        except LiveEffect as effect:
            errors.append(effect.what)
        else:
            errors.append("live")

    def in_thread():
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()

    outsider, go = None, threading.Event()

    def outside():
        go.wait()
        in_thread()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result()
        outsider = threading.Thread(target=outside)
        outsider.start()
        with intercepting(Seen()), guarded(), intercepting(second := Seen()):
            with guarded():
                pool.submit(act).result()
                in_thread()
            assert second.requests == []
            in_thread()  # the second run, whose guard is gone
            go.set()
            outsider.join()  # two runs, and a thread of neither
        pool.submit(act).result()
    assert errors == ["live", f"{host}:{port}", f"{host}:{port}", "live", "live", "live"]


async def test_a_run_beside_a_guarded_one_is_free(server):
    async def run(guard):
        with intercepting(Seen()):
            if not guard:
                await apost(httpx2.AsyncClient, server.base_url)
                return "live"
            with guarded():
                await asyncio.sleep(0.05)
                try:
                    await apost(httpx2.AsyncClient, server.base_url)
                except LiveEffect:
                    return "blocked"

    assert await asyncio.gather(run(True), run(False), run(True)) == ["blocked", "live", "blocked"]


def test_what_was_let_through_may_reach_out(server):
    @tool()
    def fetch() -> int:
        return httpx2.post(server.base_url, json={"form": 1}).status_code

    seen = Seen(models=[ModelAnswer(b"{}"), None])
    with intercepting(seen), guarded(), openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as model:
        model.chat.completions.create(model="m", messages=[])
        assert server.requests == []
        assert model.chat.completions.create(model="m", messages=[]).choices[0].message.content == "live"
        assert fetch() == 200
        with pytest.raises(LiveEffect):
            model.models.list()
    assert len(server.requests) == 2


async def test_an_async_model_that_was_let_through_may_reach_out(server):
    url = server.base_url.replace("127.0.0.1", "localhost")  # which is looked up in a thread
    with intercepting(Seen()), guarded():
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as model:
            assert (await model.chat.completions.create(model="m", messages=[])).choices[0].message.content == "live"


def test_hosts_that_are_named_are_allowed(server):
    host, port = place(server).split(":")
    for allowed in (host, f"{host}:{port}"):
        with intercepting(Seen()), guarded(allow_hosts=[allowed]):
            assert httpx2.post(server.base_url, json={}).status_code == 200
            assert asyncio.run(apost(httpx.AsyncClient, server.base_url)).status_code == 200
    with intercepting(Seen()), guarded(allow_hosts=["LocalHost"]):
        assert httpx2.post(f"http://localhost:{port}", json={}).status_code == 200
        assert requests.post(f"http://localhost:{port}", json={}, timeout=5).status_code == 200
    with intercepting(Seen()), guarded(allow_hosts=[f"{host}:1", "example.test"]), pytest.raises(LiveEffect):
        httpx2.post(server.base_url, json={})


def test_an_effect_is_known_even_where_everything_is_caught(server):
    effects = []

    def agent():
        try:
            return httpx2.post(server.base_url, json={})
        except:  # noqa: E722
            return None

    with intercepting(Seen()), guarded(on_effect=effects.append):
        assert agent() is None
    assert [(e.kind, e.what) for e in effects] == [("connection", place(server))]


def test_files_databases_loops_and_imports_go_on(tmp_path):
    async def main():
        await asyncio.sleep(0.001)
        return await asyncio.to_thread(lambda: (tmp_path / "f").write_text("x"))

    with intercepting(Seen()), guarded():
        assert asyncio.run(main()) == 1
        with sqlite3.connect(tmp_path / "db") as database:
            database.execute("create table t (a)")
        database.close()
        left, right = socket.socketpair()
        left.send(b"x")
        assert right.recv(1) == b"x"
        left.close()
        right.close()
        assert __import__("this_is_none", {}, {}, [], 0) if False else True


def test_a_first_client_made_inside_of_a_guarded_run_starts_nothing():
    """What clients find out about the machine must not start processes."""
    code = """
from counterplay.replay.agents.ambient import ModelAnswer, intercepting
from counterplay.replay.agents.guard import guarded
from tests.replay.agents.seen import Seen
body = b'{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}'
with intercepting(Seen([ModelAnswer(body)])), guarded():
    import openai
    openai.OpenAI(base_url="http://model.example.test/v1", api_key="k").chat.completions.create(model="m", messages=[])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_outside_of_a_run_there_is_nothing_to_guard():
    with pytest.raises(UserError, match="no run"), guarded():
        pass


def test_nothing_is_guarded_afterwards(server):
    lookup = socket.getaddrinfo
    with intercepting(Seen()), guarded():
        assert socket.getaddrinfo is not lookup
    assert socket.getaddrinfo is lookup
    assert httpx2.post(server.base_url, json={}).status_code == 200
    with intercepting(Seen()):
        assert httpx2.post(server.base_url, json={}).status_code == 200
