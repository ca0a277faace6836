"""What was paid for models: by what the logs say, by what is journalled, and by what search trees were charged.

Paid is what a policy was really asked and answered: every such answer is in the journal, once, with its usage. Charged is what the trees
in the store cost by their own account, answers from the journal included. What a tree was charged beyond what was paid came from the
journal. Judges and simulators are not in it: the journal keeps their answers, not their usage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from counterplay.core.canonical import loads
from counterplay.core.store.base import StoreFile
from counterplay.core.store.journal_table import within_scopes
from counterplay.core.store.tables import Incoming, records, shelved

By: TypeAlias = Literal["model", "trace", "job", "agent", "day"]

_SCOPE = "search/"
_COUNTED = ("calls", "input_tokens", "output_tokens", "cached_tokens", "usd")
_TALLIED = ("retries", "unusable", "wasted_tokens", "lost", "failures")
_DRAWN = '[{{"model":"VARCHAR","usage":{{"input_tokens":"BIGINT","output_tokens":"BIGINT","cached_tokens":"BIGINT","cost_usd":"DOUBLE"}}}}]'
_KINDS = ("propose", "request")

# Of a proposal of several draws, single requests may be journalled too, and then those are what was paid: another proposal may have been
# made of the same ones. A request has the price of a draw with its usage, else its model's mean by token.
_ENTRIES = f"""WITH entry AS ({{entries}}),
    drawn AS (SELECT scope, at_us, draws, 1 / draws AS requests, p.model AS model, p.usage.input_tokens AS input_tokens,
        p.usage.output_tokens AS output_tokens, p.usage.cached_tokens AS cached_tokens, p.usage.cost_usd AS usd
        FROM (SELECT scope, at_us, len(found) AS draws, unnest(found) AS p
        FROM (SELECT scope, at_us, from_json(sound_json(answer), '{_DRAWN}') AS found FROM entry WHERE kind = 'propose'))),
    named AS (SELECT scope, min(model) AS model FROM drawn GROUP BY scope),
    asked AS (SELECT e.scope, at_us, coalesce(body->>'$.model', n.model) AS model,
        greatest(1, json_array_length(body, '$.choices')) AS draws, coalesce((body->>'$.usage.prompt_tokens')::BIGINT, 0) AS input_tokens,
        coalesce((body->>'$.usage.completion_tokens')::BIGINT, 0) AS output_tokens,
        coalesce((body->>'$.usage.prompt_tokens_details.cached_tokens')::BIGINT, 0) AS cached_tokens
        FROM (SELECT scope, at_us, sound_json(answer)::JSON AS body FROM entry WHERE kind = 'request') e LEFT JOIN named n USING (scope)),
    kept AS (SELECT DISTINCT scope, model FROM asked),
    price AS (SELECT model, input_tokens, output_tokens, cached_tokens, min(usd) AS usd FROM drawn GROUP BY ALL),
    rate AS (SELECT model, sum(usd) / nullif(sum(input_tokens + output_tokens), 0) AS usd FROM drawn GROUP BY model),
    paid AS (SELECT d.scope, d.at_us, d.model, d.requests, 1 AS calls, d.input_tokens, d.output_tokens, d.cached_tokens, d.usd
        FROM drawn d LEFT JOIN kept k ON k.scope = d.scope AND k.model = d.model WHERE d.draws = 1 OR k.scope IS NULL
        UNION ALL
        SELECT a.scope, a.at_us, a.model, 1, a.draws, a.input_tokens, a.output_tokens, a.cached_tokens,
        coalesce(p.usd, r.usd * (a.input_tokens + a.output_tokens)) FROM asked a LEFT JOIN rate r USING (model)
        LEFT JOIN price p USING (model, input_tokens, output_tokens, cached_tokens))
    """  # noqa: S608  names of our own

_PAID = f"""SELECT 'paid' AS kind, {{key}} AS key, d.calls::DOUBLE AS calls, d.input_tokens, d.output_tokens, d.cached_tokens, d.usd
    FROM paid d LEFT JOIN trace c ON c.current AND c.id = substr(d.scope, {len(_SCOPE) + 1}) AND starts_with(d.scope, '{_SCOPE}')"""  # noqa: S608

_LOGGED = """SELECT 'logged' AS kind, {key} AS key, 1::DOUBLE AS calls, k.input_tokens, k.output_tokens, k.cached_tokens, k.cost_usd AS usd
    FROM call k JOIN trace c ON c.number = k.trace_number WHERE c.current"""

# A tree says by model how many calls and tokens it took; its dollars are split by tokens.
_CHARGED = """SELECT 'charged' AS kind, {key} AS key, m.calls, m.input_tokens, m.output_tokens, m.cached_tokens,
    nullif(s.usd, 0) * coalesce((m.input_tokens + m.output_tokens)
        / nullif(sum(m.input_tokens + m.output_tokens) OVER (PARTITION BY s.number), 0), 1) AS usd
    FROM (SELECT number, trace, usd, model_calls, sound_json(config)::JSON AS config FROM search WHERE coalesce(model_calls, 0) > 0) s,
    LATERAL (SELECT coalesce(o.model, '') AS model, coalesce(o.amounts[1], s.model_calls) AS calls,
        coalesce(o.amounts[2], (s.config->>'$.usage.input_tokens')::BIGINT) AS input_tokens,
        coalesce(o.amounts[3], (s.config->>'$.usage.output_tokens')::BIGINT) AS output_tokens,
        coalesce(o.amounts[4], (s.config->>'$.usage.cached_tokens')::BIGINT) AS cached_tokens
        FROM (SELECT unnest(coalesce(nullif(map_entries(CAST(s.config->'$.usage.models' AS MAP(VARCHAR, BIGINT[]))), []),
            [{{'key': NULL, 'value': NULL}}])) AS e) u, LATERAL (SELECT u.e.key AS model, u.e.value AS amounts) o) m
    LEFT JOIN trace c ON c.current AND c.id = s.trace"""

_DAY = "strftime(make_timestamp({}), '%Y-%m-%d')"
_KEYS: Mapping[str, tuple[str, str, str]] = {
    "model": ("d.model", "k.model", "m.model"),
    "trace": (f"CASE WHEN starts_with(d.scope, '{_SCOPE}') THEN substr(d.scope, {len(_SCOPE) + 1}) END", "c.id", "s.trace"),
    "agent": ("c.agent", "c.agent", "c.agent"),
    "day": (_DAY.format("d.at_us"), _DAY.format("coalesce(k.started_at_us, c.started_at_us, c.ended_at_us)"), ""),
    "": ("'all'", "'all'", "'all'"),
}

_OF_JOBS = """SELECT j.id AS key, j.spec, kind, sum(calls) AS calls, sum(input_tokens)::BIGINT AS input_tokens,
    sum(output_tokens)::BIGINT AS output_tokens, sum(cached_tokens)::BIGINT AS cached_tokens, sum(usd) AS usd, {tallied}
    FROM job j JOIN ({kinds}) r ON r.job = j.number GROUP BY ALL ORDER BY j.id, kind"""
_UNITS = "(SELECT job, sound_json(result)::JSON AS result FROM unit)"


def _number(path: str) -> str:
    return f"coalesce((result->>'$.{path}')::DOUBLE, 0)"


_OF_TALLY = ", ".join(f"{_number(f'tally.{name}')} AS {name}" for name in _TALLIED)
_JOB_KINDS = (
    f"""SELECT job, 'paid' AS kind, {_number("live_calls")} AS calls, {_number("tally.input_tokens")} AS input_tokens,
    {_number("tally.output_tokens")} AS output_tokens, {_number("tally.cached_tokens")} AS cached_tokens,
    nullif((result->>'$.tally.cost_usd')::DOUBLE, 0) AS usd, {_OF_TALLY} FROM {_UNITS}""",  # noqa: S608
    f"""SELECT u.job, 'charged', {_number("used.model_calls")}, NULL, NULL, NULL, nullif((result->>'$.used.usd')::DOUBLE, 0),
    {", ".join("0" for _ in _TALLIED)} FROM {_UNITS} u""",  # noqa: S608
    f"""SELECT job, 'charged', 0, {", ".join(f"sum((config->>'$.usage.{name}')::BIGINT)" for name in _COUNTED[1:4])}, NULL,
    {", ".join("0" for _ in _TALLIED)} FROM (SELECT job, unnest(from_json(result->'$.searches', '["VARCHAR"]')) AS search FROM {_UNITS}) u
    JOIN (SELECT id, sound_json(config)::JSON AS config FROM search) s ON s.id = u.search GROUP BY job""",  # noqa: S608
    f"""SELECT u.job, 'logged', count(*), sum(k.input_tokens), sum(k.output_tokens), sum(k.cached_tokens), sum(k.cost_usd),
    {", ".join("0" for _ in _TALLIED)} FROM (SELECT DISTINCT job, unnest(traces) AS trace FROM unit) u
    JOIN trace c ON c.current AND c.id = u.trace JOIN call k ON k.trace_number = c.number GROUP BY u.job""",  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class Spent:
    """Model calls (draws, where several came of one request) and what they used. `usd` is None where no price is known."""

    calls: float = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """One line of the ledger: what `key` (a model, trace, job, agent or day; None where that is not known) cost.

    `logged` are the agent's own calls, `paid` calls that policies answered, `charged` what search trees took by their own account; None
    for days, which trees don't tell. For a job, `paid` is by the tally of its units' policy, which `wasted` is of too: requests that were
    repeated, answers that could not be read and their tokens, requests that were lost; `budget` is its total, as its file has it. The
    tokens that a job was charged are those of the trees that its units came to, and `logged` are the calls of its units' traces alone.
    """

    key: str | None
    logged: Spent = Spent()
    paid: Spent = Spent()
    charged: Spent | None = Spent()
    wasted: Mapping[str, float] = field(default_factory=dict)
    budget: str = ""

    @property
    def reused_calls(self) -> float | None:
        """Calls that were charged and not paid again, for the journal had them; None where that can't be told."""
        return None if self.charged is None else max(0.0, self.charged.calls - self.paid.calls)

    @property
    def reused_usd(self) -> float | None:
        """Dollars that the journal saved."""
        if self.charged is None or self.charged.usd is None:
            return None
        return max(0.0, self.charged.usd - (self.paid.usd or 0.0))

    @property
    def relative(self) -> float | None:
        """What was paid for each dollar, else for each token, of the agent's own calls; None where there are none."""
        if self.logged.usd and self.paid.usd is not None:
            return self.paid.usd / self.logged.usd
        tokens = self.logged.input_tokens + self.logged.output_tokens
        return (self.paid.input_tokens + self.paid.output_tokens) / tokens if tokens else None


