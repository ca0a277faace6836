"""Codex CLI session files (`rollout-*.jsonl`), of the current layout and of the first one, whose lines are bare items.

`response_item` lines are what the model was given and what it said; `event_msg` lines tell of them once more. The lines do not say
where an answer ends: a new token count does, or something that the model was given in between. A compaction begins a context that
continues the last, a rollback leaves a branch behind, a sub-agent's file joins that of the session that spawned it. Tool definitions
are never in the file, the instructions only since 2025-12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item, source_trace_id, trace_id
from counterplay.connectors.lines import Entry, entries, leading_objects, sample_of
from counterplay.connectors.messages import responses
from counterplay.connectors.sessions import Context, Ending, Said, context_of, counted, steps_in, worst
from counterplay.core.errors import SourceError
from counterplay.core.nouns import Call, Completeness, Message, Source, SubTrajectory, Trace, Usage
from counterplay.core.records import Rejected

NAME = "codex"
_LINES = {"session_meta", "turn_context", "response_item", "event_msg", "compacted"}
_CALLS = ("function_call", "custom_tool_call")
_ITEMS = {"message", "reasoning", "local_shell_call", *_CALLS, *(f"{kind}_output" for kind in _CALLS)}
_NOT_SENT = {"ghost_snapshot", "other", "additional_tools", "compaction_trigger"}
_TURN_STARTS = {"task_started", "turn_started"}
_TURN_ENDS = {"task_complete", "turn_complete"}
_CONTEXTUAL = ("<environment_context", "<user_instructions", "# AGENTS.md instructions", "<turn_aborted", "<skill", "<user_shell_command")
_META = ("cwd", "originator", "cli_version", "source", "git", "instructions", "agent_nickname", "agent_role", "forked_from_id")
_TURN = ("approval_policy", "sandbox_policy", "collaboration_mode", "personality")


@dataclass(frozen=True)
class Codex:
    """The `codex` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        rows = leading_objects(sample)
        known = sum(str(row.get("type")) in _LINES and isinstance(row.get("payload"), dict) and "message" not in row for row in rows)
        if known:
            return known / len(rows)
        return 0.8 if len(rows) > 1 and _is_first_layout(rows[0]) and any(_is_bare_item(row) for row in rows[1:]) else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """The session of a file. Raises SourceError where the file can't be read at all."""
        for item in _Session(entries(path)).items():
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """The sessions of several files, each with the sub-agents that it spawned."""
        ids = {path: _ids_of(path) for path in paths}
        known = {own for own, _ in ids.values() if own}
        children: dict[str, list[Path]] = {}
        for path, (own, parent) in ids.items():
            if parent in known and parent != own:
                children.setdefault(str(parent), []).append(path)
        nested = {path for files in children.values() for path in files}
        for path in paths:
            if path not in nested:
                for item in _with_agents(path, ids, children, frozenset()):
                    yield item
        reached = set(_reachable([path for path in paths if path not in nested], ids, children))
        for path in (path for path in paths if path not in reached):
            for item in _read(path):
                yield item


def _read(path: Path) -> Iterator[Item]:
    try:
        yield from _Session(entries(path)).items()
    except SourceError as error:
        yield Rejected(str(path), str(error))


def _reachable(paths: Iterable[Path], ids: Mapping[Path, Any], children: Mapping[str, list[Path]]) -> Iterator[Path]:
    for path in paths:
        yield path
        yield from _reachable(children.get(str(ids[path][0]), []), ids, children)


def _with_agents(path: Path, ids: Mapping[Path, Any], children: Mapping[str, list[Path]], above: frozenset[Path]) -> Iterator[Item]:
    """The items of a session whose trace has taken in those of its sub-agents."""
    own: Trace | None = None
    for item in _read(path):
        if isinstance(item, Trace):
            own = item
        else:
            yield item
    for child in children.get(str(ids[path][0]), []) if path not in above else []:
        for item in _with_agents(child, ids, children, above | {path}):
            if isinstance(item, Rejected) or own is None:
                yield item
            else:
                own = _joined(own, item)
    if own is not None:
        yield own


