"""The project's own recorder: agents that play in a world leave one JSON line per finished trajectory.

The file is append-only and each line is written whole, so a killed recording loses only what had not finished; a last
line that was torn by a kill is cut off when the file is opened again, and tasks that are in the file are not played twice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from counterplay.core.canonical import content_key, dumps, loads
from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Call, Outcome, State, Trajectory, Usage
from counterplay.core.protocols import Environment, Policy, first_draw
from counterplay.replay.appending import Appender
from counterplay.replay.live import LiveEnvironment
from counterplay.replay.world import World

_OPENINGS = (b'{"id":',)


@dataclass(frozen=True)
class Played:
    """A trajectory and the provenance of every model call that was made for it; the given state's own steps have none here."""

    trajectory: Trajectory
    calls: tuple[Call, ...] = ()


async def play(
    state: State, policy: Policy, environment: Environment, *, max_steps: int = 100, params: Mapping[str, Any] | None = None
) -> Played:
    """Let `policy` act from `state` until the end, or until the trajectory has `max_steps` steps; then its last step is `truncated`.

    Latency and start are measured round `propose`, so they include waiting for a batch. Raises PolicyError where the policy
    fails or has no action to propose.
    """
    calls: list[Call] = []
    while not state.finished and len(state) < max_steps:
        started_at_us, began_s = time.time_ns() // 1000, time.perf_counter()
        proposals = await policy.propose(state, 1)
        latency_s = time.perf_counter() - began_s
        if not proposals:
            raise PolicyError(f"the policy proposed no action at step {len(state)}", "one action")
        chosen = proposals[0]
        calls.append(
            Call(
                step=len(state),
                model=chosen.model or None,
                params=params or {},
                usage=chosen.usage,
                latency_s=latency_s,
                started_at_us=started_at_us,
                finish_reason=chosen.finish_reason or None,
                token_ids=chosen.token_ids,
            )
        )
        state = state.extend(await environment.step(state, chosen.action))
    if calls and not state.finished:
        state = replace(state, steps=(*state.steps[:-1], replace(state.steps[-1], truncated=True)))
    return Played(state, tuple(calls))


def outcome_of(trajectory: Trajectory) -> Outcome:
    """What the environment paid at the end. `success` means a reward of 1; None where nothing was paid."""
    reward = trajectory.steps[-1].reward if trajectory.steps else None
    return Outcome(reward, None if reward is None else reward >= 1.0, "environment" if reward is not None else "unknown")


