"""How fast policies answer, each figure beside an in-run baseline.

Local model: calls and generated tokens per second of `TransformersPolicy` in waves of agents whose histories grow, against
`model.generate` once a call (no batching, no prefix reuse) on the same states. Client: CPU per call of `OpenAIPolicy` against
`AsyncOpenAI.chat.completions.create`, at prompts of 2 and 32 KB, against a server in another process.

Run it as `python bench/policy_throughput.py [--model DIR] [--agents 64] [--steps 8] [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from counterplay.core.nouns import Message, State, Step, Trajectory
from counterplay.examples.ledger import Ledger, tasks
from counterplay.replay.chat_rendering import template_message
from counterplay.replay.openai_policy import OpenAIPolicy
from counterplay.replay.transformers_policy import TransformersPolicy
from counterplay.replay.world import ToolError

MODEL = Path(__file__).parents[1] / "examples" / "ledger" / "model"
ANSWER = json.dumps(
    {
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes " * 20}}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520},
    }
).encode()


async def play(policy: TransformersPolicy, agents: int, steps: int) -> tuple[float, int, int, list[State]]:
    """Seconds, calls, generated tokens, and every state that was asked about."""
    states: list[State] = []
    tokens = 0

    async def one(task: Any) -> None:
        nonlocal tokens
        world = Ledger(task)
        state = Trajectory(tuple(world.tools), tuple(world.prompt))
        for _ in range(steps):
            states.append(state)
            (proposal,) = await policy.propose(state, 1)
            tokens += proposal.usage.output_tokens
            if not proposal.action.tool_calls:
                return
            results = [Message.tool(_call(world, call.name, call.args or {}), call.id) for call in proposal.action.tool_calls]
            state = state.extend(Step(proposal.action, tuple(results)))

    began = time.perf_counter()
    await asyncio.gather(*(one(task) for task in tasks("train", agents)))
    return time.perf_counter() - began, len(states), tokens, states


def _call(world: Ledger, name: str, arguments: Any) -> str:
    try:
        return world.call(name, arguments)
    except ToolError as error:
        return str(error)


def naive(folder: Path, states: list[State]) -> tuple[float, int]:
    """Seconds and generated tokens of one `model.generate` a state."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    began, tokens = time.perf_counter(), 0
    with torch.inference_mode():
        for state in states:
            inputs = tokenizer.apply_chat_template(
                [template_message(message) for message in state.messages],
                tools=[tool.to_openai() for tool in state.tools],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
            tokens += out.shape[1] - inputs["input_ids"].shape[1]
    return time.perf_counter() - began, tokens


def local_model(folder: Path, agents: int, steps: int) -> dict[str, float]:
    policy = TransformersPolicy(folder, temperature=0, max_new_tokens=64)
    asyncio.run(policy.propose(Trajectory((), (Message.user("warm up"),)), 1))
    seconds, calls, tokens, states = asyncio.run(play(policy, agents, steps))
    sample = states[:: max(1, len(states) // 60)]
    plain_seconds, plain_tokens = naive(folder, sample)
    policy.close()
    return {
        "calls": calls,
        "calls_per_s": calls / seconds,
        "tokens_per_s": tokens / seconds,
        "naive_calls_per_s": len(sample) / plain_seconds,
        "naive_tokens_per_s": plain_tokens / plain_seconds,
        "calls_ratio": calls / seconds * plain_seconds / len(sample),
    }


def serve(port: Any) -> None:
    """Answer every request alike, in a process of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length[15:]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def client_cpu_ms(ask: Any, calls: int) -> float:
    """CPU milliseconds of this process a call, 32 in flight."""
    gate = asyncio.Semaphore(32)

    async def one() -> None:
        async with gate:
            await ask()

    await asyncio.gather(*(one() for _ in range(40)))
    began = time.process_time()
    await asyncio.gather(*(one() for _ in range(calls)))
    return (time.process_time() - began) / calls * 1e3


async def client(base_url: str, kilobytes: int, calls: int) -> dict[str, float]:
    import openai

    words = "posted the invoice to account 4400 and checked the balance " * 8
    messages = [Message.user(words[: 1024 - 60])] + [Message.assistant(words[:960]) for _ in range(kilobytes - 1)]
    state = Trajectory((), (*messages, Message.user("next")))
    dicts = [message.to_openai() for message in state.messages]
    async with (
        OpenAIPolicy("m", base_url=base_url, concurrency=32) as policy,
        openai.AsyncOpenAI(api_key="none", base_url=base_url) as plain,
    ):
        ours = await client_cpu_ms(lambda: policy.propose(state, 1), calls)
        theirs = await client_cpu_ms(lambda: plain.chat.completions.create(model="m", messages=dicts, temperature=1.0), calls)
    return {"cpu_ms": ours, "openai_cpu_ms": theirs, "ratio": theirs / ours}


def remote_model(calls: int) -> dict[str, dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        base_url = f"http://127.0.0.1:{here.recv()}/v1"
        return {f"{kilobytes}KB": asyncio.run(client(base_url, kilobytes, calls)) for kilobytes in (2, 32)}
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {"local": local_model(options.model, options.agents, options.steps), "client": remote_model(options.calls)}
    if options.json:
        print(json.dumps(found))
        return
    local, remote = found["local"], found["client"]
    print(f"local model, {local['calls']:.0f} calls: {local['calls_per_s']:.0f} calls/s, {local['tokens_per_s']:.0f} tokens/s")
    print(f"  model.generate a call: {local['naive_calls_per_s']:.1f} calls/s; ratio {local['calls_ratio']:.1f}")
    for size, row in remote.items():
        print(f"client, {size}: {row['cpu_ms']:.2f} ms CPU a call; AsyncOpenAI {row['openai_cpu_ms']:.2f} ms; ratio {row['ratio']:.1f}")


if __name__ == "__main__":
    main()
