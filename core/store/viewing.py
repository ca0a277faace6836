"""What a viewer asks of a store that does not change under it: windows of a long list of traces, counts to filter by, text in messages.

The list is put together once, in a temporary table that only this object's connection has: the store is never written. Every
answer is bounded; what takes longer, the search through all messages, goes on in a thread and is seen as far as it has come.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.nouns import Message
from counterplay.core.store.counting import SUCCEEDED
from counterplay.core.store.rows import ScoreRow
from counterplay.core.store.store import Store
from counterplay.core.store.tables import hex_key, insert, records, scalar, shelved
from counterplay.core.tool_errors import is_error

_ORDERS = 16
_TEXTS = 4
_CHUNK = 40_000
_FACET = 200
_LOW = 0.5

SORTS: Mapping[str, str] = {
    "ingested": "number",
    "started": "started_at_us",
    "id": "id",
    "task": "task",
    "agent": "agent",
    "outcome": "outcome",
    "steps": "steps",
    "tokens": "tokens",
    "cost": "cost_usd",
    "duration": "duration_s",
    "failing": "failing_step",
}
FACETS = ("task", "agent", "source", "tag", "outcome", "failing")

# Whatever `is_error` says yes to has one of these words in it: the others need not be parsed.
_SUSPECTS = "SELECT id, wire FROM node WHERE role = 'tool' AND regexp_matches(wire, 'error|exception|traceback', 'i')"
_FAILING = f"""
CREATE TEMP TABLE failing AS WITH main AS (SELECT number, trace_number FROM trajectory WHERE ordinal = 0 AND trace_number IS NOT NULL)
SELECT trace_number, min(step) AS step FROM (
    SELECT m.trace_number, s.step FROM step s JOIN main m ON m.number = s.trajectory WHERE s.error IS NOT NULL
    UNION ALL SELECT m.trace_number, p.step FROM path p SEMI JOIN erring e ON e.node = p.node JOIN main m ON m.number = p.trajectory
        WHERE p.step IS NOT NULL
    UNION ALL SELECT trace_number, step FROM trace_score WHERE trajectory = 0 AND step IS NOT NULL AND scaled < {_LOW}
) GROUP BY trace_number"""  # noqa: S608  names of our own
_LISTED = f"""
CREATE TEMP TABLE listed AS SELECT c.number, c.id, c.task, c.session, c.agent, c.format AS source,
    CASE WHEN {SUCCEEDED} THEN 'success' WHEN NOT {SUCCEEDED} THEN 'failed' ELSE 'unknown' END AS outcome, c.reward, c.steps,
    c.trajectories, c.input_tokens + c.output_tokens AS tokens, c.cost_usd, c.started_at_us,
    (c.ended_at_us - c.started_at_us) / 1e6 AS duration_s, f.step AS failing_step, coalesce(r.searches, 0) AS searches, c.grade, c.tags
FROM trace c LEFT JOIN failing f ON f.trace_number = c.number
    LEFT JOIN (SELECT trace, count(*) AS searches FROM search GROUP BY trace) r ON r.trace = c.id
