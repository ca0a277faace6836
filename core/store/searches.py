"""Search trees: their messages are nodes of the one content tree, their statistics rows of their own.

Every finished leaf that left the recorded branch is a counterfactual trajectory, readable like a logged one. Many trees are written
together: what they share with each other and with the logs is looked up once for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from duckdb import DuckDBPyConnection

from counterplay.core.budget import KINDS
from counterplay.core.canonical import canonical, chain_key, content_key, dumps
from counterplay.core.collecting import uncollected
from counterplay.core.nouns import Step, Trajectory
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.core.store.content import Content, trajectory_parts
from counterplay.core.store.encoding import Draft, number, step_columns
from counterplay.core.store.exact import listed
from counterplay.core.store.tables import Columns, Incoming, hex_key, insert, merged, next_number, records, shelved, single, within

_BATCH_NODES = 16384
_STEP_COLUMNS = ("sampled", "terminated", "truncated", "error", "reward", "grades")


def put_searches(connection: DuckDBPyConnection, found: Iterable[SearchRecord]) -> int:
    """Write or replace searches inside the caller's transaction; how many of them were not held exactly so already."""
    with uncollected():
        return sum(_put_batch(connection, batch) for batch in _batches(found))


def _batches(found: Iterable[SearchRecord]) -> Iterator[list[SearchDraft]]:
    """Drafts of distinct ids, of some thousand nodes together."""
    drafts: dict[str, SearchDraft] = {}
    nodes = 0
    for record in found:
        if record.id in drafts or nodes > _BATCH_NODES:
            yield list(drafts.values())
            drafts, nodes = {}, 0
        drafts[record.id] = SearchDraft.of(record)
        nodes += len(record.nodes)
    if drafts:
        yield list(drafts.values())


@dataclass(frozen=True)
class SearchDraft:
    """A search ready to be written.

    `keys` are the content keys after each message of a node's step, by index; at the root the root state's. `columns` are the nodes'
    own; `drafts` the trajectories by node: the root's, and the finished leaves that left the recorded branch.
    """

    record: SearchRecord
    keys: Mapping[int, tuple[str, ...]]
    columns: Columns
    header: Mapping[str, Any]
    drafts: Mapping[int, Draft]
    digest: str

    @classmethod
    def of(cls, record: SearchRecord) -> SearchDraft:
        root = Draft.of(record.root)
        keys, columns, header = _keys(record, root.tip), _columns(record.nodes), _header(record)
        told = listed([[keys[node.index][-1] for node in record.nodes], *columns.values()])
        drafts = {0: root, **_leaves(record, root, keys)}
        return cls(record, keys, columns, header, drafts, content_key(root.digest, canonical(header), told))

    def give(self, content: Content) -> None:
        content.add(self.drafts[0])
        for node in self.record.nodes:
            if node.step is not None and node.parent is not None:
                content.follow(self.keys[node.parent][-1], [message.wire for message in node.step.messages], self.keys[node.index])
        for draft in self.drafts.values():
            content.add(draft)


def _put_batch(connection: DuckDBPyConnection, drafts: Sequence[SearchDraft]) -> int:
    held = _held(connection, [draft.record.id for draft in drafts])
    changed = [draft for draft in drafts if held.get(draft.record.id, (0, ""))[1] != draft.digest]
    if not changed:
        return 0
    _remove(connection, {name: held[name][0] for draft in changed if (name := draft.record.id) in held})
    content = Content()
    for draft in changed:
        draft.give(content)
    content.store(connection)
    first = next_number(connection, "search")
    parts: dict[str, list[Columns]] = defaultdict(list)
    for search, draft in enumerate(changed, first):
        parts["search"].append(single({"number": search, "digest": draft.digest, "finished": len(draft.drafts) - 1, **draft.header}))
        parts["search_node"].append(_node_columns(search, draft, content))
    _draw_trajectories(changed, content, next_number(connection, "trajectory"), parts)
    for table, batch in parts.items():
        insert(connection, table, merged(batch))
    return len(changed)


