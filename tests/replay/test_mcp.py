"""MCP servers as worlds: real servers of the official SDK, over stdio, over HTTP on loopback, and in the process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from counterplay.core.effects import Effect
from counterplay.core.errors import DivergenceError, UserError
from counterplay.core.nouns import Message
from counterplay.replay.capabilities import capabilities
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.mcp import mcp_world
from counterplay.replay.mcp_content import content_of
from counterplay.replay.testing import check_environment
from tests.replay.shelf import act, results, walk

pytest.importorskip("mcp")
types = pytest.importorskip("mcp_types")
from mcp import StdioServerParameters  # noqa: E402

from tests.replay.mcp_server import make_server  # noqa: E402

SERVER = str(Path(__file__).parent / "mcp_server.py")
PROMPT = [Message.user("Keep notes.")]


def put(key: str, text: str):
    return act(("put", {"key": key, "text": text}))


@pytest.fixture
def ledger(tmp_path):
    """Counts the tools that any server executed."""
    path = tmp_path / "executed.txt"
    path.touch()
    return path


def executed(ledger: Path) -> Counter:
    return Counter(ledger.read_text().split())


def stdio(ledger: Path, **options):
    parameters = StdioServerParameters(command=sys.executable, args=[SERVER, "stdio", str(ledger)])
    return mcp_world(parameters, prompt=PROMPT, **options)


def inside(ledger: Path, **options):
    return mcp_world(lambda: make_server(ledger), prompt=PROMPT, **options)


@pytest.fixture
def url(ledger):
    """A server that runs on loopback, whoever connects."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, SERVER, "http", str(ledger), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_for_each_branch_brought_to_its_state_and_none_left_over(ledger):
    async with LiveEnvironment(stdio(ledger)) as environment:
        assert capabilities(environment).restorable == "re-execute"
        root = await environment.initial()
        fork = await walk(environment, root, put("a", "one"), act("process"))
        left = await walk(environment, fork, put("b", "two"), act("everything"), act("process"))
        executed_before = executed(ledger)["put"]
        right = await walk(environment, fork.prefix(1), act("everything"), act("process"))
        assert executed(ledger)["put"] == executed_before + 1
        assert results(left)[3] == '{\n  "a": "one",\n  "b": "two"\n}'
        assert results(right)[1] == '{\n  "a": "one"\n}'
        processes = {int(results(left)[-1]), int(results(right)[-1])}
        assert len(processes) == 2
        assert all(alive(process) for process in processes)
    assert not any(alive(process) for process in processes)


async def test_a_server_that_dies_is_data_with_its_last_words(ledger):
    async with LiveEnvironment(stdio(ledger)) as environment:
        root = await environment.initial()
        step = await environment.step(root, act("count", "die", "count"))
        assert [message.content_text for message in step.observations] == ["0"]
        assert step.error.startswith("ConnectionError: the MCP server")
        assert step.error.endswith("out of paper")
        assert results(await walk(environment, root, act("count"))) == ["0"]


async def test_a_call_that_takes_too_long_is_data(ledger):
    async with LiveEnvironment(stdio(ledger, timeout_s=0.3)) as environment:
        step = await environment.step(await environment.initial(), act(("sleep", {"seconds": 1.0})))
        assert "TimeoutError" in step.error
        assert "did not answer sleep within 0.3 s" in step.error


async def test_servers_that_can_not_be_reached_are_named(ledger):
    for server in (
        StdioServerParameters(command="/no/such/server"),
        StdioServerParameters(command=sys.executable, args=["-c", "import sys; sys.exit('no licence')"]),
        "http://127.0.0.1:9/mcp",
    ):
        environment = LiveEnvironment(mcp_world(server))
        with pytest.raises(UserError, match=r"the MCP server .* can't be reached") as caught:
            await environment.open()
        assert ("no licence" in str(caught.value)) == ("sys.exit" in str(getattr(server, "args", "")))


