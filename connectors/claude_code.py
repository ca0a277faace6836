"""Claude Code session files: `~/.claude/projects/<project>/<session>.jsonl` and the files of their sub-agents.

Lines form a tree by `parentUuid`. Those that share a `message.id` are one answer, and the results of its calls belong to it wherever
they hang. The branch that was written to last is the main trajectory; what a rewind left behind is a branch that shares its beginning.
A compaction begins a context that continues the last, `/clear` begins another trace. Lines that a resumed session copied are taken
once. The system prompt, the tool definitions and the reminders that Claude Code adds are not in the files: prompts are `partial`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from counterplay.connectors import facts
from counterplay.connectors.base import Item, source_trace_id, trace_id
from counterplay.connectors.claude_tree import Line, Paths, Unit, below, is_clear, is_synthetic
from counterplay.connectors.lines import Entry, entries, entries_of, leading_objects
from counterplay.connectors.messages import anthropic
from counterplay.connectors.sessions import counted, steps_in, worst
from counterplay.core.nouns import Message, Source, Trace, Trajectory
from counterplay.core.records import Rejected

NAME = "claude-code"
_SPOKEN = ("user", "assistant")
_MISSING = ("the system prompt, the tool definitions and the reminders that Claude Code adds are not in the file",)
_ABOUT = ("cwd", "gitBranch", "version", "slug", "entrypoint")


@dataclass(frozen=True)
class ClaudeCode:
    """The `claude-code` connector."""

    name: str = NAME

    def detect(self, sample: bytes, path: Path) -> float:  # noqa: ARG002  the protocol's shape
        rows = leading_objects(sample)
        spoken = [row for row in rows if row.get("type") in _SPOKEN and "sessionId" in row and "uuid" in row]
        beside = [row for row in rows if "leafUuid" in row or ("sessionId" in row and "type" in row and "payload" not in row)]
        return 1.0 if any("message" in row for row in spoken) else 0.6 if beside and len(beside) == len(rows) else 0.0

    async def read(self, path: Path) -> AsyncIterator[Item]:
        """Every conversation of a file. Raises SourceError where the file can't be read at all."""
        for item in _Book(entries(path)).items():
            yield item

    async def read_files(self, paths: Sequence[Path]) -> AsyncIterator[Item]:
        """Every conversation of several files: copied lines are taken once, sub-agents join the session that started them."""
        for files in _projects(paths):
            for item in _Book(entries_of(files)).items():
                yield item


