"""An agent's own code, run again from what it was recorded doing: the front door to `replay_agent` and `AgentEnvironment`.

A trace is given as it is, by its id in a store, or as a file that any connector reads; requests and answers of every API are read
as the connectors read logs of them, so that equal content is equal.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from counterplay import console
from counterplay.connectors.base import read_unit, units
from counterplay.connectors.chat.apis import Answer, answer_of, prompt_of
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.loading import resolve
from counterplay.core.nouns import Message, Trace, Usage
from counterplay.core.protocols import Environment
from counterplay.loop import comparable_of
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest
from counterplay.replay.agents.environment import AgentEnvironment
from counterplay.replay.agents.plan import OnDivergence, Seen
from counterplay.replay.agents.replaying import Replay, Sample, waited_for
from counterplay.replay.agents.replaying import replay_agent_async as _replay_async
from counterplay.replay.agents.requests import Answered, Asked
from counterplay.replay.live import Comparable

if TYPE_CHECKING:
    from counterplay.core.store import Store

Recorded: TypeAlias = "Trace | str | os.PathLike[str]"
"""A trace; the id of one, where a store is given; else a file with one trace, or `file#id`, where it has several."""

_FAILED = 400
_REDACTED = ":redacted:"


class LogReader:
    """Reads requests and answers of Chat Completions, Responses and Anthropic Messages as the connectors read logs of them."""

    def asked(self, request: ModelRequest) -> Asked:
        """Raises ValueError where the messages or the tools can't be read."""
        prompt = prompt_of(request.fields, Answer())
        return Asked(prompt.messages, prompt.tools, request.fields, prompt.instructions, prompt.previous)

    def answered(self, request: ModelRequest, answer: ModelAnswer) -> Answered:  # noqa: ARG002  the protocol's shape
        """Raises ValueError where the answer can't be read."""
        if answer.error is not None or answer.status >= _FAILED:
            return Answered(None, error=answer.error or f"status {answer.status}: {answer.body[:200].decode(errors='replace')}")
        read = answer_of(answer.body.decode(errors="replace"))
        return Answered(
            read.outputs[0] if read.outputs else None,
            str(read.fields["model"]) if read.fields.get("model") else None,
            read.usage or Usage(),
            read.finish_reasons[0] if read.finish_reasons else None,
            str(read.fields["id"]) if read.fields.get("id") else None,
            read.error or None,
        )


async def replay_agent_async(
    agent: Callable[..., Any] | str,
    trace: Recorded,
    *,
    store: Store | None = None,
    arguments: Mapping[str, Any] | None = None,
    at: int | None = None,
    trajectory: int = 0,
    action: Message | None = None,
    sample: Sample = "live",
    execute_tools: Collection[str] = (),
    environment: Environment | None = None,
    on_divergence: OnDivergence = "abort",
    effects: Mapping[str, Effect] | None = None,
    comparable: Comparable | None = None,
    window: int = 3,
    pin: bool = True,
    clock: bool = False,
    allow_hosts: Iterable[str] = (),
    timeout_s: float | None = None,
) -> Replay:
    """Run `agent(**arguments)` with the answers of a recorded trace: all of them, or those up to step `at`.

    `agent` is any sync or async callable, or `module:attr`. What else there is to say is said of
    `counterplay.replay.agents.replaying.replay_agent_async`. Of a trace that its store has redacted, the texts of both sides are
    compared as the store redacts them, unless `comparable` is given. Raises UserError where there is no such trace.
    """
    found = await trace_of(trace, store)
    return await _replay_async(
        agent_of(agent),
        found,
        reader=LogReader(),
        arguments=arguments,
        at=at,
        trajectory=trajectory,
        action=action,
        sample=sample,
        execute_tools=execute_tools,
        environment=environment,
        on_divergence=on_divergence,
        effects=effects,
        comparable=comparable or _as_stored(found, store),
        window=window,
        pin=pin,
        clock=clock,
        allow_hosts=allow_hosts,
        timeout_s=timeout_s,
    )


def replay_agent(agent: Callable[..., Any] | str, trace: Recorded, **options: Any) -> Replay:
    """As `replay_agent_async`, with the same options, for code that is not async; in a running event loop, which then waits, too."""
    return waited_for(partial(replay_agent_async, agent, trace, **options))


def agent_environment(
    agent: Callable[..., Any] | str, trace: Recorded | None = None, *, store: Store | None = None, **options: Any
) -> AgentEnvironment:
    """The agent's own code as an environment for any search; see `AgentEnvironment` for the options.

    Raises UserError where there is no such trace.
    """
    found = None if trace is None else waited_for(partial(trace_of, trace, store))
    if found is not None and options.get("comparable") is None:
        options["comparable"] = _as_stored(found, store)
    return AgentEnvironment(agent_of(agent), found, reader=LogReader(), **options)