class StoreLedger(StoreFile):
    """The part of `Store` that knows what models cost."""

    def costs(self, by: By | Literal[""] = "model", *, limit: int | None = None) -> list[Costs]:
        """Lines of the ledger, what cost most first, at most `limit` (None: all). By "" is one line for all."""
        if by == "job":
            return self._job_costs()[:limit]
        waiting = [entry for entry in self._journal.waiting() if entry[2] in _KINDS]
        names = ("scope", "key", "kind", "answer", "at_us")
        cursor = self._connection.cursor()
        columns = {name: [entry[place] for entry in waiting] for place, name in enumerate(names)}
        with Incoming(cursor, columns) if waiting else nullcontext("") as incoming:
            found = cursor.execute(_query(by, incoming, limit))
            titles = [column[0] for column in found.description or ()]
            rows = [dict(zip(titles, row, strict=True)) for row in found.fetchall()]
        return [_line(row, by) for row in rows]

    def paid_since(self, since_us: Mapping[str, int]) -> dict[str, dict[str, float]]:
        """What policies were really asked and answered about each trace from a moment on, in microseconds since 1970.

        By trace the `draws`, the requests (`calls`) that they came of, `input_tokens`, `output_tokens`, `cached_tokens` and `cost_usd`;
        traces about which nothing was asked are left out.
        """
        if not since_us:
            return {}
        of = {f"{_SCOPE}{trace}": trace for trace in since_us}
        names = ("scope", "key", "kind", "answer", "at_us")
        cursor = self._connection.cursor()
        waiting = [entry for entry in self._journal.waiting() if entry[0] in of and entry[2] in _KINDS]
        columns: dict[str, Sequence[Any]] = {name: [entry[place] for entry in waiting] for place, name in enumerate(names)}
        scopes = list(map(shelved, of))
        with Incoming(cursor, columns) if waiting else nullcontext("") as incoming:
            where = f"{within_scopes(cursor, of)} AND j.scope IN (SELECT unnest(?))"
            query = f"""{_ENTRIES.format(entries=_entries(incoming, where))}
                SELECT scope, sum(calls) AS draws, sum(requests) AS calls, sum(input_tokens) AS input_tokens,
                sum(output_tokens) AS output_tokens, sum(cached_tokens) AS cached_tokens, sum(usd) AS cost_usd
                FROM paid JOIN (SELECT unnest(?) AS scope, unnest(?) AS since_us) USING (scope) WHERE at_us >= since_us GROUP BY scope"""  # noqa: S608
            found = records(cursor, query, [scopes, scopes, list(since_us.values())])
        return {of[row.pop("scope")]: {name: float(amount or 0) for name, amount in row.items()} for row in found}

    def _job_costs(self) -> list[Costs]:
        tallied = ", ".join(f"sum({name}) AS {name}" for name in _TALLIED)
        lines: dict[str, dict[str, Any]] = {}
        for row in self._records(_OF_JOBS.format(tallied=tallied, kinds=" UNION ALL ".join(_JOB_KINDS))):
            line = lines.setdefault(row["key"], {"budget": str(loads(row["spec"]).get("budget", {}).get("total", ""))})
            line[row["kind"]] = _spent(row, "")
            if row["kind"] == "paid":
                line["wasted"] = {name: row[name] for name in _TALLIED if row[name]}
        made = [Costs(key, **line) for key, line in lines.items()]
        return sorted(made, key=lambda line: (-(line.paid.usd or 0.0), -line.paid.calls, line.key or ""))