async def test_a_running_server_is_shared_and_never_played_again(url, ledger):
    async with LiveEnvironment(mcp_world(url, prompt=PROMPT)) as environment:
        assert capabilities(environment).restorable == "none"
        root = await environment.initial()
        line = await walk(environment, root, put("a", "one"), put("b", "two"), act("count"))
        assert results(line)[-1] == "2"
        before = executed(ledger)
        refused = await environment.step(line.prefix(1), act("count"))
        assert refused.truncated
        assert "can't be restored" in refused.error
        assert executed(ledger) == before
        assert results(await walk(environment, root, act("count"))) == ["2"]


async def test_a_running_server_that_only_reads_may_be_asked_again(url):
    effects = {name: Effect("read") for name in ("put", "send_mail")}
    async with LiveEnvironment(mcp_world(url, prompt=PROMPT, effects=effects)) as environment:
        assert capabilities(environment).restorable == "re-execute"
        state = await walk(environment, await environment.initial(), act("count"), act("everything"))
        assert results(await walk(environment, state.prefix(1), act("count"))) == ["0", "0"]


async def test_what_says_nothing_of_itself_is_external_and_never_executed_unless_named(ledger):
    mail = act(("send_mail", {"to": "all"}))
    async with LiveEnvironment(inside(ledger)) as environment:
        root = await environment.initial()
        assert {tool.name: str(tool.effect) for tool in root.tools} == {
            "get": "read", "everything": "read", "count": "read", "put": "write", "picture": "read",
            "sleep": "read", "die": "read", "process": "read", "send_mail": "external",
        }  # fmt: skip
        state = await walk(environment, root, put("a", "one"))
        assert "send_mail is external" in (await environment.step(state, mail)).error
    found = await check_environment(inside(ledger), [("put", {"key": "a", "text": "b"}), ("send_mail", {"to": "all"}), ("count", {})])
    assert found.left_out == ("send_mail",)
    assert executed(ledger)["send_mail"] == 0
    async with LiveEnvironment(inside(ledger), allow_external={"send_mail"}) as named:
        assert results(await walk(named, await named.initial(), mail)) == ["sent to all"]
    assert executed(ledger)["send_mail"] == 1


async def test_fingerprints_tell_servers_their_surroundings_and_effects_apart(ledger, tmp_path):
    def parameters(**more):
        return StdioServerParameters(command=sys.executable, args=[SERVER, "stdio", str(ledger)], **more)

    makes = [
        mcp_world(parameters(), prompt=PROMPT),
        mcp_world(parameters(env={"SHOP": "two"}), prompt=PROMPT),
        mcp_world(parameters(cwd=tmp_path), prompt=PROMPT),
        mcp_world(parameters(), prompt=PROMPT, effects={"put": Effect("external")}),
    ]
    prints = set()
    for make in makes:
        async with LiveEnvironment(make) as environment:
            prints.add(environment.fingerprint)
    assert len(prints) == len(makes)
    assert not any("two" in text.rpartition(":")[2] for text in prints)


async def test_the_conformance_check_passes_a_server_of_ones_own_and_names_one_that_is_shared(ledger):
    calls = [("put", {"key": "a", "text": "b"}), ("count", {}), ("everything", {})]
    found = await check_environment(inside(ledger), calls)
    assert found.checked == ("deterministic", "restore", "no leak")
    shared = make_server(ledger)
    with pytest.raises(UserError, match=r"(deterministic|restore|no leak).* of count \(result_drift\) answered '1'; wanted '0'"):
        await check_environment(mcp_world(lambda: shared, prompt=PROMPT), [("count", {}), *calls])


