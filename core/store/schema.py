"""The tables of a store, as migrations: each is applied once, in order, in one transaction.

`node` holds every message once, linked to what it follows: `parent` is the id of a node, or of the `toolset` at the root.
Ids are internal numbers (they keep a path of a growing context almost free to store); `key` is `Trajectory.key`, the
content's own name. Exact text is zstd-compressed; `attributes` are the same values in a form SQL can query fast. The views
for analysts are made anew with every migration.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
from duckdb import DuckDBPyConnection

from counterplay.core.errors import StoreError
from counterplay.core.store.decoding import read_digested
from counterplay.core.store.encoding import trace_digest
from counterplay.core.store.marks import make_salt
from counterplay.core.store.tables import Incoming, scalar, transaction
from counterplay.core.store.views import make_views

_BATCH = 1024

FIRST = """
CREATE TABLE toolset (id BIGINT NOT NULL, key UUID NOT NULL, tools VARCHAR USING COMPRESSION zstd NOT NULL,
    effects VARCHAR NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE node (id BIGINT NOT NULL, key UUID NOT NULL, parent BIGINT NOT NULL, role VARCHAR, bytes INTEGER NOT NULL,
    tool_calls STRUCT(id VARCHAR, name VARCHAR)[], wire VARCHAR USING COMPRESSION zstd NOT NULL);
CREATE TABLE trace (number BIGINT NOT NULL, id VARCHAR NOT NULL, current BOOLEAN NOT NULL, digest UUID NOT NULL,
    task VARCHAR, session VARCHAR, agent VARCHAR, format VARCHAR NOT NULL, dialect VARCHAR NOT NULL, uri VARCHAR NOT NULL, line BIGINT,
    reward DOUBLE, success BOOLEAN, outcome_source VARCHAR NOT NULL, details VARCHAR USING COMPRESSION zstd NOT NULL,
    inputs VARCHAR NOT NULL, tools_known BOOLEAN NOT NULL, system_prompt BOOLEAN NOT NULL, dropped_attributes BIGINT NOT NULL,
    truncated BOOLEAN NOT NULL, redacted BOOLEAN NOT NULL, notes VARCHAR[] NOT NULL, tags VARCHAR[] NOT NULL,
    metadata VARCHAR USING COMPRESSION zstd NOT NULL, attributes VARIANT, started_at_us BIGINT, ended_at_us BIGINT,
    trajectories INTEGER NOT NULL, steps INTEGER NOT NULL, messages INTEGER NOT NULL, calls INTEGER NOT NULL,
    input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cost_usd DOUBLE, grade UTINYINT NOT NULL);
CREATE TABLE trajectory (number BIGINT NOT NULL, id VARCHAR NOT NULL, kind VARCHAR NOT NULL, digest UUID NOT NULL, toolset BIGINT NOT NULL,
    tip UUID NOT NULL, prompt INTEGER NOT NULL, steps INTEGER NOT NULL, grade UTINYINT NOT NULL, reward DOUBLE,
    trace VARCHAR, trace_number BIGINT, ordinal INTEGER NOT NULL, agent VARCHAR NOT NULL, parent_step INTEGER, continues INTEGER,
    forked_from VARCHAR, fork_step INTEGER, search VARCHAR, search_node INTEGER);
CREATE TABLE path (trajectory BIGINT NOT NULL, depth INTEGER NOT NULL, node BIGINT NOT NULL, step INTEGER, role_in_step VARCHAR NOT NULL);
CREATE TABLE step (trajectory BIGINT NOT NULL, step INTEGER NOT NULL, sampled BOOLEAN NOT NULL, terminated BOOLEAN NOT NULL,
    truncated BOOLEAN NOT NULL, error VARCHAR, reward DOUBLE, grades UTINYINT[] NOT NULL);
CREATE TABLE call (trace_number BIGINT NOT NULL, ordinal INTEGER NOT NULL, trajectory INTEGER NOT NULL, step INTEGER NOT NULL,
    model VARCHAR, params VARCHAR USING COMPRESSION zstd NOT NULL, attributes VARIANT, input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, cost_usd DOUBLE, latency_s DOUBLE,
    started_at_us BIGINT, finish_reason VARCHAR, response_id VARCHAR, inputs VARCHAR NOT NULL);
CREATE TABLE trace_score (trace_number BIGINT NOT NULL, name VARCHAR NOT NULL, value DOUBLE NOT NULL, reason VARCHAR NOT NULL,
    verifier VARCHAR NOT NULL, version VARCHAR NOT NULL);
CREATE TABLE score (key UUID NOT NULL, verifier VARCHAR NOT NULL, version VARCHAR NOT NULL, value DOUBLE, reason VARCHAR NOT NULL,
    error VARCHAR, at_us BIGINT NOT NULL);
CREATE TABLE search (number BIGINT NOT NULL, id VARCHAR NOT NULL, digest UUID NOT NULL, algorithm VARCHAR NOT NULL, trace VARCHAR,
    task VARCHAR, fork_step INTEGER NOT NULL, config VARCHAR NOT NULL, attributes VARIANT, stopped VARCHAR NOT NULL, nodes INTEGER NOT NULL,
    finished INTEGER NOT NULL, simulations DOUBLE, model_calls DOUBLE, tokens DOUBLE, usd DOUBLE, tool_calls DOUBLE, seconds DOUBLE);
CREATE TABLE search_node (search BIGINT NOT NULL, index INTEGER NOT NULL, parent INTEGER, key UUID NOT NULL, messages BIGINT[],
    sampled BOOLEAN, terminated BOOLEAN, truncated BOOLEAN, error VARCHAR, reward DOUBLE, grades UTINYINT[], prior DOUBLE NOT NULL,
    logprob DOUBLE, visits BIGINT NOT NULL, value_sum DOUBLE NOT NULL, draws BIGINT NOT NULL, logged BOOLEAN NOT NULL, score DOUBLE,
    score_reason VARCHAR, score_verifier VARCHAR, score_version VARCHAR);
CREATE TABLE journal (number BIGINT NOT NULL, scope VARCHAR NOT NULL, key VARCHAR NOT NULL, kind VARCHAR NOT NULL,
    answer VARCHAR USING COMPRESSION zstd NOT NULL, at_us BIGINT NOT NULL);
CREATE TABLE quarantine (uri VARCHAR NOT NULL, line BIGINT, byte_offset BIGINT NOT NULL, reason VARCHAR NOT NULL,
    raw VARCHAR NOT NULL, at_us BIGINT NOT NULL);
CREATE VIEW message AS SELECT t.id AS trajectory, t.kind, t.trace, p.depth, p.step, p.role_in_step, n.role, n.key, n.tool_calls, n.wire
    FROM trajectory t JOIN path p ON p.trajectory = t.number JOIN node n ON n.id = p.node;
"""

# Tables whose columns change are written anew: an UPDATE of a whole table would be held in memory.
SECOND = """
DROP VIEW message;
ALTER TABLE trace ADD COLUMN outputs VARCHAR NOT NULL DEFAULT 'full';
ALTER TABLE trace ADD COLUMN open_spans BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trajectory RENAME TO first_trajectory;
CREATE TABLE trajectory (number BIGINT NOT NULL, id VARCHAR NOT NULL, kind VARCHAR NOT NULL, digest UUID NOT NULL, toolset BIGINT NOT NULL,
    tip UUID NOT NULL, prompt INTEGER NOT NULL, steps INTEGER NOT NULL, grade UTINYINT NOT NULL, reward DOUBLE,
    reused_call_ids BOOLEAN NOT NULL, trace VARCHAR, trace_number BIGINT, ordinal INTEGER NOT NULL, agent VARCHAR NOT NULL,
    parent_step INTEGER, continues INTEGER, forked_from VARCHAR, fork_step INTEGER, search VARCHAR, search_node INTEGER);
INSERT INTO trajectory BY NAME SELECT *, number IN (SELECT trajectory FROM (SELECT p.trajectory, unnest(n.tool_calls).id AS id
    FROM path p JOIN node n ON n.id = p.node WHERE n.tool_calls IS NOT NULL)
    WHERE id <> '' GROUP BY trajectory, id HAVING count(*) > 1) AS reused_call_ids FROM first_trajectory;
DROP TABLE first_trajectory;
CREATE TYPE place AS ENUM ('prompt', 'action', 'observation');
ALTER TABLE path RENAME TO first_path;
CREATE TABLE path (trajectory BIGINT NOT NULL, depth INTEGER NOT NULL, node BIGINT NOT NULL, step INTEGER, role_in_step place NOT NULL);
INSERT INTO path SELECT * FROM first_path;
DROP TABLE first_path;
ALTER TABLE node RENAME TO first_node;
CREATE TABLE node (id BIGINT NOT NULL, key UUID NOT NULL, parent BIGINT NOT NULL, role VARCHAR, bytes INTEGER NOT NULL,
    tools VARCHAR[], wire VARCHAR USING COMPRESSION zstd NOT NULL);
INSERT INTO node SELECT id, key, parent, role, bytes, list_transform(tool_calls, lambda call: call.name), wire FROM first_node;
DROP TABLE first_node;
ALTER TABLE call RENAME TO first_call;
CREATE TABLE call (trace_number BIGINT NOT NULL, ordinal INTEGER NOT NULL, trajectory INTEGER NOT NULL, step INTEGER NOT NULL,
    model VARCHAR, provider VARCHAR, params VARCHAR NOT NULL, attributes VARIANT, input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, cost_usd DOUBLE, latency_s DOUBLE,
    first_token_s DOUBLE, streamed BOOLEAN, started_at_us BIGINT, finish_reason VARCHAR, response_id VARCHAR, inputs VARCHAR NOT NULL,
    outputs VARCHAR NOT NULL DEFAULT 'full', tools_known BOOLEAN NOT NULL DEFAULT true, system_prompt BOOLEAN NOT NULL DEFAULT true,
    dropped_attributes BIGINT NOT NULL DEFAULT 0, truncated BOOLEAN NOT NULL DEFAULT false, redacted BOOLEAN NOT NULL DEFAULT false,
    open_spans BIGINT NOT NULL DEFAULT 0, notes VARCHAR[] NOT NULL DEFAULT []);
INSERT INTO call BY NAME SELECT * FROM first_call;
DROP TABLE first_call;
ALTER TABLE trace_score RENAME TO first_score;
CREATE TABLE trace_score (trace_number BIGINT NOT NULL, ordinal INTEGER NOT NULL, trajectory INTEGER NOT NULL, step INTEGER,
    name VARCHAR NOT NULL, value VARCHAR NOT NULL, scaled DOUBLE, source VARCHAR NOT NULL, comment VARCHAR NOT NULL);
INSERT INTO trace_score SELECT trace_number, row_number() OVER (PARTITION BY trace_number ORDER BY rowid) - 1, 0, NULL, name,
    value::VARCHAR, value, 'unknown', concat_ws(' ', nullif(reason, ''), nullif(concat_ws(' ', '(verifier',
    nullif(nullif(verifier, name), ''), nullif(version, '')) || ')', '(verifier)')) FROM first_score ORDER BY rowid;
DROP TABLE first_score;
CREATE TABLE meta (name VARCHAR NOT NULL, value VARCHAR NOT NULL);
CREATE TABLE watermark (source VARCHAR NOT NULL, value VARCHAR NOT NULL, at_us BIGINT NOT NULL);
CREATE TABLE redaction (kind VARCHAR NOT NULL, count BIGINT NOT NULL);
"""

THIRD = "ALTER TABLE call ADD COLUMN token_ids BIGINT[]"

# No index: numbers are handed out in order, so that the range of a row group says whether it is worth a look. `journal_range` says
# which numbers the entries of a scope are among.
FOURTH = """
CREATE TYPE unit_state AS ENUM ('pending', 'running', 'done', 'failed', 'skipped', 'parked');
CREATE TABLE job (number BIGINT NOT NULL, id VARCHAR NOT NULL, name VARCHAR NOT NULL, spec VARCHAR NOT NULL, state VARCHAR NOT NULL,
    created_us BIGINT NOT NULL, ended_us BIGINT);
CREATE TABLE unit (number BIGINT NOT NULL, job BIGINT NOT NULL, id VARCHAR NOT NULL, traces VARCHAR[] NOT NULL, share VARCHAR NOT NULL,
    state unit_state NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, owner VARCHAR, lease_until_us BIGINT, not_before_us BIGINT,
    error_class VARCHAR NOT NULL DEFAULT '', reason VARCHAR NOT NULL DEFAULT '', result VARCHAR NOT NULL DEFAULT '{}',
    at_us BIGINT NOT NULL);
CREATE TABLE journal_range (scope VARCHAR NOT NULL, low BIGINT NOT NULL, high BIGINT NOT NULL);
INSERT INTO journal_range SELECT scope, min(number), max(number) FROM journal GROUP BY scope;
"""


@dataclass(frozen=True)
class Migration:
    """Statements that bring a store from one version to the next, and a query for the numbers of traces whose digest they change."""

    statements: str
    redigest: str = ""


MIGRATIONS: tuple[Migration, ...] = (
    Migration(FIRST),
    Migration(SECOND, "SELECT DISTINCT trace_number FROM trace_score ORDER BY ALL"),
    Migration(THIRD),
    Migration(FOURTH),
)
"""Entry n brings a store from version n to n + 1. Entries are only ever added; those of a released version never change."""


def version_of(connection: DuckDBPyConnection) -> int:
    """The schema version of an open database; 0 where it holds nothing at all. Raises StoreError where it is someone else's."""
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()}
    if not tables:
        return 0
    if "migration" not in tables:
        got = f"got a DuckDB file with {len(tables)} tables that counterplay did not make"
        raise StoreError(got, "a counterplay store", "Give another --store file; nothing was changed.")
    return int(scalar(connection, "SELECT coalesce(max(version), 0) FROM migration"))


