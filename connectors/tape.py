"""Tapes: what `counterplay.record` and the recording proxy write, event by event.

The calls of a run are one trace, whatever the order in which several runs and processes wrote them; calls of no known run are joined
where one continues the other. A run that never ended, for it was killed or still goes on, is there as far as it came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from counterplay.connectors import facts
from counterplay.connectors.base import Item
from counterplay.connectors.chat.call_tree import CallTree
from counterplay.connectors.chat.chains import Items
from counterplay.connectors.chat.growing import entries, entries_of
from counterplay.connectors.chat.opinions import opinion
from counterplay.connectors.chat.rows import LoggedCall, call_of
from counterplay.connectors.chat.streams import object_of, unwrapped
from counterplay.connectors.lines import Entry, leading_objects
from counterplay.connectors.tool_runs import ToolRun, placed
from counterplay.core.effects import Effect
from counterplay.core.nouns import LoggedScore, Outcome, OutcomeSource, Source, SubTrajectory, ToolSpec, Trace, Trajectory
from counterplay.core.records import Rejected

NAME = "tape"
VERSION = "tape/1"
_KINDS = ("run", "model", "tool", "end")
_MARK = "counterplay"
_SUB_AGENT = "sub-agent"
_LEAST_FAILURE = 400
_SOURCES = get_args(OutcomeSource)


@dataclass(frozen=True)
class TapeConnector:
    """The `tape` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        rows = leading_objects(sample)
        known = sum(1 for row in rows if _is_event(row))
        return known / len(rows) if known else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every run of a tape. Raises SourceError where the file can't be read at all."""
        for item in items_of(entries(path)):
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every run of several tapes, where a run may begin in one and go on in another."""
        for item in items_of(entries_of(paths)):
            yield item


def items_of(rows: Iterable[Entry | Rejected]) -> Iterator[Item]:
    """The runs of some events, in the order in which they began, and a Rejected for every row that is no event and every run without
    an answered model call.
    """
    runs: dict[str, _Run] = {}
    loose, known = CallTree(NAME), Items()
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            name = _named(row.value)
            if name:
                runs.setdefault(name, _Run(name, row)).take(row)
            else:
                call = _call(row, known)
                if call is not None:
                    loose.add(call)
        except (ValueError, RecursionError) as error:
            yield row.reject(str(error))
    for run in runs.values():
        yield from run.items()
    yield from loose.items()


@dataclass
class _Run:
    """What has been read of one run."""

    name: str
    first: Entry
    head: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    others: Counter[str] = field(default_factory=Counter)
    tools: dict[tuple[int, int, str], ToolRun] = field(default_factory=dict)
    effects: dict[str, set[Effect]] = field(default_factory=dict)
    tree: CallTree = field(default_factory=lambda: CallTree(NAME))
    known: Items = field(default_factory=Items)

    def take(self, entry: Entry) -> None:
        """Keep an event of this run. Raises ValueError where it can't be read."""
        event = entry.value
        match event["kind"]:
            case "run":
                self.head = {**_checked_version(event), **self.head}
            case "end":
                self._ended(event)
            case "tool":
                self._tool(event)
            case _:
                self._model(entry)

    def items(self) -> Iterator[Item]:
        """The trace of the run; where no model call was answered, what there was of it."""
        nothing = True
        for item in self.tree.items():
            nothing = False
            yield self._whole(item) if isinstance(item, Trace) else item
        if nothing:
            yield self.first.reject(f"run {self.name[:80]} holds no model call")

    def _model(self, entry: Entry) -> None:
        for name, effect in facts.record(entry.value.get("effects")).items():
            with suppress(ValueError):
                self.effects.setdefault(name, set()).add(Effect.parse(str(effect)))
        call = _call(entry, self.known)
        if call is None:
            self.others[facts.word(entry.value.get("url")) or "?"] += 1
            return
        self.tree.add(replace(call, trace=self.name, session=None, task=None, agent=call.agent if entry.value.get("inside_tool") else None))

    def _tool(self, event: Mapping[str, Any]) -> None:
        name, arguments = event.get("name"), event.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            msg = "a tool's run without its name, or without arguments by name"
            raise ValueError(msg)
        said = event.get("error")
        run = ToolRun(
            name,
            arguments,
            event.get("value"),
            None if said is None else str(said),
            event.get("replayable") is not False,
            facts.time_us(event.get("at")) or 0,
        )
        if event.get("effect") is not None:
            self.effects.setdefault(name, set()).add(Effect.parse(str(event["effect"])))
        self.tools.setdefault((run.at, facts.whole_number(event.get("n")) or 0, name), run)

    def _ended(self, event: Mapping[str, Any]) -> None:
        """The first word counts on when and how it ended, the last on what came of it; scores and tags add up."""
        before = self.end or {}
        self.end = {**event, **before, **{key: event[key] for key in ("outcome",) if key in event}}
        for key in ("scores", "tags"):
            known = _list(before.get(key))
            self.end[key] = [*known, *(each for each in _list(event.get(key)) if each not in known)]

    def _whole(self, trace: Trace) -> Trace:
        """The trace of the calls with what else is known of the run."""
        end = self.end or {}
        outcome = facts.outcome_of(facts.record(end.get("outcome"))) or Outcome()
        if self.end is not None:
            trace = _closed(trace, outcome, facts.word(end.get("error")))
        trace = _with_effects(trace, self.effects)
        tools = [run for _, run in sorted(self.tools.items(), key=lambda each: each[0][:2])]
        notes = {
            "the run has no end: it was killed, or still goes on": self.end is None,
            "the recorder could not write all of it": bool(end.get("incomplete")),
            "the line that opens the run is not in the log": not self.head,
        }
        starts = [at for at in (facts.time_us(self.head.get("at")), trace.started_at_us) if at is not None]
        return replace(
            trace,
            source=Source(NAME, str(self.first.path), self.first.line),
            task=facts.word(self.head.get("task")),
            session=facts.word(self.head.get("session")),
            agent=facts.word(self.head.get("agent")),
            outcome=outcome,
            scores=(*trace.scores, *_scores(end.get("scores"))),
            tags=tuple(dict.fromkeys(tag for said in (self.head, end) for tag in _words(said.get("tags")))),
            metadata={**facts.record(self.head.get("metadata")), **trace.metadata, **self._told(end, placed(trace, tools))},
            completeness=replace(
                trace.completeness,
                open_spans=int(self.end is None),
                notes=(*trace.completeness.notes, *(note for note, said in notes.items() if said)),
            ),
            started_at_us=min(starts, default=None),
            ended_at_us=max((at for at in (facts.time_us(end.get("at")), trace.ended_at_us) if at is not None), default=None),
        )

    def _told(self, end: Mapping[str, Any], tool_runs: list[dict[str, Any]]) -> dict[str, Any]:
        told = {
            "run": self.name,
            "tool_runs": tool_runs,
            "pins": facts.record(self.head.get("pins")),
            "error": facts.word(end.get("error")),
            "incomplete": facts.word(end.get("incomplete")),
            "other_calls": dict(self.others),
        }
        return {key: value for key, value in told.items() if value}