def _joined(trace: Trace, agent: Trace) -> Trace:
    """A session with a sub-agent's: parent_step is the step whose result names the agent's session."""
    shift = 1 + len(trace.sub_trajectories)
    steps = trace.trajectory.steps
    spawned = (i for i, step in enumerate(steps) if any(str(agent.session) in message.wire for message in step.observations))
    parent = next(spawned, None) if agent.session else None
    subs = [SubTrajectory(agent.trajectory, agent.agent or "", parent)]
    subs += [replace(sub, parent_step=parent, continues=_shifted(sub.continues, shift)) for sub in agent.sub_trajectories]
    calls = [replace(call, trajectory=call.trajectory + shift) for call in agent.calls]
    sessions = [*trace.metadata.get("sub_sessions", ()), {"trajectory": shift, "session": agent.session, **agent.metadata}]
    shown = worst((trace.completeness, agent.completeness), dict.fromkeys((*trace.completeness.notes, *agent.completeness.notes)))
    return replace(
        trace,
        sub_trajectories=(*trace.sub_trajectories, *subs),
        calls=(*trace.calls, *calls),
        metadata={**trace.metadata, "sub_sessions": sessions},
        completeness=shown,
    )


def _shifted(index: int | None, by: int) -> int | None:
    return None if index is None else index + by


def _ids_of(path: Path) -> tuple[str | None, str | None]:
    """The id of a file's session and of the one that spawned it."""
    try:
        rows = leading_objects(sample_of(path), 1)
    except SourceError:
        return None, None
    meta = facts.record(rows[0].get("payload")) if rows else {}
    return _session_id(meta), _parent(meta)


def _session_id(meta: Mapping[str, Any]) -> str | None:
    return facts.word(meta.get("id")) or facts.word(meta.get("session_id"))


def _parent(meta: Mapping[str, Any]) -> str | None:
    spawn = facts.record(facts.record(facts.record(meta.get("source")).get("subagent")).get("thread_spawn"))
    return facts.word(meta.get("parent_thread_id")) or facts.word(spawn.get("parent_thread_id"))


def _is_first_layout(row: Mapping[str, Any]) -> bool:
    return "id" in row and "timestamp" in row and "type" not in row and "instructions" in row


def _is_bare_item(row: Mapping[str, Any]) -> bool:
    return str(row.get("type")) in _ITEMS and "payload" not in row and ("content" in row or "call_id" in row or "summary" in row)