def _query(by: str, incoming: str, limit: int | None) -> str:
    of_paid, of_logged, of_charged = _KEYS[by]
    parts = [_PAID.format(key=of_paid), _LOGGED.format(key=of_logged)]
    if of_charged:
        parts.append(_CHARGED.format(key=of_charged))
    sides = ("paid", "logged", "charged")
    sums = ", ".join(f"sum({name}) FILTER (kind = '{side}') AS {side}_{name}" for side in sides for name in _COUNTED)
    most = "" if limit is None else f" LIMIT {int(limit)}"
    order = "coalesce(paid_usd, charged_usd, 0) DESC, coalesce(paid_calls, 0) DESC, coalesce(charged_calls, 0) DESC, named"
    rows = f"SELECT *, nullif(key, '') AS named FROM ({' UNION ALL '.join(parts)})"  # noqa: S608
    entries = _ENTRIES.format(entries=_entries(incoming))
    return f"{entries} SELECT readable(named) AS key, {sums} FROM ({rows}) GROUP BY named ORDER BY {order}{most}"  # noqa: S608


def _entries(incoming: str, where: str = "true") -> str:
    """SQL for what policies answered: rows of the journal j, and those that wait to be rows."""
    kinds = ", ".join(f"'{kind}'" for kind in _KINDS)
    entries = f"SELECT scope, kind, answer, at_us FROM journal j WHERE kind IN ({kinds}) AND {where}"  # noqa: S608  names of our own
    if incoming:
        later = f"SELECT 1 FROM {incoming} i WHERE i.scope = j.scope AND i.key = j.key"  # noqa: S608
        entries += f" AND NOT EXISTS ({later}) UNION ALL SELECT scope, kind, answer, at_us FROM {incoming}"  # noqa: S608
    return entries


def _line(row: Mapping[str, Any], by: str) -> Costs:
    charged = None if by == "day" else _spent(row, "charged_")
    return Costs(row["key"], _spent(row, "logged_"), _spent(row, "paid_"), charged)


def _spent(row: Mapping[str, Any], prefix: str) -> Spent:
    read, written, cached = (int(row[f"{prefix}{name}_tokens"] or 0) for name in ("input", "output", "cached"))
    return Spent(row[f"{prefix}calls"] or 0, read, written, cached, row[f"{prefix}usd"])
