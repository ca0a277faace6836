"""Content is written once: the messages and tool sets of a batch are looked up by key and only the new ones are appended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from duckdb import DuckDBPyConnection

from counterplay.core.canonical import dumps, loads
from counterplay.core.nouns import ToolSpec
from counterplay.core.store import branches
from counterplay.core.store.encoding import Draft, number, place_columns
from counterplay.core.store.tables import Columns, Incoming, hex_key, insert, scalar, single


class Content:
    """The content of one batch. Add drafts, `store` them inside a transaction, then ask for ids."""

    def __init__(self) -> None:
        self._messages: dict[str, tuple[str, str]] = {}
        self._facts: dict[str, Facts] = {}
        self._toolsets: dict[tuple[str, str], tuple[ToolSpec, ...]] = {}
        self._ids: dict[str, int] = {}
        self._toolset_ids: dict[tuple[str, str], int] = {}
        self.added = 0

    def add(self, draft: Draft) -> None:
        root = draft.trajectory.root_key
        self._toolsets.setdefault((root, draft.effects), draft.trajectory.tools)
        self.follow(root, draft.wires, draft.keys)

    def follow(self, parent: str, wires: Sequence[str], keys: Sequence[str]) -> None:
        """Add messages whose keys are `keys`, the first of which follows `parent`."""
        for wire, key in zip(wires, keys, strict=True):
            if key not in self._messages:
                self._messages[key] = (parent, wire)
            parent = key

    def store(self, connection: DuckDBPyConnection) -> None:
        """Append what is not yet there and learn every id."""
        last = scalar(connection, "SELECT coalesce(greatest((SELECT max(id) FROM node), (SELECT max(id) FROM toolset)), 0)")
        last = self._store_toolsets(connection, last)
        self._store_messages(connection, last)

    def id(self, key: str) -> int:
        return self._ids[key]

    def reuses_call_ids(self, draft: Draft) -> bool:
        return reuses_call_ids(map(self._facts_of, draft.keys))

    def _facts_of(self, key: str) -> Facts:
        facts = self._facts.get(key)
        if facts is None:
            facts = self._facts[key] = Facts.of(self._messages[key][1])
        return facts

    def toolset_id(self, draft: Draft) -> int:
        return self._toolset_ids[draft.trajectory.root_key, draft.effects]

    def _store_toolsets(self, connection: DuckDBPyConnection, last: int) -> int:
        with Incoming(connection, [{"key": key} for key, _ in self._toolsets]) as incoming:
            query = f"SELECT {hex_key('t.key')}, t.effects, t.id FROM toolset t JOIN {incoming} i ON t.key = i.key::UUID"  # noqa: S608
            self._toolset_ids = {(key, effects): found for key, effects, found in connection.execute(query).fetchall()}
        fresh = []
        for (key, effects), tools in self._toolsets.items():
            if (key, effects) not in self._toolset_ids:
                last += 1
                self._toolset_ids[key, effects] = last
                size = sum(len(tool.wire.encode()) for tool in tools)
                fresh.append({"id": last, "key": key, "tools": dumps([tool.wire for tool in tools]), "effects": effects, "bytes": size})
        insert(connection, "toolset", fresh)
        return last

    def _store_messages(self, connection: DuckDBPyConnection, last: int) -> None:
        if not self._messages:
            return
        self._ids = branches.held(connection, {key: parent for key, (parent, _) in self._messages.items()})
        fresh = [key for key in self._messages if key not in self._ids]
        ids = range(last + 1, last + 1 + len(fresh))
        self._ids.update(zip(fresh, ids, strict=True))
        columns = self._node_columns(fresh)
        insert(connection, "node", {"id": ids, "key": fresh, **columns})
        branches.remember(connection, fresh, ids, columns["parent"])
        self.added += len(fresh)

    def _node_columns(self, keys: Sequence[str]) -> Columns:
        roots = {key: found for (key, _), found in self._toolset_ids.items()}
        rows, facts = [self._messages[key] for key in keys], list(map(self._facts_of, keys))
        return {
            "parent": [self._ids.get(parent) or roots[parent] for parent, _ in rows],
            "bytes": [len(wire) if wire.isascii() else len(wire.encode()) for _, wire in rows],
            "wire": [wire for _, wire in rows],
            "role": [each.role for each in facts],
            "tools": [each.tools for each in facts],
        }


def trajectory_parts(draft: Draft, content: Content, row_number: int, **provenance: Any) -> dict[str, Columns]:
    """The rows of one trajectory, by table; `provenance` fills id, kind and what it belongs to."""
    length = len(draft.keys)
    nodes = [content.id(key) for key in draft.keys]
    path = {"trajectory": [row_number] * length, "depth": range(length), "node": nodes, **place_columns(draft.trajectory)}
    steps = len(draft.trajectory)
    return {
        "trajectory": single(_trajectory_row(draft, content, row_number, provenance)),
        "path": path,
        "step": {"trajectory": [row_number] * steps, "step": range(steps), **draft.steps},
    }


def _trajectory_row(draft: Draft, content: Content, row_number: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    trajectory = draft.trajectory
    return {
        **_UNRELATED,
        "number": row_number,
        "digest": draft.digest,
        "toolset": content.toolset_id(draft),
        "tip": draft.tip,
        "prompt": len(trajectory.prompt),
        "steps": len(trajectory),
        "grade": draft.grade,
        "reward": number(trajectory.steps[-1].reward) if trajectory.steps else None,
        "reused_call_ids": content.reuses_call_ids(draft),
        **provenance,
    }


_UNRELATED: Mapping[str, Any] = {
    "trace": None,
    "trace_number": None,
    "ordinal": 0,
    "agent": "",
    "parent_step": None,
    "continues": None,
    "forked_from": None,
    "fork_step": None,
    "search": None,
    "search_node": None,
}


class Facts(NamedTuple):
    """What SQL may ask of a message without parsing it: role and the names of the tools it calls; None where the wire does not say.

    `call_ids` are those of its tool calls, empty ones left out.
    """

    role: str | None = None
    tools: list[str | None] | None = None
    call_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, wire: str) -> Facts:
        try:
            fields = orjson.loads(wire)
        except orjson.JSONDecodeError:  # lone surrogates, NaN
            fields = _parsed(wire)
        if not isinstance(fields, dict):
            return cls()
        raw = fields.get("tool_calls")
        if not isinstance(raw, list) or not raw:
            return cls(_text(fields.get("role")))
        calls = [call if isinstance(call, dict) else {} for call in raw]
        ids = tuple(name for call in calls if (name := _text(call.get("id"))))
        return cls(_text(fields.get("role")), list(map(_name, calls)), ids)

    @property
    def row(self) -> dict[str, Any]:
        return {"role": self.role, "tools": self.tools}


def reuses_call_ids(facts: Iterable[Facts]) -> bool:
    """Whether two tool calls of one trajectory share an id."""
    ids = [name for each in facts for name in each.call_ids]
    return len(ids) > len(set(ids))


def _parsed(wire: str) -> Any:
    try:
        return loads(wire)
    except (ValueError, RecursionError):
        return None


def _name(call: dict[str, Any]) -> str | None:
    function = call.get("function")
    return _text((function if isinstance(function, dict) else call).get("name"))


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return value if value.isascii() else value.encode("utf-8", "replace").decode()
