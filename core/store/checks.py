"""The part of `verify` that SQL says best: queries whose every row (id, what) is a problem. An intact store gives none."""

from __future__ import annotations

from counterplay.core.store.tables import hex_key

# Two tool sets may share a key and differ in effects, so parents are compared by key, not by id.
_PLACED = f"""
SELECT t.id, p.depth, t.prompt, p.step, p.role_in_step, {hex_key("n.key")} AS key,
  {hex_key("coalesce(up.key, root.key)")} AS above, {hex_key("ts.key")} AS root,
  lag(n.key) OVER ordered IS NOT NULL AS follows, {hex_key("lag(n.key) OVER ordered")} AS before,
  p.depth - coalesce(lag(p.depth) OVER ordered, -1) AS advance
FROM path p LEFT JOIN trajectory t ON t.number = p.trajectory LEFT JOIN node n ON n.id = p.node
  LEFT JOIN node up ON up.id = n.parent LEFT JOIN toolset root ON root.id = n.parent LEFT JOIN toolset ts ON ts.id = t.toolset
WINDOW ordered AS (PARTITION BY p.trajectory ORDER BY p.depth)"""  # noqa: S608  names of our own

_PATHS = f"""
SELECT coalesce(id, '?') || ' depth ' || depth AS id, what FROM (
  SELECT id, depth, CASE
    WHEN id IS NULL THEN 'belongs to no trajectory'
    WHEN key IS NULL THEN 'its node is missing'
    WHEN advance <> 1 THEN 'the depth before it is missing or doubled'
    WHEN above IS DISTINCT FROM (CASE WHEN follows THEN before ELSE root END) THEN 'its node does not follow the one before'
    WHEN (step IS NULL) <> (depth < prompt) OR (step IS NULL) <> (role_in_step = 'prompt') THEN 'step and role do not fit its depth'
    END AS what
  FROM ({_PLACED}))
WHERE what IS NOT NULL ORDER BY ALL"""  # noqa: S608

_LEAVES = "(SELECT count(*) FROM trajectory t WHERE t.search = s.id AND t.kind = 'counterfactual')"

CHECKS: tuple[tuple[str, str], ...] = (
    ("path", _PATHS),
    ("node", "SELECT key::VARCHAR AS id, 'is held ' || count(*) || ' times' AS what FROM node GROUP BY key HAVING count(*) > 1"),
    (
        "node",
        """SELECT id::VARCHAR AS id, 'its id is used twice' AS what FROM (SELECT id FROM node UNION ALL SELECT id FROM toolset)
        GROUP BY id HAVING count(*) > 1""",
    ),
    (
        "trace",
        """SELECT id, 'has ' || count(*) FILTER (current) || ' current revisions' AS what FROM trace
        GROUP BY id HAVING count(*) FILTER (current) <> 1""",
    ),
    (
        "trajectory",
        """SELECT t.id, 'belongs to no trace' AS what FROM trajectory t ANTI JOIN trace c ON c.number = t.trace_number
        WHERE t.kind = 'logged'""",
    ),
    (
        "trajectory",
        """SELECT t.id, 'belongs to no search' AS what FROM trajectory t ANTI JOIN search s ON s.id = t.search
        WHERE t.kind <> 'logged'""",
    ),
    (
        "step",
        """SELECT s.trajectory || '/' || s.step AS id, 'belongs to no trajectory' AS what FROM step s
        ANTI JOIN trajectory t ON t.number = s.trajectory""",
    ),
    (
        "call",
        """SELECT coalesce(c.id, '?') || '/' || k.ordinal AS id,
          'names step ' || k.step || ' of trajectory ' || k.trajectory || ', which is not there' AS what
        FROM call k LEFT JOIN trace c ON c.number = k.trace_number
          LEFT JOIN trajectory t ON t.trace_number = k.trace_number AND t.ordinal = k.trajectory
        WHERE t.number IS NULL OR k.step < 0 OR k.step >= t.steps""",
    ),
    (
        "trace_score",
        """SELECT s.trace_number || '/' || s.name AS id, 'belongs to no trace' AS what FROM trace_score s
        ANTI JOIN trace t ON t.number = s.trace_number""",
    ),
    (
        "search",
        f"""SELECT s.id, 'has ' || {_LEAVES} || ' counterfactual trajectories in place of ' || s.finished AS what
        FROM search s WHERE s.finished <> {_LEAVES}""",  # noqa: S608
    ),
    (
        "search_node",
        """SELECT n.search || '/' || n.index AS id, 'belongs to no search' AS what FROM search_node n
        ANTI JOIN search s ON s.number = n.search""",
    ),
)