class _Session:
    """The lines of one file, taken in order."""

    def __init__(self, rows: Iterable[Entry | Rejected]) -> None:
        self._rejected: list[Rejected] = []
        self._entries: list[Entry] = []
        for row in rows:
            (self._rejected if isinstance(row, Rejected) else self._entries).append(row)  # type: ignore[arg-type]
        self._payloads = [_payload(entry.value) for entry in self._entries]
        self._counts_known, self._counts_ahead = self._token_counts()
        self._meta: dict[str, Any] = {}
        self._turn: dict[str, Any] = {}
        self._log: list[Said] = []
        self._contexts: list[tuple[list[Said], int | None]] = []  # with the context that each continues
        self._branches: list[tuple[list[Said], int, int]] = []  # log, what it shares, and with which context
        self._answer: list[dict[str, Any]] = []
        self._call: Call | None = None
        self._given: list[Message] = []
        self._broken = False
        self._total: dict[str, Any] = {}
        self._ahead: Usage | None = None
        self._lost = False
        self._notes: Counter[str] = Counter()
        self._ended = self._aborted = False
        self._fault: str | None = None
        self._times: list[int] = []

    def items(self) -> Iterator[Item]:
        for entry, (kind, payload) in zip(self._entries, self._payloads, strict=True):
            try:
                self._take(entry, kind, payload)
            except (ValueError, RecursionError) as error:
                self._lost = True
                self._rejected.append(entry.reject(str(error) or "nested too deeply to be read"))
        self._flush()
        yield from self._rejected
        if not self._entries:
            return
        try:
            yield self._trace()
        except (ValueError, RecursionError) as error:
            yield self._entries[0].reject(f"{error} ({len(self._entries)} lines)")

    def _token_counts(self) -> tuple[bool, bool]:
        """Whether the file counts tokens at all, and whether it did so ahead of the answers, as early versions do."""
        kinds = ["count" if _is_count(kind, payload) else "said" if _by_model(kind, payload) else "" for kind, payload in self._payloads]
        first = next((kind for kind in kinds if kind), "")
        return "count" in kinds, first == "count" and "said" in kinds

    def _take(self, entry: Entry, kind: str, payload: dict[str, Any]) -> None:
        at = facts.time_us(entry.value.get("timestamp"))
        if at is not None:
            self._times.append(at)
        match kind:
            case "session_meta":
                if payload.keys().isdisjoint(("id", "session_id", *_META)):
                    msg = "a session_meta that says nothing of its session"
                    raise ValueError(msg)
                self._notes["session headers of sessions that this one is a copy of"] += bool(self._meta)
                self._meta = self._meta or payload
                if not self._log and not self._given and self._instructions:
                    self._log.append(Said(Message.system(self._instructions)))
            case "turn_context":
                self._turn = payload
                self._broken = True
            case "response_item":
                self._item(payload, at)
            case "event_msg":
                self._event(payload)
            case "compacted":
                self._compact(payload)
            case "":
                msg = "a line without a type and payload, wanted a line of a Codex session"
                raise ValueError(msg)
            case _:
                self._notes[f"{kind} lines, which are no messages"] += 1

    @property
    def _instructions(self) -> str:
        base = self._meta.get("base_instructions")
        text = base.get("text") if isinstance(base, dict) else base
        return text if isinstance(text, str) else ""

    def _item(self, item: dict[str, Any], at: int | None) -> None:
        if not isinstance(item.get("type"), str) and not isinstance(item.get("role"), str):
            msg = "a response_item without a type"
            raise ValueError(msg)
        if str(item.get("type")) in _NOT_SENT:
            self._notes[f"{item['type']} items, which are not sent"] += 1
        elif not _by_model("response_item", item):
            self._given += responses.messages_of(None, [item])
            self._broken |= item.get("type") == "message" or not self._counts_known
        else:
            responses.answer_of([item])
            if self._broken or not self._answer:
                self._flush()
                self._call = self._new_call(at)
            self._broken = False
            self._answer.append(item)
            self._ended = self._aborted = False
            self._fault = None

    def _new_call(self, at: int | None) -> Call:
        effort = facts.word(self._turn.get("effort"))
        usage, self._ahead = self._ahead or Usage(), None
        stitched = bool(self._instructions) and not self._lost
        return Call(
            step=0,
            model=facts.word(self._turn.get("model")),
            params={"reasoning_effort": effort} if effort else {},
            usage=usage,
            started_at_us=at,
            provider=facts.word(self._meta.get("model_provider")),
            completeness=Completeness("stitched" if stitched else "partial", tools=False, system_prompt=bool(self._instructions)),
        )

    def _flush(self) -> None:
        """Close the answer under construction; what the model was given since then follows it."""
        if self._answer:
            self._log.append(Said(responses.answer_of(self._answer), self._call))
        self._log += [Said(message) for message in self._given]
        self._answer, self._given, self._call = [], [], None

    def _event(self, event: dict[str, Any]) -> None:
        kind = str(event.get("type"))
        if kind == "token_count":
            if not isinstance(event.get("info"), dict | None):
                msg = "a token_count without an object of counts"
                raise ValueError(msg)
            self._count(facts.record(event.get("info")))
        elif kind in _TURN_STARTS:
            self._broken = True
        elif kind in _TURN_ENDS:
            self._broken = self._ended = True
        elif kind == "turn_aborted":
            self._broken = self._aborted = True
            self._notes["turns that were broken off"] += 1
        elif kind in ("thread_rolled_back", "error"):
            if kind == "error":
                self._fault = str(event.get("message") or "error")
            else:
                self._roll_back(facts.count(event.get("num_turns")))
        else:
            self._notes["event_msg lines, which tell of the items once more"] += 1

    def _count(self, info: Mapping[str, Any]) -> None:
        """The usage of the call at hand, or of the next one; a count that repeats the last total is no new call."""
        total, last = facts.record(info.get("total_token_usage")), facts.record(info.get("last_token_usage"))
        if not (total or last) or (total and total == self._total):
            return
        last = last or {key: facts.count(value) - facts.count(self._total.get(key)) for key, value in total.items()}
        self._total = total
        found = Usage(*(facts.count(last.get(key)) for key in _USAGE))
        self._broken = True
        if self._counts_ahead or self._call is None:
            self._ahead = found
        else:
            self._call = replace(self._call, usage=self._call.usage + found)

    def _compact(self, payload: Mapping[str, Any]) -> None:
        self._flush()
        kept = payload.get("replacement_history")
        if isinstance(kept, list):
            after = responses.messages_of(None, [item for item in kept if str(facts.record(item).get("type")) not in _NOT_SENT])
        else:
            after = (Message.user(str(payload.get("message") or "")),)
            self._lost = True
        self._contexts.append((self._log, self._continues))
        system = [Said(Message.system(self._instructions))] if self._instructions else []
        self._log = [*system, *map(Said, after)]
        self._broken = True

    @property
    def _continues(self) -> int | None:
        return len(self._contexts) - 1 if self._contexts else None

    def _roll_back(self, turns: int) -> None:
        """Take back the last turns: they stay as a branch."""
        self._flush()
        starts = [place for place, said in enumerate(self._log) if said.message.role == "user" and not _is_contextual(said.message)]
        if not turns or not starts:
            return
        cut = starts[max(0, len(starts) - turns)]
        self._branches.append((self._log, cut, len(self._contexts)))
        self._log = self._log[:cut]
        self._broken = True

    def _trace(self) -> Trace:
        contexts = [*self._contexts, (self._log, self._continues)]
        built = [context_of(log) for log, _ in contexts]
        if not any(context.calls for context in built) and not self._branches:
            msg = "a session in which no model answered"
            raise ValueError(msg)
        ending = Ending(self._ended, self._aborted and not self._ended, self._fault)
        last = len(built) - 1
        trajectories = [context.trajectory(ending if i == last else Ending()) for i, context in enumerate(built)]
        subs = [SubTrajectory(trajectories[i], self._agent, None, contexts[i][1]) for i in range(1, len(built))]
        branches = [context_of(log, cut) for log, cut, _ in self._branches]
        subs += [_branch(context, *branch) for context, branch in zip(branches, self._branches, strict=True)]
        calls = [call for index, context in enumerate([*built, *branches]) for call in context.numbered(index)]
        own = _session_id(self._meta)
        return Trace(
            id=source_trace_id(NAME, own) if own else trace_id(NAME, trajectories[0]),
            trajectory=trajectories[0],
            source=Source(NAME, str(self._entries[0].path)),
            sub_trajectories=tuple(subs),
            session=own,
            agent=self._agent or NAME,
            calls=tuple(calls),
            metadata=self._metadata(len(built)),
            completeness=worst((call.completeness for call in calls), self._remarks()),
            started_at_us=min(self._times, default=None),
            ended_at_us=max(self._times, default=None),
        )

    @property
    def _agent(self) -> str:
        return facts.word(self._meta.get("agent_nickname")) or facts.word(self._meta.get("agent_role")) or ""

    def _metadata(self, first_branch: int) -> dict[str, Any]:
        parent = _parent(self._meta)
        branches = [{"trajectory": first_branch + i, "shared_steps": steps_in(log[:cut])} for i, (log, cut, _) in enumerate(self._branches)]
        return {
            **{key: self._meta[key] for key in _META if self._meta.get(key) is not None},
            **{key: self._turn[key] for key in _TURN if self._turn.get(key) is not None},
            **({"parent_session": parent} if parent else {}),
            **({"branches": branches} if branches else {}),
        }

    def _remarks(self) -> list[str]:
        unknown = [] if self._instructions else ["the instructions that Codex sends are not in the file"]
        return [*unknown, "the tool definitions are not in the file", *counted(self._notes)]