WHERE c.current ORDER BY c.number"""  # noqa: S608  names of our own


@dataclass(frozen=True)
class Wanted:
    """Which traces, in which order. None is no filter; an empty text asks for those without a value. `begins` is how an id, a task or a
    session begins, `text` occurs in a message, whatever its case. Costs are in US dollars, bounds included. `sort` is one of `SORTS`.
    """

    task: str | None = None
    agent: str | None = None
    source: str | None = None
    tag: str | None = None
    outcome: str | None = None
    failing: bool | None = None
    min_cost: float | None = None
    max_cost: float | None = None
    begins: str = ""
    text: str = ""
    sort: str = "ingested"
    descending: bool = False


@dataclass(frozen=True)
class Searched:
    """How far the search for a text has come, in messages."""

    searched: int
    of: int

    @property
    def done(self) -> bool:
        return self.searched >= self.of


class TraceIndex:
    """The traces of an open store as a list. Close it before the store. Its methods may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._connection, self._lock = store._connection.cursor(), threading.RLock()  # noqa: SLF001  a part of the store
        self._store = store
        self._orders: OrderedDict[tuple[Wanted, int], list[int]] = OrderedDict()
        self._texts: OrderedDict[str, _TextSearch] = OrderedDict()
        suspects = self._connection.execute(_SUSPECTS).fetchall()
        self._connection.execute("CREATE TEMP TABLE erring (node BIGINT)")
        insert(self._connection, "erring", {"node": [node for node, wire in suspects if is_error(Message(wire))]})
        self._connection.execute(_FAILING)
        self._connection.execute(_LISTED)
        self.count: int = scalar(self._connection, "SELECT count(*) FROM listed")

    def close(self) -> None:
        for search in self._texts.values():
            search.stop()
        with self._lock:
            self._connection.close()

    def page(self, wanted: Wanted, offset: int = 0, limit: int = 100) -> tuple[int, list[dict[str, Any]], Searched | None]:
        """How many traces are wanted, a window of them, and how far the search for a text has come (None where none is asked for)."""
        with self._lock:
            order, searched = self._order(wanted)
            return len(order), self._rows(order[offset : offset + limit]), searched

    def row(self, trace_id: str) -> dict[str, Any] | None:
        """The row of one trace; None where it is not held."""
        with self._lock:
            found = records(self._connection, "SELECT * FROM listed WHERE id = ?", [shelved(trace_id)])
        return found[0] if found else None

    def facets(self, wanted: Wanted) -> dict[str, list[tuple[str, int]]]:
        """For each of `FACETS` its values with how many traces have them under the other filters, the commonest first."""
        with self._lock:
            return {name: self._facet(name, replace(wanted, text="", **{name: None})) for name in FACETS}  # type: ignore[arg-type]

    def costs(self) -> tuple[float, float] | None:
        """The least and the largest known cost; None where none is known."""
        with self._lock:
            least, largest = self._connection.execute("SELECT min(cost_usd), max(cost_usd) FROM listed").fetchall()[0]
        return None if least is None else (least, largest)

    def opinions(self, keys: Sequence[str]) -> dict[str, list[ScoreRow]]:
        """What verifiers said of these states, by key: asked for outright, or in searches."""
        with self._lock:
            return _opinions(self._connection, keys)

    def revisions(self, trace_id: str) -> int:
        with self._lock:
            return int(scalar(self._connection, "SELECT count(*) FROM trace WHERE id = ?", [shelved(trace_id)]))

    def held(self, trace_ids: Sequence[str]) -> set[str]:
        """Those of some trace ids that the store has."""
        with self._lock:
            rows = records(self._connection, "SELECT id FROM listed WHERE id IN (SELECT unnest(?))", [[*map(shelved, trace_ids)]])
        return {row["id"] for row in rows}

    def node_places(self, search_id: str, keys: Sequence[str]) -> dict[str, int] | None:
        """The index of the node of each of these states in a search, where it has one; None where the search is not held."""
        query = f"""SELECT {hex_key("n.key")} AS key, min(n.index) AS index FROM search r LEFT JOIN search_node n ON n.search = r.number
            AND n.key IN (SELECT unnest(?)::UUID) WHERE r.id = ? GROUP BY n.key"""  # noqa: S608  names of our own
        with self._lock:
            rows = records(self._connection, query, [list(keys), shelved(search_id)])
        return {row["key"]: row["index"] for row in rows if row["key"] is not None} if rows else None

    def best_scores(self, search_ids: Sequence[str]) -> dict[str, float]:
        """The best score of a counterfactual end, by search; none where none is scored."""
        query = """SELECT r.id, max(n.score) AS best FROM search r JOIN search_node n ON n.search = r.number
            WHERE r.id IN (SELECT unnest(?)) AND NOT n.logged AND n.score IS NOT NULL
            AND (n.terminated OR n.truncated OR n.error IS NOT NULL) GROUP BY r.id"""
        with self._lock:
            return {row["id"]: row["best"] for row in records(self._connection, query, [[*map(shelved, search_ids)]])}

    def failed(self, agent: str | None = None) -> list[dict[str, Any]]:
        """Id, task, agent and steps of the traces that failed, of one agent (empty: without one) or of all."""
        with self._lock:
            where, values = _conditions(Wanted(outcome="failed", agent=agent))
            return records(self._connection, f"SELECT id, task, agent, steps FROM listed WHERE {where} ORDER BY number", values)  # noqa: S608

    def low_scores(self) -> dict[str, tuple[int, str]]:
        """By trace the first step of its main trajectory with a logged score below 0.5, and the name of that score."""
        query = f"""SELECT l.id, min(s.step) AS step, min_by(s.name, s.step) AS name FROM trace_score s JOIN listed l
            ON l.number = s.trace_number WHERE s.trajectory = 0 AND s.step IS NOT NULL AND s.scaled < {_LOW} GROUP BY l.id"""  # noqa: S608
        with self._lock:
            return {row["id"]: (row["step"], row["name"]) for row in records(self._connection, query)}

    def error_steps(self) -> dict[str, tuple[int, bool]]:
        """By trace the last step of its main trajectory with an error, and whether it is one of the machinery (else of a tool)."""
        query = """WITH main AS (SELECT t.number, l.id FROM trajectory t JOIN listed l ON l.number = t.trace_number WHERE t.ordinal = 0)
            SELECT id, max(step) AS step, max_by(own, step) AS own FROM (
                SELECT m.id, s.step, true AS own FROM step s JOIN main m ON m.number = s.trajectory WHERE s.error IS NOT NULL
                UNION ALL SELECT m.id, p.step, false FROM path p SEMI JOIN erring e ON e.node = p.node
                    JOIN main m ON m.number = p.trajectory WHERE p.step IS NOT NULL) GROUP BY id"""
        with self._lock:
            return {row["id"]: (row["step"], row["own"]) for row in records(self._connection, query)}

    def better_steps(self) -> dict[str, tuple[int, str, float]]:
        """By failed trace the last step whose alternative ended well in a search (score at least 0.5), the search, and that score."""
        query = f"""SELECT r.id AS search, r.trace, f.steps AS first, n.index, n.parent, n.logged,
            CASE WHEN n.terminated AND n.score >= {_LOW} AND NOT n.logged THEN n.score END AS end_score
            FROM search_node n JOIN search r ON r.number = n.search JOIN listed l ON l.id = r.trace AND l.outcome = 'failed'
            JOIN trajectory f ON f.search = r.id AND f.kind = 'fork' ORDER BY r.number, n.index"""  # noqa: S608  names of our own
        with self._lock:
            return _left_at(records(self._connection, query))

    def tools_at(self, steps: Mapping[str, int]) -> dict[str, list[str]]:
        """The tools that the action of one step of each trace calls, by trace."""
        if not steps:
            return {}
        rows: dict[str, list[Any]] = {"trace": [*map(shelved, steps)], "step": list(steps.values())}
        with self._lock:
            self._connection.execute("CREATE OR REPLACE TEMP TABLE asked_steps (trace VARCHAR, step INTEGER)")
            insert(self._connection, "asked_steps", rows)
            query = """SELECT l.id, n.tools FROM asked_steps a JOIN listed l ON l.id = a.trace
                JOIN trajectory t ON t.trace_number = l.number AND t.ordinal = 0
                JOIN path p ON p.trajectory = t.number AND p.step = a.step AND p.role_in_step = 'action' JOIN node n ON n.id = p.node"""
            return {row["id"]: [name for name in row["tools"] or () if name] for row in records(self._connection, query)}

    def _order(self, wanted: Wanted) -> tuple[list[int], Searched | None]:
        searched = None
        if wanted.text:
            searched = self._search(wanted.text)
        known = (wanted, searched.searched if searched else 0)
        if known not in self._orders:
            where, values = _conditions(wanted)
            if wanted.text:
                where += f" AND number IN (SELECT number FROM {self._texts[wanted.text].table})"  # noqa: S608
            direction = "DESC" if wanted.descending else "ASC"
            query = f"SELECT number FROM listed WHERE {where} ORDER BY {SORTS[wanted.sort]} {direction} NULLS LAST, number"  # noqa: S608
            self._orders[known] = [number for (number,) in self._connection.execute(query, values).fetchall()]
            while len(self._orders) > _ORDERS:
                self._orders.popitem(last=False)
        self._orders.move_to_end(known)
        return self._orders[known], searched

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        if not numbers:
            return []
        query = "SELECT * FROM listed WHERE number BETWEEN ? AND ? AND number IN (SELECT unnest(?))"
        found = records(self._connection, query, [min(numbers), max(numbers), list(numbers)])
        by_number = {row["number"]: row for row in found}
        return [by_number[number] for number in numbers]

    def _facet(self, name: str, wanted: Wanted) -> list[tuple[str, int]]:
        where, values = _conditions(wanted)
        if name == "tag":
            value, rows = "coalesce(tag, '')", "(SELECT *, unnest(if(len(tags) = 0, [NULL], tags)) AS tag FROM listed)"
        elif name == "failing":
            value, rows = "if(failing_step IS NULL, 'no', 'yes')", "listed"
        else:
            value, rows = f"coalesce({name}, '')", "listed"
        query = f"""SELECT {value} AS value, count(*) AS count FROM {rows} WHERE {where}
            GROUP BY value ORDER BY count DESC, value LIMIT {_FACET}"""  # noqa: S608  names of our own
        return [(row["value"], row["count"]) for row in records(self._connection, query, values)]

    def _search(self, text: str) -> Searched:
        """Start the search for a text, or see how far it is. What it has found so far goes into its table."""
        if text not in self._texts:
            self._texts[text] = _TextSearch(self._store, self._connection, text)
            while len(self._texts) > _TEXTS:
                self._texts.popitem(last=False)[1].drop(self._connection)
        self._texts.move_to_end(text)
        return self._texts[text].gathered(self._connection)