class Recorder:
    """An open recording: a context manager over an append-only `.jsonl` or `.jsonl.gz` file.

    `recorded` holds the (task, attempt) pairs that are in the file. Writing is safe from several threads, and from
    several processes where the system has POSIX locks. Raises UserError where the file can't be read as a recording.
    """

    def __init__(self, path: str | os.PathLike[str], *, agent: str | None = None, session: str | None = None) -> None:
        self.path, self.agent, self.session = Path(path), agent, session
        self.recorded: set[tuple[str, int]] = set()
        self._file: Appender | None = None

    def __enter__(self) -> Self:
        file = Appender(self.path, openings=_OPENINGS, kind="a recording", writer="a Recorder")
        try:
            file.scan(self._take_stock)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(
        self,
        trajectory: Trajectory,
        calls: Sequence[Call] = (),
        outcome: Outcome | None = None,
        *,
        task: str | None = None,
        attempt: int = 0,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Append one finished trajectory and return its id. `outcome` is what the environment paid unless given.

        The id comes from agent, session, task, attempt and content: writing the same thing again gives the same id.
        """
        fields = _line_fields(trajectory, calls, outcome or outcome_of(trajectory), metadata or {})
        identity = content_key("record", self.agent or "", self.session or "", task or "", str(attempt), trajectory.key)
        head = {"id": identity, "task": task, "session": self.session, "agent": self.agent}
        fields["metadata"] = {"attempt": attempt, **fields["metadata"]}
        line = _render({**head, **fields, "tags": list(tags)}, trajectory)
        if self._file is None:
            raise UserError("got a write to a closed recording", "an open one", "Use it as: with Recorder(path) as recorder.")
        self._file.write(line)
        if task is not None:
            self.recorded.add((task, attempt))
        return identity

    def _take_stock(self, line: bytes) -> bool:
        try:
            fields = loads(line.decode())
            task, attempt = fields["task"], fields["metadata"].get("attempt", 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if task is not None:
            self.recorded.add((task, attempt))
        return True


@dataclass(frozen=True)
class Recording:
    """What one call of `record` did. `failed` names the tasks whose policy gave up, with its reason: they are not in the file."""

    written: int = 0
    skipped: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)


async def record(
    tasks: Iterable[str],
    world_factory: Callable[[str], World | Awaitable[World]],
    policy: Policy,
    recorder: Recorder,
    *,
    max_steps: int = 100,
    concurrency: int = 16,
    attempts: int = 1,
    params: Mapping[str, Any] | None = None,
    allow_external: Iterable[str] = (),
    blocking: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Recording:
    """Play every task `attempts` times and write each trajectory as it finishes, up to `concurrency` at once.

    Tasks that are in the recording already are skipped, attempt by attempt. Attempt k draws with `first_draw` = k, so a
    seeded policy gives the same recording at any concurrency. `progress` is called with the task after each one.
    `blocking` and `allow_external` are those of LiveEnvironment.
    """
    gate, external = asyncio.Semaphore(concurrency), frozenset(allow_external)
    wanted = [(task, attempt) for task in dict.fromkeys(tasks) for attempt in range(attempts)]
    missing = [(task, attempt) for task, attempt in wanted if (task, attempt) not in recorder.recorded]

    async def one(task: str, attempt: int) -> str | None:
        async with gate:
            first_draw.set(attempt)
            environment = LiveEnvironment(
                lambda: world_factory(task), task=task, max_steps=max_steps, allow_external=external, blocking=blocking
            )
            try:
                state = await environment.initial()
                played = await play(state, policy, environment, max_steps=max_steps, params=params)
            except PolicyError as error:
                return str(error)
            finally:
                await environment.aclose()
            made_of = {"environment": environment.made_of.to_record()}
            recorder.write(played.trajectory, played.calls, task=task, attempt=attempt, metadata=made_of)
            if progress is not None:
                progress(task)
            return None

    playing = [asyncio.create_task(one(task, attempt)) for task, attempt in missing]
    try:
        results = await asyncio.gather(*playing)
    finally:
        for running in playing:
            running.cancel()
    failed = {task: reason for (task, _), reason in zip(missing, results, strict=True) if reason is not None}
    return Recording(sum(reason is None for reason in results), len(wanted) - len(missing), failed)


def _line_fields(trajectory: Trajectory, calls: Sequence[Call], outcome: Outcome, metadata: Mapping[str, Any]) -> dict[str, Any]:
    last = trajectory.steps[-1] if trajectory.steps else None
    by_step = {call.step: call for call in calls}
    effects = {tool.name: str(tool.effect) for tool in trajectory.tools}
    unsampled = [i for i, step in enumerate(trajectory.steps) if not step.sampled]
    return {
        "prompt_messages": len(trajectory.prompt),
        "outcome": {"reward": outcome.reward, "success": outcome.success, "source": outcome.source, "details": dict(outcome.details)},
        "calls": [_call_fields(by_step.get(i, Call(i))) for i in range(len(trajectory))],
        "terminated": bool(last and last.terminated),
        "truncated": bool(last and last.truncated),
        "metadata": {
            "effects": effects,
            **({"error": last.error} if last and last.error else {}),
            **({"unsampled_steps": unsampled} if unsampled else {}),
            **metadata,
        },
    }


def _call_fields(call: Call) -> dict[str, Any]:
    return {
        "model": call.model,
        "params": dict(call.params),
        "usage": _usage_fields(call.usage),
        "latency_s": None if call.latency_s is None else round(call.latency_s, 6),
        "started_at_us": call.started_at_us,
        "finish_reason": call.finish_reason,
        "response_id": call.response_id,
        **({} if call.token_ids is None else {"token_ids": call.token_ids}),
    }


def _usage_fields(usage: Usage) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
    if usage.cached_tokens:
        fields["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        fields["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.cost_usd is not None:
        fields["cost_usd"] = usage.cost_usd
    return fields


def _render(fields: Mapping[str, Any], trajectory: Trajectory) -> bytes:
    """One line in which tools and messages are the stored bytes, not re-rendered ones."""
    texts = {
        "tools": _joined(tool.wire for tool in trajectory.tools),
        "messages": _joined(message.wire for message in trajectory.messages),
    }
    parts = [f"{dumps(name)}:{text}" for name, text in ({name: dumps(value) for name, value in fields.items()} | texts).items()]
    return ("{" + ",".join(parts) + "}\n").encode()


def _joined(wires: Iterable[str]) -> str:
    # A wire taken from pretty-printed JSON may hold line breaks between its tokens; a line of JSONL may not.
    return "[" + ",".join(dumps(loads(wire)) if "\n" in wire or "\r" in wire else wire for wire in wires) + "]"
