"""Search trees back from their rows, many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.budget import KINDS, Amounts
from counterplay.core.canonical import loads
from counterplay.core.collecting import uncollected
from counterplay.core.nouns import Grade, Message, Score, Step
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.core.store.decoding import read_messages, read_trajectories, read_within
from counterplay.core.store.tables import records, shelved, unshelved, within

_NODE = """search, index, parent, messages, sampled, terminated, truncated, error, reward, grades, prior, logprob, visits, value_sum, draws,
    logged, score, score_reason, score_verifier, score_version"""
_GRADES = tuple(Grade)


def read_searches(connection: DuckDBPyConnection, numbers: Sequence[int]) -> list[SearchRecord]:
    """The searches with these row numbers, in this order, each equal to the one that was put."""
    heads = {head["number"]: head for head in read_within(connection, "search", "number", numbers)}
    roots = _roots(connection, [head["id"] for head in heads.values()])
    states = read_trajectories(connection, list(roots.values()))
    with uncollected():
        nodes = _nodes(connection, numbers)
    return [_search(heads[n], states[roots[heads[n]["id"]]], nodes[n]) for n in numbers]


def _roots(connection: DuckDBPyConnection, ids: Sequence[str]) -> dict[str, int]:
    query = "SELECT search, number FROM trajectory WHERE kind = 'fork' AND search IN (SELECT unnest(?))"
    return {row["search"]: row["number"] for row in records(connection, query, [list(map(shelved, ids))])}


def _search(head: Mapping[str, Any], root: Any, nodes: Sequence[NodeRecord]) -> SearchRecord:
    return SearchRecord(
        id=head["id"],
        algorithm=head["algorithm"],
        root=root,
        nodes=tuple(nodes),
        trace=head["trace"],
        task=head["task"],
        fork_step=head["fork_step"],
        config=loads(head["config"]),
        stopped=head["stopped"],
        used=Amounts(**{kind: head[kind] for kind in KINDS}),
    )


def _nodes(connection: DuckDBPyConnection, numbers: Sequence[int]) -> dict[int, list[NodeRecord]]:
    found: dict[int, list[NodeRecord]] = defaultdict(list)
    query = f"SELECT {_NODE} FROM search_node WHERE {within('search', numbers)} ORDER BY search, index"  # noqa: S608  names of our own
    rows = connection.execute(query, [list(numbers)]).fetchall()
    messages = read_messages(connection, {node for row in rows for node in row[3] or ()})
    for search, index, parent, spots, *told, prior, logprob, visits, value_sum, draws, logged, score, reason, verifier, version in rows:
        step = None if spots is None else _step([messages[node] for node in spots], told)
        opinion = None if score is None else Score(score, unshelved(reason), unshelved(verifier), unshelved(version))
        found[search].append(NodeRecord(index, parent, step, prior, logprob, visits, value_sum, draws, logged, opinion))
    return found


def _step(messages: Sequence[Message], told: Sequence[Any]) -> Step:
    sampled, terminated, truncated, error, reward, grades = told
    followed = tuple(messages[1:])
    return Step(
        messages[0], followed, sampled, terminated, truncated, unshelved(error), reward, tuple([_GRADES[grade] for grade in grades])
    )