def opinions_of(store: Store, keys: Sequence[str]) -> dict[str, list[ScoreRow]]:
    """`TraceIndex.opinions` without a list of traces."""
    return _opinions(store._connection.cursor(), keys)  # noqa: SLF001  a part of the store


def _opinions(connection: DuckDBPyConnection, keys: Sequence[str]) -> dict[str, list[ScoreRow]]:
    found: dict[str, list[ScoreRow]] = {key: [] for key in keys}
    asked = "(SELECT unnest(?)::UUID)"
    query = f"""SELECT {hex_key("key")} AS key, verifier, version, value, reason, error FROM score WHERE key IN {asked}
        UNION SELECT {hex_key("key")}, score_verifier, score_version, score, score_reason, NULL FROM search_node
        WHERE score IS NOT NULL AND key IN {asked} ORDER BY ALL"""  # noqa: S608  names of our own
    for row in records(connection, query, [list(keys), list(keys)]):
        found[row["key"]].append(ScoreRow(**row))
    return found


class _TextSearch:
    """One text looked for in all messages, in the order they were stored, in a thread of its own."""

    _made = 0

    def __init__(self, store: Store, owner: DuckDBPyConnection, text: str) -> None:
        _TextSearch._made += 1
        self.table = f"found_{_TextSearch._made}"
        owner.execute(f"CREATE TEMP TABLE {self.table} (number BIGINT)")
        self._cursor = store._connection.cursor()  # noqa: SLF001  a part of the store
        self._pattern = pattern_of(text)
        self._of = int(scalar(owner, "SELECT count(*) FROM node"))
        self._searched, self._fresh, self._told = 0, set[int](), set[int]()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._first_chunk = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._first_chunk.wait(0.04)  # most stores are done by then, and the first answer is the whole one

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._cursor.close()

    def drop(self, owner: DuckDBPyConnection) -> None:
        self.stop()
        owner.execute(f"DROP TABLE {self.table}")

    def gathered(self, owner: DuckDBPyConnection) -> Searched:
        with self._lock:
            fresh, self._fresh, searched = self._fresh - self._told, set(), self._searched
        self._told |= fresh
        insert(owner, self.table, {"number": sorted(fresh)})
        return Searched(searched, self._of)

    def _look(self) -> None:
        bounds = self._cursor.execute("SELECT min(id), max(id) FROM node").fetchall()[0]
        start, last = (0, -1) if bounds[0] is None else bounds
        while start <= last and not self._stopped.is_set():
            end = start + _CHUNK
            query = """SELECT DISTINCT t.trace_number FROM path p JOIN trajectory t ON t.number = p.trajectory
                WHERE t.trace_number IS NOT NULL AND p.node BETWEEN ? AND ? AND p.node IN
                (SELECT id FROM node WHERE id BETWEEN ? AND ? AND regexp_matches(wire, ?, 'i'))"""
            found = self._cursor.execute(query, [start, end - 1, start, end - 1, self._pattern]).fetchall()
            with self._lock:
                self._fresh.update(number for (number,) in found)
                self._searched = self._of if end > last else min(self._of, self._searched + _CHUNK)
            start = end
        if last < 0:
            self._searched = self._of
        self._first_chunk.set()