def migrate(connection: DuckDBPyConnection, path: str, *, read_only: bool) -> None:
    """Bring a store to the newest schema, all or nothing. Raises StoreError where it is newer, or older and may not be written."""
    version, newest = version_of(connection), len(MIGRATIONS)
    if version > newest:
        got = f"store {path} has schema version {version}"
        raise StoreError(got, f"at most {newest}", "It was written by a newer counterplay: upgrade this one.")
    if version == newest:
        return
    if read_only:
        got = f"store {path} has schema version {version}"
        raise StoreError(got, f"{newest} to read it", f"Bring it up to date once: counterplay compact --store {path}")
    try:
        bring_up(connection, version)
    except duckdb.Error as error:
        got = f"store {path} can't be brought to schema version {newest}: {str(error).splitlines()[0]}"
        raise StoreError(got, do="It is as it was, nothing was changed: keep it, and report this.") from error


def bring_up(connection: DuckDBPyConnection, version: int) -> None:
    """From `version` (0 is an empty database) to the newest schema, in one transaction."""
    with transaction(connection):
        connection.execute("CREATE TABLE IF NOT EXISTS migration (version INTEGER NOT NULL, at_us BIGINT NOT NULL)")
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            connection.execute(migration.statements)
            connection.execute("INSERT INTO migration VALUES (?, ?)", [number, time.time_ns() // 1000])
        changed = [found for m in MIGRATIONS[version:] if m.redigest for (found,) in connection.execute(m.redigest).fetchall()]
        _redigest(connection, sorted(set(changed)))
        make_salt(connection)
        make_views(connection)


def _redigest(connection: DuckDBPyConnection, numbers: Sequence[int]) -> None:
    """Give these traces the digest of what they now are, a few at a time."""
    for start in range(0, len(numbers), _BATCH):
        batch = numbers[start : start + _BATCH]
        drafts = read_digested(connection, batch)
        rows = [{"number": n, "digest": trace_digest(trace, parts)} for n, (trace, parts) in zip(batch, drafts, strict=True)]
        with Incoming(connection, rows) as incoming:
            query = f"UPDATE trace SET digest = i.digest::UUID FROM {incoming} i WHERE trace.number = i.number"  # noqa: S608
            connection.execute(query)