async def trace_of(trace: Recorded, store: Store | None = None) -> Trace:
    """The trace itself. Raises UserError where there is none, or where a file holds several and none is named."""
    if isinstance(trace, Trace):
        return trace
    if store is not None:
        return await asyncio.to_thread(store.trace, str(trace))
    path, _, wanted = str(trace).partition("#")
    found = [item for unit in units([Path(path)])[0] async for item in read_unit(unit) if isinstance(item, Trace)]
    named = [item for item in found if wanted in ("", item.id, item.metadata.get("run"))]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(item.id for item in found[:5])
    got = f"{path} holds {len(found)} traces" + (f", {len(named)} of them {wanted}" if wanted else "")
    raise UserError(got, "one, or one named as file#id", f"Its ids are: {listed}." if listed else "")


def agent_of(agent: Callable[..., Any] | str) -> Callable[..., Any]:
    """The agent that `module:attr` names. Raises UserError where it can't be called or found."""
    found = resolve(agent, "agent") if isinstance(agent, str) else agent
    if not callable(found):
        raise UserError(f"got the agent {agent!r}, a {type(found).__name__}", "a function, or an object that can be called")
    return found


def _as_stored(trace: Trace, store: Store | None) -> Comparable | None:
    """The redaction that a stored trace went through; None where it was not redacted, or comes from no store."""
    if store is None:
        return None
    paths = (trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))
    redacted = any(_REDACTED in message.wire for path in paths for message in path.messages)
    return comparable_of(store) if redacted else None


@dataclass(frozen=True)
class Reenacted:
    """A replay as `counterplay replay --agent-code` reports it. `first_divergence` is None where nothing differed."""

    trace: str
    faithful: bool
    forked_at: int | None
    classes: Mapping[str, int]
    first_divergence: Mapping[str, Any] | None
    interruption: str
    error: str | None
    missing: tuple[tuple[int, int], ...]
    model_calls: int
    executed: Mapping[str, int]
    steps: int
    grade: str
    returned: str


def reenact_all(
    agent: str,
    traces: Iterable[Trace],
    store: Store | None = None,
    *,
    at: int | None = None,
    execute_tools: Collection[str] = (),
    arguments: Mapping[str, Any] | None = None,
    on_trace: Callable[[], object] = lambda: None,
) -> list[Reenacted]:
    """Re-enact traces one after the other, as `counterplay replay --agent-code` does. `store` is where they are from."""
    code, reports = agent_of(agent), []
    for trace in traces:
        options = {"comparable": _as_stored(trace, store), "arguments": arguments, "at": at, "execute_tools": execute_tools}
        reports.append(report_of(trace, replay_agent(code, trace, **options)))
        on_trace()
    return reports


def report_of(trace: Trace, replay: Replay) -> Reenacted:
    """A replay of `trace` as a report. An agent that failed when it was recorded is faithful if it fails alike."""
    first = next((seen for seen in replay.divergences if seen.kind != "reordered"), None)
    error = None if replay.error is None else f"{type(replay.error).__name__}: {replay.error}"
    return Reenacted(
        trace=trace.id,
        faithful=replay.faithful and (error == trace.metadata.get("error") or replay.forked_at is not None),
        forked_at=replay.forked_at,
        classes={str(kind): count for kind, count in replay.classes.items()},
        first_divergence=None if first is None else _fields(first),
        interruption=replay.interruption,
        error=error,
        missing=replay.missing,
        model_calls=replay.model_calls,
        executed=replay.executed,
        steps=len(replay.trajectory),
        grade=replay.trajectory.grade.name.lower(),
        returned=repr(replay.returned)[:500],
    )


def shown(report: Reenacted) -> list[Any]:
    """A report as a person reads it: how many requests were of each kind, what differed first, what it cost."""
    rows = [(kind.replace("_", " "), count) for kind, count in report.classes.items()]
    parts: list[Any] = [console.table(f"requests of trace {report.trace}", ["kind", "requests"], rows)]
    if report.first_divergence is not None:
        first = report.first_divergence
        row = [(first["place"], first["kind"].replace("_", " "), first["path"], first["got"], first["wanted"])]
        parts.append(console.table("first divergence", ["where", "kind", "place in it", "got", "wanted"], row))
    figures = {
        "forked at step": "-" if report.forked_at is None else report.forked_at,
        "steps": f"{report.steps}, graded {report.grade}",
        "model calls": report.model_calls,
        "tools executed": ", ".join(f"{name} x{count}" for name, count in report.executed.items()) or 0,
        "interrupted": report.interruption or "no",
        "error": report.error or "none",
        "returned": report.returned,
    }
    return [*parts, console.facts(figures)]


def _fields(seen: Seen) -> dict[str, Any]:
    difference = seen.difference
    sides = {"path": "", "got": "", "wanted": ""}
    if difference is not None:
        sides = {"path": difference.path, "got": difference.got, "wanted": difference.wanted}
    return {"kind": seen.kind, "trajectory": seen.trajectory, "step": seen.step, "place": seen.place, **sides}