def _projects(paths: Iterable[Path]) -> Iterable[list[Path]]:
    """Files that may belong together: those of one project folder, with the sub-agents in the folders below it."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        folder = path.parent.parent.parent if path.parent.name == "subagents" else path.parent
        groups.setdefault(folder, []).append(path)
    return groups.values()


class _Book:
    """The lines of files that belong together."""

    def __init__(self, rows: Iterable[Entry | Rejected]) -> None:
        self._rejected: list[Rejected] = []
        self._lines: dict[str, Line] = {}
        self._links: dict[str, str | None] = {}
        self._boundaries: set[str] = set()
        self._notes: dict[str, Counter[str]] = {}
        self._summaries: dict[str, str] = {}
        self._claims: Counter[tuple[str, str]] = Counter()
        for place, row in enumerate(rows):
            if isinstance(row, Rejected):
                self._rejected.append(row)
            else:
                self._add(row, place)
        self._units = self._contracted()

    def _add(self, entry: Entry, place: int) -> None:
        row = entry.value
        session, kind = facts.word(row.get("sessionId")) or "", row.get("type")
        uuid = facts.word(row.get("uuid"))
        if not isinstance(kind, str):
            self._rejected.append(entry.reject("a line without a type, wanted a line of a Claude Code session"))
            return
        if kind in _SPOKEN:
            self._speak(entry, place, uuid or f"line {place}", session)
            return
        if facts.record(row.get("message")).keys() >= {"role", "content"}:
            self._rejected.append(entry.reject(f"a message on a line of the type {kind!r}, wanted {' or '.join(_SPOKEN)}"))
            return
        if kind == "summary":
            self._summaries[str(row.get("leafUuid"))] = str(row.get("summary"))
        if row.get("subtype") == "compact_boundary" and uuid:
            self._boundaries.add(uuid)
        self._note(session, f"{kind} lines, which are no messages")
        if uuid:
            self._links.setdefault(uuid, facts.word(row.get("parentUuid")) or facts.word(row.get("logicalParentUuid")))

    def _note(self, session: str, text: str) -> None:
        self._notes.setdefault(session, Counter())[text] += 1

    def _speak(self, entry: Entry, place: int, uuid: str, session: str) -> None:
        row = entry.value
        side = (facts.word(row.get("agentId")) or "sidechain") if row.get("isSidechain") is True else ""
        try:
            line = Line(entry, place, uuid, session, side, row["type"], row, _messages(row), facts.time_us(row.get("timestamp")))
        except (ValueError, RecursionError) as error:
            self._rejected.append(entry.reject(str(error) or "nested too deeply to be read"))
            self._links.setdefault(uuid, facts.word(row.get("parentUuid")))
            return
        known = self._lines.get(uuid)
        if known is None:
            self._lines[uuid] = line
            self._links[uuid] = facts.word(row.get("parentUuid"))
            return
        if known.messages == line.messages:
            self._note(session, "lines that are copies of others")
            return
        # Of two lines under one uuid the one whose parent is in its own file is the original; the other was edited or damaged.
        worse = line
        if self._is_at_home(line) and not self._is_at_home(known):
            worse = known
            del self._lines[uuid]
            self._lines[uuid] = line
            self._links[uuid] = facts.word(row.get("parentUuid"))
        self._rejected.append(worse.entry.reject(f"another line has the uuid {uuid} and says something else"))

    def _is_at_home(self, line: Line) -> bool:
        parent = self._lines.get(str(line.raw.get("parentUuid")))
        return parent is not None and parent.entry.path == line.entry.path

    def _contracted(self) -> dict[str, Unit]:
        """The tree of units, in the order of their first lines."""
        self._chain()
        units: dict[str, Unit] = {}
        place_of: dict[str, str] = {}
        for line in self._lines.values():
            answer = facts.word(facts.record(line.raw.get("message")).get("id")) if line.role == "assistant" else None
            key = f"{line.session}|{line.side}|{answer}" if answer and not is_synthetic(line) else line.uuid
            units.setdefault(key, Unit(key)).lines.append(line)
            place_of[line.uuid] = key
        for line in self._lines.values():
            above = self._above(line, place_of)[0]
            if line.results and above is not None and units[above].answered and line.results & _asked(units[above]):
                del units[place_of[line.uuid]]
                units[above].results.append(line)
                place_of[line.uuid] = above
        for unit in units.values():
            unit.parent, unit.compacted = self._parent(unit, place_of)
            if unit.parent is not None:
                units[unit.parent].children.append(unit.key)
        return units

    def _chain(self) -> None:
        """Link what is not linked: sessions whose lines name no parents at all, and lines whose parent is missing."""
        members: dict[tuple[str, str], list[Line]] = {}
        for line in self._lines.values():
            members.setdefault((line.session, line.side), []).append(line)
        for lines in members.values():
            linked = any(self._links[line.uuid] in self._links for line in lines)
            for before, line in pairwise(lines):
                parent = self._links[line.uuid]
                if (parent is None and not linked) or (parent is not None and parent not in self._links):
                    self._links[line.uuid] = before.uuid
                    if parent is not None:
                        self._note(line.session, "lines whose parent is missing, taken to follow the line before")

    def _above(self, line: Line, place_of: Mapping[str, str]) -> tuple[str | None, bool]:
        """The unit of the nearest line above that says something to the same agent, and whether a compaction lies between."""
        seen = {line.uuid}
        uuid, compacted = self._links.get(line.uuid), line.raw.get("isCompactSummary") is True
        while uuid is not None and uuid not in seen:
            seen.add(uuid)
            compacted |= uuid in self._boundaries
            if uuid in place_of:
                return (place_of[uuid] if self._lines[uuid].side == line.side else None), compacted
            uuid = self._links.get(uuid)
        return None, compacted

    def _parent(self, unit: Unit, place_of: Mapping[str, str]) -> tuple[str | None, bool]:
        for line in unit.lines:
            above, compacted = self._above(line, place_of)
            if above != unit.key:
                return above, compacted
        return None, False

    def items(self) -> Iterator[Item]:
        talks = [talk for root in self._roots() for talk in [_Talk(root, self._units)] if talk.units]
        mains = [talk for talk in talks if not talk.units[0].first.side]
        owners: dict[str, tuple[_Talk, str]] = {unit.key: (talk, unit.key) for talk in mains for unit in talk.units}
        for agent in (talk for talk in talks if talk.units[0].first.side):
            try:
                starter = self._starter(agent, talks)
            except RecursionError:
                starter = None
            same = [talk for talk in mains if talk.session == agent.session]
            owner = owners.get(starter.key, (None, ""))[0] if starter is not None else None
            owner = owner or next(iter(same), None)
            if owner is None:
                mains.append(agent)
            else:
                owner.agents.append((agent, starter))
        for talk in mains:
            yield self._item(talk)
        yield from self._rejected

    def _roots(self) -> Iterator[str]:
        """Where conversations begin: at a line without a parent, and after `/clear`. A circle of lines begins at its first."""
        seen: set[str] = set()
        cleared = {key for key, unit in self._units.items() if is_clear(unit)}
        for key in cleared:
            self._note(self._units[key].first.session, "lines that clear the context")
        starts = [key for key, unit in self._units.items() if unit.parent is None or unit.parent in cleared]
        for key in [*starts, *self._units]:
            if key not in seen:
                found = list(below(key, self._units))
                if not seen.intersection(found):
                    yield key
                seen.update(found)

    def _starter(self, agent: _Talk, talks: Sequence[_Talk]) -> Unit | None:
        """The answer that started a sub-agent: its result names the agent, or its call holds the agent's task."""
        side, task = agent.units[0].first.side, agent.task
        units = [unit for talk in talks if talk is not agent and talk.session == agent.session for unit in talk.units if unit.answered]
        for unit in units:
            if any(facts.record(line.raw.get("toolUseResult")).get("agentId") == side for line in unit.results):
                return unit
        asked = next((unit for unit in units if task and _prompts(unit).count(task) > self._claims[unit.key, task]), None)
        if asked is not None:
            self._claims[asked.key, task] += 1
        return asked

    def _item(self, talk: _Talk) -> Item:
        try:
            return self._trace(talk)
        except (ValueError, RecursionError) as error:
            return talk.units[0].first.entry.reject(f"{error or 'nested too deeply to be read'} ({len(talk.units)} messages)")

    def _trace(self, talk: _Talk) -> Trace:
        paths = Paths(talk.units, self._units)
        if not any(said.call for path in paths.logs for said in path):
            msg = "a conversation in which no model answered"
            raise ValueError(msg)
        built, retries = paths.contexts, paths.errors()
        trajectory = paths.trajectory(0)
        subs = [paths.sub(index) for index in range(1, len(built))]
        branches = [{"trajectory": index, "shared_steps": steps_in(paths.logs[index][: paths.shared[index]])} for index in paths.branches]
        for agent, starter in talk.agents:
            inner = Paths(agent.units, self._units)
            shift, step = len(built), None if starter is None else paths.step_of(starter)
            name = agent.name_from(starter)
            subs += [replace(inner.sub(i, shift), agent=name, parent_step=step) for i in range(len(inner.logs))]
            built += inner.contexts
            paths.stubs += inner.stubs
            retries += inner.errors(shift)
        calls = [call for index, context in enumerate(built) for call in context.numbered(index)]
        return Trace(
            id=_id(talk.units[0].first, trajectory),
            trajectory=trajectory,
            source=Source(NAME, str(talk.units[0].first.entry.path), talk.units[0].first.entry.line),
            sub_trajectories=tuple(subs),
            session=talk.session or None,
            agent=talk.units[0].first.side or NAME,
            calls=tuple(calls),
            metadata={**self._about(talk), **({"branches": branches} if branches else {}), **({"retries": retries} if retries else {})},
            completeness=worst((call.completeness for call in calls), [*_MISSING, *self._remarks(talk, paths)]),
            started_at_us=min((line.at_us for unit in talk.units for line in unit.lines if line.at_us is not None), default=None),
            ended_at_us=max((line.at_us for unit in talk.units for line in unit.lines if line.at_us is not None), default=None),
        )

    def _about(self, talk: _Talk) -> dict[str, Any]:
        first = talk.units[0].first.raw
        uuids = [line.uuid for unit in talk.units for line in (*unit.lines, *unit.results)]
        summaries = [self._summaries[uuid] for uuid in uuids if uuid in self._summaries]
        sessions = list(dict.fromkeys(line.session for unit in talk.units for line in unit.lines))
        return {
            **{key: first[key] for key in _ABOUT if first.get(key)},
            **({"summaries": summaries} if summaries else {}),
            **({"sessions": sessions} if len(sessions) > 1 else {}),
        }

    def _remarks(self, talk: _Talk, paths: Paths) -> list[str]:
        sessions = dict.fromkeys([*(line.session for unit in talk.units for line in unit.lines), ""])
        counts: Counter[str] = Counter()
        for session in sessions:
            counts.update(self._notes.get(session, {}))
        counts["messages on branches that no model answered"] += paths.stubs
        return counted(counts)