def _is_event(row: Mapping[str, Any]) -> bool:
    if str(row.get(_MARK)).startswith("tape/"):
        return True
    return row.get("kind") in _KINDS and isinstance(row.get("run"), str) and ("request" in row or "at" in row or "name" in row)


def _named(event: Mapping[str, Any]) -> str:
    """The run of an event; empty for a model call of no known run. Raises ValueError where it is no event."""
    kind, run = event.get("kind"), event.get("run")
    if not isinstance(kind, str) or kind not in _KINDS:
        msg = f"an event of the kind {str(kind)[:80]!r}, wanted {', '.join(_KINDS)}"
        raise ValueError(msg)
    if not isinstance(run, str) or (not run and kind != "model"):
        msg = f"an event ({kind}) that names no run"
        raise ValueError(msg)
    return run


def _checked_version(event: dict[str, Any]) -> dict[str, Any]:
    if event.get(_MARK) != VERSION:
        msg = f"a run of the version {str(event.get(_MARK))[:80]!r}, wanted {VERSION}"
        raise ValueError(msg)
    return event


def _call(entry: Entry, known: Items) -> LoggedCall | None:
    """The model call that an event is; None where it is none, as for embeddings. Raises ValueError where it can't be read.

    Where an answer came, it is there, whatever went wrong with it.
    """
    event = entry.value
    request = object_of(event.get("request"))
    if event.get("api") == "other" and not isinstance(request.get("messages"), list):
        return None
    if not request:
        msg = "a model call without a request that is JSON"
        raise ValueError(msg)
    answer = event.get("events") if isinstance(event.get("events"), str) else event.get("response")
    status = facts.number(event.get("status"))
    error = facts.word(event.get("error"))
    failed = status is not None and status >= _LEAST_FAILURE
    if failed:
        error = f"{int(status or 0)}: {error or _message(answer)}"
    row = {
        "started_at": event.get("at"),
        "latency_s": event.get("latency_s"),
        "first_token_s": event.get("first_token_s"),
        **({"status": "failure"} if failed else {}),
        **({"error": error} if error else {}),
    }
    if "input" in request:
        known.learn(unwrapped(answer)[0])
    call = call_of(entry, known.resolved(request), answer, [row])
    return replace(call, agent=_SUB_AGENT) if event.get("inside_tool") else call


