"""What a fork puts on the wire is what was recorded, byte for byte up to the fork, so that prompt caches are hit."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import openai
import pytest

from counterplay.connectors.chatlog import ChatLog
from counterplay.core.budget import Budget
from counterplay.core.nouns import Message, State, Step, ToolSpec, Trace
from counterplay.replay.fork import fork, request_messages, request_tools
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.recorded import RecordedEnvironment
from counterplay.search.fork import fork_best_of_n
from tests.replay.loopback import Loopback, completion

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": 'Find — a <thing>. \u2028 "quoted" \\ 🎈',
            "parameters": {
                "type": "object",
                "properties": {"größe": {"type": "number", "minimum": 0.10, "maximum": 1e22}},
                "required": ["größe"],
            },
            "strict": True,
        },
        "x-vendor": {"b": 1, "a": [None, -0.0, 12345678901234567890]},
    },
    {"type": "function", "function": {"name": "say", "parameters": {}}},
]
PROMPT = [
    {"content": "System first, role last. Grüße\u2029", "role": "system"},
    {
        "role": "user",
        "name": "Zoë",
        "content": [{"type": "text", "text": "a\tb\n"}, {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}],
    },
]


def as_dumped(message):
    return message.model_dump(exclude_none=True)


def by_hand(message):
    calls = [
        {"function": {"arguments": c.function.arguments, "name": c.function.name}, "type": "function", "id": c.id}
        for c in message.tool_calls or ()
    ]
    return {"tool_calls": calls, "content": message.content or "", "role": "assistant"}


def as_it_is(message):
    return message


AGENTS = pytest.mark.parametrize("echo", [as_dumped, by_hand, as_it_is])


def thought(request):
    """A reasoning model; not for an agent that would leave the reasoning out."""
    return {} if request.get("user") == "by_hand" else {"reasoning_content": "hm…"}


def answers(request):
    """Calls a tool at every step, with arguments spelt as models spell them, and stops at the seventh."""
    number = sum(message["role"] == "assistant" for message in request["messages"])
    if number == 6:
        return completion("done ✓")
    spelt = f'{{"größe":  {number}, "s": "a\\u00e9b"}}'
    return completion(None, calls=[(f"call_{number}aB", "look_up", spelt), (f"call_{number}cD", "say", "{}")], **thought(request))


def record(path: Path, echo) -> list[bytes]:
    """Run an agent of the official client; its requests as they went over the wire."""
    messages = list(PROMPT)
    rows = []
    with Loopback(default=answers) as server, openai.OpenAI(base_url=server.base_url, api_key="k") as client:
        while True:
            raw = client.chat.completions.with_raw_response.create(model="m-1", messages=messages, tools=TOOLS, user=echo.__name__)
            rows.append({"metadata": {"trace_id": "t"}, "request": server.requests[-1], "response": json.loads(raw.content)})
            message = raw.parse().choices[0].message
            messages.append(echo(message))
            if not message.tool_calls:
                break
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": f"Ergebnis {call.id} ✓ \\u00e9"} for call in message.tool_calls
            ]
        bodies = list(server.bodies)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return bodies


async def read(path: Path) -> Trace:
    (trace,) = [item async for item in ChatLog().read(path) if isinstance(item, Trace)]
    return trace


def array(body: bytes, name: str) -> bytes:
    """The bytes of one array of a request."""
    text = body.decode()
    start = text.index(f'"{name}":') + len(name) + 3
    return text[start : json.JSONDecoder().raw_decode(text, start)[1]].encode()


def common_start(*bodies: bytes) -> bytes:
    """What all of them begin with."""
    shortest = min(bodies, key=len)
    differs = (i for i, byte in enumerate(shortest) if any(body[i] != byte for body in bodies))
    return shortest[: next(differs, len(shortest))]


async def sent(state: State, *, draws: int = 1, **options) -> list[bytes]:
    with Loopback() as server:
        async with OpenAIPolicy("m-1", base_url=server.base_url, api_key="k", **options) as policy:
            await policy.propose(state, draws)
        return server.bodies


@AGENTS
async def test_every_fork_sends_the_recorded_bytes(tmp_path, echo):
    path = tmp_path / "log.jsonl"
    bodies = record(path, echo)
    trace = await read(path)
    assert len(trace.trajectory) == 7
    for step, recorded in enumerate(bodies):
        state = fork(trace, step)
        (body,) = await sent(state)
        assert array(body, "tools") == array(recorded, "tools") == request_tools(state)
        assert array(body, "messages") == array(recorded, "messages") == request_messages(state)
    assert "größe".encode() in bodies[0]
    assert rb"a\\u00e9b" in bodies[1]


@AGENTS
async def test_alternatives_share_every_byte_up_to_what_was_drawn(tmp_path, echo):
    path = tmp_path / "log.jsonl"
    record(path, echo)
    trace = await read(path)
    for step in (0, 3, 6):
        state = fork(trace, step)
        one, two, three = [await sent(state, **options) for options in ({}, {"seed": 7}, {"draws": 3, "n_support": "never"})]
        common = common_start(*one, *two, *three)
        assert common.endswith(b'"messages":' + request_messages(state) + b',"temperature":1.0,"max_tokens":2048,"seed":')
        assert b'"tools":' + request_tools(state) + b',"messages":' in common


async def test_a_branch_only_ever_grows(tmp_path):
    path = tmp_path / "log.jsonl"
    bodies = record(path, as_dumped)
    trace = await read(path)
    state = fork(trace, 2)
    with Loopback(default=answers) as server:
        async with OpenAIPolicy("m-1", base_url=server.base_url, api_key="k") as policy:
            for number in range(3):
                (proposal,) = await policy.propose(state, 1)
                observations = [Message.tool(f"other {number} ✓", call.id) for call in proposal.action.tool_calls]
                state = state.extend(Step(proposal.action, tuple(observations)))
        requests = [bodies[2], *server.bodies]
    arrays = [array(body, "messages") for body in requests]
    assert arrays[0] == arrays[1]
    assert all(later.startswith(earlier[:-1] + b",") for earlier, later in pairwise(arrays[1:]))
    assert len({array(body, "tools") for body in requests}) == 1


async def test_another_process_sends_the_same_request(tmp_path):
    path = tmp_path / "log.jsonl"
    record(path, as_dumped)
    (here,) = await sent(fork(await read(path), 4))
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from counterplay.replay.fork import fork\n"
        "from tests.replay.test_byte_stable import read, sent\n"
        "async def main():\n"
        "    (body,) = await sent(fork(await read(Path(sys.argv[1])), 4))\n"
        "    sys.stdout.buffer.write(body)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path), stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    there, _ = await process.communicate()
    assert there == here


async def test_reasoning_that_the_agent_does_not_send_back_is_not_sent_by_a_fork_either():
    sent_back = {
        "tool_calls": [{"function": {"arguments": "{}", "name": "say"}, "type": "function", "id": "c1"}],
        "content": "",
        "role": "assistant",
    }
    for field in ("reasoning_content", "reasoning"):
        kept = Message.from_openai({**sent_back, field: "hm…"})
        user = Message.from_openai({"role": "user", "content": "go", "reasoning": "mine"})
        state = State((), (user,), (Step(kept, (Message.tool("said", "c1"),)),))
        (body,) = await sent(state, send_reasoning=False)
        recorded = [user.to_openai(), sent_back, state.steps[0].observations[0].to_openai()]
        assert array(body, "messages") == json.dumps(recorded, separators=(",", ":"), ensure_ascii=False).encode()
        assert "hm…".encode() in array((await sent(state))[0], "messages")
    policies = [OpenAIPolicy("m", base_url="http://x", send_reasoning=choice) for choice in (True, False)]
    assert policies[0].fingerprint != policies[1].fingerprint


async def test_text_that_utf_8_can_not_hold_is_sent_the_same_each_time():
    state = State((ToolSpec.from_openai(TOOLS[0]),), (Message.user("half \ud83d a pair"),))
    (body,) = await sent(state)
    assert rb"half \ud83d a pair" in body
    assert array(body, "messages") == request_messages(state)


class PrefixCache:
    """Answers as a server with a prompt cache does: what it has seen of a request from its beginning on is cached."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, request):
        prompt = json.dumps([request.get("tools"), request["messages"]]).encode()
        cached = max((len(common_start(prompt, known)) for known in self.seen), default=0)
        self.seen.append(prompt)
        body = answers(request)
        body["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": cached}}
        return body


async def test_forks_hit_the_servers_cache_and_it_is_tallied(tmp_path):
    path = tmp_path / "log.jsonl"
    record(path, as_dumped)
    trace = await read(path)
    with Loopback(default=PrefixCache()) as server:
        async with OpenAIPolicy("m-1", base_url=server.base_url, api_key="k", n_support="never") as policy:
            state = fork(trace, 5)
            first = (await policy.propose(state, 1))[0].usage
            again = [proposal.usage for proposal in await policy.propose(state, 3)]
            (earlier,) = await policy.propose(fork(trace, 4), 1)
            environment = RecordedEnvironment([trace.trajectory])
            await fork_best_of_n(trace.trajectory, policy, environment, lambda t: 1.0, Budget.of(model_calls=12), pivots=[2, 5])
    assert first.cached_tokens == 0
    assert all(usage.cached_tokens == usage.input_tokens == first.input_tokens for usage in again)
    assert 0.9 < earlier.usage.cached_tokens / earlier.usage.input_tokens < 1
    assert policy.tally.cached_tokens > 3 * first.input_tokens