_USAGE = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens")


def _branch(context: Context, log: Sequence[Said], cut: int, of: int) -> SubTrajectory:
    shared = steps_in(log[:cut])
    return SubTrajectory(context.trajectory(), "", shared - 1 if shared and not of else None)


def _payload(value: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a line is, and what it says; empty where it is no line of a session. Lines of the first layout are bare."""
    kind, payload = value.get("type"), value.get("payload")
    if isinstance(kind, str) and isinstance(payload, dict):
        return kind, payload
    if _is_bare_item(value):
        return "response_item", dict(value)
    if _is_first_layout(value):
        return "session_meta", dict(value)
    return ("record_state", {}) if isinstance(value.get("record_type"), str) else ("", {})


def _is_count(kind: str, payload: Mapping[str, Any]) -> bool:
    return kind == "event_msg" and payload.get("type") == "token_count" and bool(facts.record(payload.get("info")))


def _by_model(kind: str, item: Mapping[str, Any]) -> bool:
    name = str(item.get("type"))
    if kind != "response_item" or name in _NOT_SENT or name.endswith("_output"):
        return False
    return item.get("role") == "assistant" if name == "message" else True


def _is_contextual(message: Message) -> bool:
    return message.content_text.lstrip().startswith(_CONTEXTUAL)


CONNECTOR = Codex()
