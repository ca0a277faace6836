"""Which traces a job is about: chosen in SQL, given out page by page in an order that does not depend on when they came in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from counterplay.core.errors import UserError
from counterplay.core.store.base import StoreFile
from counterplay.core.store.counting import OUTCOME, SUCCEEDED
from counterplay.core.store.rows import LightRow, Selection
from counterplay.core.store.tables import shelved

_OUTCOMES = ("success", "failed", "unknown")
_COLUMNS = f"id, task, agent, steps, calls, reward, success, {SUCCEEDED} AS succeeded, input_tokens, output_tokens, cost_usd"
_BEGAN = "coalesce(started_at_us, ended_at_us)"
_PAGE = 4096


class StoreSelecting(StoreFile):
    """Light rows of many traces, streamed: each page is a query of its own, so that nothing is held open in between."""

    def select_ids(self, selection: Selection | None = None) -> Iterator[LightRow]:
        """The traces that are selected, in order of id; None is all. Raises UserError on a selection that can't be."""
        where, parameters = _where(selection or Selection())
        left = (selection or Selection()).limit
        query = f"SELECT {_COLUMNS} FROM trace WHERE {where}"  # noqa: S608  names of our own
        for row in self._paged(query, "id", parameters):
            if left is not None:
                if left <= 0:
                    return
                left -= 1
            yield LightRow(**row)

    def tasks_of(self, selection: Selection | None = None) -> Iterator[tuple[str | None, list[str]]]:
        """The selected traces by task: the task and their ids in order, in order of task; then those without a task, each alone."""
        chosen = selection or Selection()
        where, parameters = _where(chosen)
        if chosen.limit is not None:
            where = f"id IN (SELECT id FROM trace WHERE {where} ORDER BY id LIMIT {int(chosen.limit)}) AND current"  # noqa: S608
        query = f"SELECT task, list(id ORDER BY id) AS ids FROM trace WHERE {where} AND task IS NOT NULL"  # noqa: S608
        for row in self._paged(query, "task", parameters, "GROUP BY task"):
            yield row["task"], row["ids"]
        for row in self._paged(f"SELECT id FROM trace WHERE {where} AND task IS NULL", "id", parameters):  # noqa: S608
            yield None, [row["id"]]

    def groups_of(self, selection: Selection | None = None) -> Iterator[list[str]]:
        """The ids of the selected traces of each task, in order, those without a task each alone; in order of the first. No `limit`."""
        where, parameters = _where(selection or Selection())
        query = f"SELECT min(id), list(id ORDER BY id) AS ids FROM trace WHERE {where}"  # noqa: S608  names of our own
        grouped = f"{query} GROUP BY task, CASE WHEN task IS NULL THEN id END HAVING true"
        return (row["ids"] for row in self._paged(grouped, "min(id)", parameters))

    def nearest(self, field: Literal["agent", "task", "format", "tag"], word: str, n: int = 3) -> list[str]:
        """What the current traces have in this field: the `n` that are most like `word`."""
        column = "unnest(tags)" if field == "tag" else field
        query = f"""SELECT word FROM (SELECT DISTINCT {column} AS word FROM trace WHERE current) WHERE word IS NOT NULL
            ORDER BY jaro_winkler_similarity(lower(word), lower(?)) DESC, word LIMIT {int(n)}"""  # noqa: S608  names of our own
        return [row["word"] for row in self._records(query, [shelved(word)])]

    def _paged(self, query: str, key: str, parameters: list[Any], ending: str = "") -> Iterator[dict[str, Any]]:
        """The rows of a query whose last clause is WHERE or HAVING, in order of a text column that none of them share."""
        after: list[Any] = []
        while True:
            further = f" AND {key} > ?" if after else ""
            rows = self._records(f"{query}{further} {ending} ORDER BY {key} LIMIT {_PAGE}", [*parameters, *after])
            yield from rows
            if len(rows) < _PAGE:
                return
            after = [shelved(rows[-1][key])]


def _where(selection: Selection) -> tuple[str, list[Any]]:
    """SQL and its parameters for the current traces that are selected, whatever the limit."""
    odd = next((word for word in selection.outcome if word not in _OUTCOMES), None)
    if odd is not None:
        raise UserError(f"got outcome {odd!r}", f"one of {', '.join(_OUTCOMES)}")
    if selection.sample is not None and not 0 < selection.sample <= 1:
        raise UserError(f"got a sample of {selection.sample!r}", "a share above 0, at most 1")
    where = ["current"]
    parameters: list[Any] = []
    listed = {OUTCOME: selection.outcome, "agent": selection.agents, "task": selection.tasks, "format": selection.formats}
    for column, words in listed.items():
        if words:
            where.append(f"{column} IN (SELECT unnest(?))")
            parameters.append(list(map(shelved, words)))
    if selection.jobs:
        units = "SELECT unnest(u.traces) FROM unit u JOIN job j ON u.job = j.number WHERE j.id IN (SELECT unnest(?))"
        where.append(f"id IN ({units})")
        parameters.append(list(map(shelved, selection.jobs)))
    if selection.tags:
        where.append("list_has_all(tags, ?)")
        parameters.append(list(map(shelved, selection.tags)))
    bounds = {
        "cost_usd >": selection.cost_above_usd,
        "steps >": selection.steps_above,
        f"{_BEGAN} >=": selection.since_us,
        f"{_BEGAN} <": selection.until_us,
    }
    for bound, value in bounds.items():
        if value is not None:
            where.append(f"{bound} ?")
            parameters.append(value)
    if selection.sample is not None and selection.sample < 1:
        where.append("left(md5(? || id), 16) < ?")
        parameters += [f"{selection.seed}:", f"{int(selection.sample * 2**64):016x}"]
    return " AND ".join(where), parameters