async def test_forks_played_at_once_do_not_meet_and_a_prefix_that_differs_is_refused(ledger):
    async with LiveEnvironment(inside(ledger)) as environment:
        fork = await walk(environment, await environment.initial(), put("a", "one"))
        steps = await asyncio.gather(*(environment.step(fork, act(("put", {"key": f"k{i}", "text": "x"}), "count")) for i in range(8)))
        assert [step.observations[1].content_text for step in steps] == ["2"] * 8
    other = await walk(LiveEnvironment(inside(ledger)), fork.prefix(0), put("a", "two"))
    wrong = fork.prefix(0).extend(other.steps[0])
    async with LiveEnvironment(inside(ledger)) as environment:
        assert (await environment.step(wrong, act("count"))).observations[0].content_text == "1"
        lied = fork.prefix(0).extend(type(fork.steps[0])(fork.steps[0].action, other.steps[0].observations))
        with pytest.raises(DivergenceError, match="of put"):
            await environment.step(lied, act("count"))


async def test_idle_connections_are_bounded(ledger):
    async with LiveEnvironment(inside(ledger)) as environment:
        root = await environment.initial()
        for i in range(20):
            await walk(environment, root, put("a", str(i)))
        assert len(environment._kept) == 16


async def test_errors_and_pictures_as_the_agent_sees_them(ledger):
    async with LiveEnvironment(inside(ledger)) as environment:
        root = await environment.initial()
        state = await walk(environment, root, act(("get", {"key": "zz"}), ("put", {"key": 1})), act("picture"))
        missing, wrong, picture = [message for step in state.steps for message in step.observations]
        assert missing.content_text == "Error executing tool get: no note zz"
        assert "text\n  Field required" in wrong.content_text
        assert picture.content[0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        assert len(await walk(environment, state.prefix(1), act("picture"))) == 2
        old = picture.to_openai()
        old["content"][0]["image_url"]["url"] += "AAAA"
        other = type(state.steps[1])(state.steps[1].action, (Message.from_openai(old),))
        with pytest.raises(DivergenceError, match=r"of picture \(result_drift\)"):
            await LiveEnvironment(inside(ledger)).step(state.prefix(1).extend(other), act("count"))


def text(said: str):
    return types.TextContent(type="text", text=said)


@pytest.mark.parametrize(
    ("blocks", "structured", "error", "wanted"),
    [
        ([text("hi")], None, False, "hi"),
        ([], None, False, ""),
        ([], {"a": 1}, False, '{"a":1}'),
        ([text('{"a": 1}')], {"a": 1}, False, '{"a": 1}'),
        ([text("3")], {"result": 3}, False, "3"),
        ([text("x"), text("y")], {"result": ["x", "y"]}, False, [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]),
        ([text("see")], {"a": 1}, False, [{"type": "text", "text": "see"}, {"type": "text", "text": '{"a":1}'}]),
        ([text("no such order")], None, True, "Error: no such order"),
        ([text("Error: gone")], None, True, "Error: gone"),
        ([], None, True, "Error:"),
        (
            [types.AudioContent(type="audio", data="QUJD", mime_type="audio/wav")],
            None,
            False,
            [{"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}],
        ),
        (
            [types.ImageContent(type="image", data="QUJD", mime_type="image/png")],
            None,
            True,
            [{"type": "text", "text": "Error:"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}],
        ),
        (
            [types.EmbeddedResource(type="resource", resource=types.TextResourceContents(uri="file:///a", text="inner"))],
            None,
            False,
            "inner",
        ),
        (
            [types.EmbeddedResource(type="resource", resource=types.BlobResourceContents(uri="file:///b", blob="QUJD"))],
            None,
            False,
            [{"type": "file", "file": {"filename": "file:///b", "file_data": "data:application/octet-stream;base64,QUJD"}}],
        ),
        (
            [types.ResourceLink(type="resource_link", name="n", uri="file:///c")],
            None,
            False,
            '{"name":"n","uri":"file:///c","type":"resource_link"}',
        ),
    ],
)
def test_content_of_every_kind(blocks, structured, error, wanted):
    assert content_of(types.CallToolResult(content=blocks, structured_content=structured, is_error=error)) == wanted