class _Talk:
    """One conversation: the units of a tree, in order, and the sub-agents that it started."""

    def __init__(self, root: str, units: Mapping[str, Unit]) -> None:
        self.units = sorted((units[key] for key in below(root, units) if not is_clear(units[key])), key=lambda unit: unit.first.place)
        self.agents: list[tuple[_Talk, Unit | None]] = []

    @property
    def session(self) -> str:
        return self.units[0].first.session

    @property
    def task(self) -> str:
        first = self.units[0].first.messages
        return first[0].content_text if first else ""

    def name_from(self, starter: Unit | None) -> str:
        asked = [facts.record(block.get("input")) for block in (starter.blocks if starter else []) if isinstance(block, dict)]
        mine = next((given for given in asked if given.get("prompt") == self.task), next((g for g in asked if g.get("subagent_type")), {}))
        side = self.units[0].first.side
        return facts.word(mine.get("subagent_type")) or ("" if side == "sidechain" else side)


def _id(first: Line, trajectory: Trajectory) -> str:
    """From the uuid of a conversation's first line, which a session that resumes it copies; without one from how it begins."""
    uuid = facts.word(first.raw.get("uuid"))
    if uuid is None:
        return trace_id(NAME, trajectory.prefix(0) if first.session else trajectory, first.session or None)
    return source_trace_id(NAME, *([] if facts.is_unique(uuid) else [first.session]), uuid, *filter(None, [first.side]))


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    message = row.get("message")
    if not isinstance(message, dict) or "content" not in message:
        msg = f"a {row['type']} line without a message that has content"
        raise ValueError(msg)
    return anthropic.messages_of(None, [{**message, "role": row["type"]}])


def _asked(unit: Unit) -> set[str]:
    return {call.id for line in unit.lines for message in line.messages for call in message.tool_calls}


def _prompts(unit: Unit) -> list[Any]:
    return [facts.record(block.get("input")).get("prompt") for block in unit.blocks if isinstance(block, dict)]


CONNECTOR = ClaudeCode()