def _held(connection: DuckDBPyConnection, ids: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Number and digest of those that are held, by id."""
    with Incoming(connection, {"id": ids}) as incoming:
        query = f"SELECT s.id, s.number, {hex_key('s.digest')} AS digest FROM search s JOIN {incoming} i ON s.id = i.id"  # noqa: S608
        return {row["id"]: (row["number"], row["digest"]) for row in records(connection, query)}


def search_digest(record: SearchRecord) -> str:
    """Everything that makes two records equal."""
    return SearchDraft.of(record).digest


def _header(record: SearchRecord) -> dict[str, Any]:
    config = dumps(dict(record.config))
    return {
        "id": record.id,
        "algorithm": record.algorithm,
        "trace": record.trace,
        "task": record.task,
        "fork_step": record.fork_step,
        "config": config,
        "attributes": config,
        "stopped": record.stopped,
        "nodes": len(record.nodes),
        **{kind: number(getattr(record.used, kind)) for kind in KINDS},
    }


def _keys(record: SearchRecord, root: str) -> dict[int, tuple[str, ...]]:
    keys: dict[int, tuple[str, ...]] = {}
    for node in record.nodes:
        if node.step is None or node.parent is None:
            keys[node.index] = (root,)
            continue
        key = keys[node.parent][-1]
        keys[node.index] = tuple([key := chain_key(key, message.wire) for message in node.step.messages])
    return keys


def _leaves(record: SearchRecord, root: Draft, keys: Mapping[int, tuple[str, ...]]) -> dict[int, Draft]:
    """The finished leaves that left the recorded branch, by node."""
    inner = {node.parent for node in record.nodes}
    by_index = {node.index: node for node in record.nodes}
    found = {}
    for leaf in record.nodes:
        if leaf.index in inner or leaf.step is None or not leaf.step.finished or leaf.logged:
            continue
        steps: list[Step] = []
        path: list[tuple[str, ...]] = []
        node: NodeRecord | None = leaf
        while node is not None and node.step is not None and node.parent is not None:
            steps.append(node.step)
            path.append(keys[node.index])
            node = by_index[node.parent]
        whole = Trajectory(record.root.tools, record.root.prompt, (*record.root.steps, *reversed(steps)))
        found[leaf.index] = Draft.of(whole, [*root.keys, *(key for each in reversed(path) for key in each)])
    return found


def _columns(nodes: Sequence[NodeRecord]) -> dict[str, list[Any]]:
    scores = [node.score for node in nodes]
    return {
        "index": [node.index for node in nodes],
        "parent": [node.parent for node in nodes],
        **_step_columns([node.step for node in nodes]),
        "prior": [float(node.prior) for node in nodes],
        "logprob": [number(node.logprob) for node in nodes],
        "visits": [node.visits for node in nodes],
        "value_sum": [float(node.value_sum) for node in nodes],
        "draws": [node.draws for node in nodes],
        "logged": [node.logged for node in nodes],
        "score": [None if score is None else float(score.value) for score in scores],
        "score_reason": [None if score is None else score.reason for score in scores],
        "score_verifier": [None if score is None else score.verifier for score in scores],
        "score_version": [None if score is None else score.version for score in scores],
    }


def _step_columns(steps: Sequence[Step | None]) -> dict[str, list[Any]]:
    """None in every column where there is no step."""
    taken = step_columns([step for step in steps if step is not None])
    each = {name: iter(taken[name]) for name in _STEP_COLUMNS}
    return {name: [None if step is None else next(values) for step in steps] for name, values in each.items()}


def _node_columns(search: int, draft: SearchDraft, content: Content) -> Columns:
    nodes, keys = draft.record.nodes, draft.keys
    return {
        "search": [search] * len(nodes),
        "key": [keys[node.index][-1] for node in nodes],
        "messages": [None if node.step is None else list(map(content.id, keys[node.index])) for node in nodes],
        **draft.columns,
    }


def _draw_trajectories(drafts: Sequence[SearchDraft], content: Content, first: int, parts: Mapping[str, list[Columns]]) -> None:
    """Of each search the root as `fork` (node 0), each finished leaf as `counterfactual`; their rows are added to `parts`."""
    for search in drafts:
        record = search.record
        belongs = partial(trajectory_parts, forked_from=record.trace, fork_step=record.fork_step, search=record.id)
        for index, draft in search.drafts.items():
            kind = "counterfactual" if index else "fork"
            rows = belongs(draft, content, first, id=f"{record.id}/{index}", kind=kind, search_node=index)
            for table, part in rows.items():
                parts[table].append(part)
            first += 1


def _remove(connection: DuckDBPyConnection, gone: Mapping[str, int]) -> None:
    """Delete these searches (number by id) with everything that is theirs alone."""
    if not gone:
        return
    query = "SELECT number FROM trajectory WHERE search IN (SELECT unnest(?))"
    trajectories = [row["number"] for row in records(connection, query, [list(map(shelved, gone))])]
    theirs = {"path": "trajectory", "step": "trajectory", "trajectory": "number"}
    for table, column in theirs.items():
        _delete(connection, table, column, trajectories)
    for table, column in {"search_node": "search", "search": "number"}.items():
        _delete(connection, table, column, list(gone.values()))


def _delete(connection: DuckDBPyConnection, table: str, column: str, values: Sequence[int]) -> None:
    if values:
        connection.execute(f"DELETE FROM {table} WHERE {within(column, values)}", [values])  # noqa: S608  names of our own