def pattern_of(text: str) -> str:
    """A regular expression for a text as it stands in the JSON of a message, within arguments (JSON in JSON) too."""
    spelled = {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)}
    spelled |= {json.dumps(each, ensure_ascii=False)[1:-1] for each in spelled}
    readable = (each.encode("utf-8", "replace").decode() for each in sorted(spelled))
    return "|".join(re.sub(r"([^\w\s]|_)", r"\\\1", each, flags=re.ASCII) if each.isascii() else re.escape(each) for each in readable)


def _conditions(wanted: Wanted) -> tuple[str, list[Any]]:
    where, values = ["true"], list[Any]()
    for name in ("task", "agent", "source", "outcome"):
        value = getattr(wanted, name)
        if value is not None:
            where.append(f"{name} = ?" if value else f"coalesce({name}, '') = ''")
            values += [shelved(value)] if value else []
    if wanted.tag is not None:
        where.append("list_contains(tags, ?)" if wanted.tag else "len(tags) = 0")
        values += [shelved(wanted.tag)] if wanted.tag else []
    if wanted.failing is not None:
        where.append(f"failing_step IS {'NOT ' if wanted.failing else ''}NULL")
    for bound, sign in ((wanted.min_cost, ">="), (wanted.max_cost, "<=")):
        if bound is not None:
            where.append(f"cost_usd {sign} ?")
            values.append(bound)
    if wanted.begins:
        where.append("(starts_with(id, ?) OR starts_with(task, ?) OR starts_with(session, ?))")
        values += [shelved(wanted.begins)] * 3
    return " AND ".join(where), values


def _left_at(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, str, float]]:
    """From nodes in the order of their searches, parents first: the last step at which a good end left the log, by trace."""
    found: dict[str, tuple[int, str, float]] = {}
    search, places = "", dict[int, tuple[int, int | None]]()
    for row in rows:
        if row["search"] != search:
            search, places = row["search"], {}
        depth, left = places[row["parent"]] if row["parent"] is not None else (-1, None)
        if left is None and row["parent"] is not None and not row["logged"]:
            left = depth + 1
        places[row["index"]] = depth + 1, left
        if row["end_score"] is None or left is None:
            continue
        step = row["first"] + left - 1
        if row["trace"] not in found or step > found[row["trace"]][0]:
            found[row["trace"]] = step, search, row["end_score"]
    return found