def _message(answer: Any) -> str:
    """What a refusal says."""
    fields = object_of(answer)
    error = fields.get("error", fields)
    said = facts.record(error).get("message") or error or answer
    return str(said)[:500] if said else "no reason is given"


def _closed(trace: Trace, outcome: Outcome, error: str | None) -> Trace:
    """The trace of a run that has ended: in the last call of the main trajectory, or of the one that took over from it, in the end."""
    line = [0]
    for index, sub in enumerate(trace.sub_trajectories, 1):
        if sub.continues in line:
            line.append(index)
    calls = [call for call in trace.calls if call.trajectory in line]
    last = max(calls, key=lambda call: (call.started_at_us or 0, call.trajectory, call.step)).trajectory

    def closed(trajectory: Trajectory) -> Trajectory:
        step = replace(trajectory.steps[-1], terminated=error is None, error=error, reward=outcome.reward)
        return replace(trajectory, steps=(*trajectory.steps[:-1], step))

    if not last:
        return replace(trace, trajectory=closed(trace.trajectory))
    subs = list(trace.sub_trajectories)
    subs[last - 1] = replace(subs[last - 1], trajectory=closed(subs[last - 1].trajectory))
    return replace(trace, sub_trajectories=tuple(subs))


def _with_effects(trace: Trace, effects: Mapping[str, set[Effect]]) -> Trace:
    """The trace with the effects that the tools' functions declare, where they all declare the same; undeclared is no declaration."""
    said = {name: next(iter(found)) for name, found in effects.items() if len(found) == 1}
    said = {name: effect for name, effect in said.items() if effect.kind != "external"}
    if not said:
        return trace

    def told(trajectory: Trajectory) -> Trajectory:
        return replace(trajectory, tools=tuple(ToolSpec(tool.wire, said.get(tool.name, tool.effect)) for tool in trajectory.tools))

    subs: tuple[SubTrajectory, ...] = tuple(replace(sub, trajectory=told(sub.trajectory)) for sub in trace.sub_trajectories)
    return replace(trace, trajectory=told(trace.trajectory), sub_trajectories=subs)


def _scores(said: Any) -> Iterator[LoggedScore]:
    """Scores with the scale that was given with them."""
    for each in map(facts.record, _list(said)):
        source = each.get("source")
        known = cast("OutcomeSource", source) if source in _SOURCES else "unknown"
        found = opinion(facts.word(each.get("name")) or "score", each, known)
        low, high = facts.number(each.get("low")), facts.number(each.get("high"))
        if found is None:
            continue
        if low is None or high is None or isinstance(found.value, str):
            yield found
        else:
            yield LoggedScore.of(found.name, found.value, source=known, low=low, high=high, comment=found.comment)


def _words(value: Any) -> list[str]:
    return [word for word in map(facts.word, _list(value)) if word]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


CONNECTOR = TapeConnector()
