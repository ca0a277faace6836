"""Reports as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.loop import Localised, Replayed

if TYPE_CHECKING:
    from counterplay.core.store import Problem, Stats
    from counterplay.core.store.rows import Held

_ROWS = 20


def replayed(report: Replayed) -> list[Any]:
    """Per tool and in all the share of observations reproduced, then the first divergence of each unfaithful trace."""
    rows = [
        (tool.tool or "(user)", tool.observations, tool.reproduced, _share(tool.reproduced, tool.observations)) for tool in report.tools
    ]
    rows.append(("all", report.observations, report.reproduced, _share(report.reproduced, report.observations)))
    rows.append(("outcomes", report.outcomes, report.outcomes_reproduced, _share(report.outcomes_reproduced, report.outcomes)))
    tables: list[Any] = [console.table(f"fidelity over {report.traces} traces", ["tool", "logged", "reproduced", "share"], rows)]
    if report.drift:
        drifts = [(words, len(traces), traces[0]) for words, traces in report.drift.items()]
        tables.append(console.table("the environment is not the one that was recorded", ["what changed", "traces", "for example"], drifts))
    if report.divergences:
        tables.append(console.table("first divergence of each trace", ["kind", "traces"], list(report.kinds.items())))
        names = ["trace", "step", "tool", "kind", "got", "wanted"]
        shown = [[_cut(divergence[name]) for name in names] for divergence in report.divergences[:20]]
        tables.append(console.table(f"first divergences ({len(report.divergences)} traces)", names, shown))
    return tables


def localised(report: Localised) -> Any:
    rows = [(p.task or p.trace, p.step, p.mass, _cut(p.action), p.reason) for p in report.pivots]
    return console.table(f"pivotal steps: {report.found} of {report.traces}", ["task", "step", "mass", "what the agent did", "why"], rows)


def held(stats: Stats, problems: Sequence[Problem] | None) -> list[Any]:
    """What a store holds: figures, then what each format could give, scores, what was replaced and what could not be read."""
    shown: list[Any] = [console.facts(_figures(stats, problems))]
    if stats.completeness:
        by_format = sorted(stats.completeness, key=lambda row: (row.format, row.dialect, row.of != "traces"))
        shown.append(console.table("what the sources gave", ["format", "of", "prompts", "answers", "lost"], [*map(_given, by_format)]))
    if stats.notes:
        shown.append(_top("what the sources could not give", ["traces", "note"], [(n, note) for note, n in stats.notes.items()]))
    if stats.logged_scores:
        columns = ["name", "source", "traces", "steps", "mean of those in [0, 1]"]
        scores = [(score.name, score.source, score.traces, score.steps, score.mean) for score in stats.logged_scores]
        shown.append(_top("logged scores", columns, scores))
    if stats.quarantined:
        groups = [(group.count, group.reason, group.where) for group in stats.quarantined]
        shown.append(_top("quarantine: what could not be read", ["inputs", "reason", "for example"], groups))
    if problems:
        named = [(problem.table, problem.where, problem.what) for problem in problems]
        shown.append(_top("not as it was written", ["table", "where", "what"], named))
    return shown


def _figures(stats: Stats, problems: Sequence[Problem] | None) -> dict[str, Any]:
    older = stats.revisions - stats.traces
    outcomes = {"success": "succeeded", "failed": "failed", "unknown": "not known"}
    figures: dict[str, Any] = {
        "traces": f"{stats.traces:,}" + (f", and {older:,} older revision{'s' * (older > 1)}" if older else ""),
        "tasks": stats.tasks,
        "outcomes": _counts({word: stats.outcomes.get(key, 0) for key, word in outcomes.items()}) or "-",
        "steps": stats.steps,
        "model calls": stats.calls,
        "tokens": f"{stats.input_tokens:,} in, {stats.output_tokens:,} out",
        "cost": "not known" if stats.cost_usd is None else f"{stats.cost_usd:,.2f} US dollars",
        "messages": f"{stats.messages:,}, {_kept(stats)}",
        "text": f"{_size(stats.content_bytes)} held once, {_size(stats.logged_bytes)} in logs with whole prompts",
        "file": _size(stats.file_bytes),
    }
    optional = {
        "searches": stats.searches and _searched(stats),
        "grades": _counts(stats.grades) if set(stats.grades) - {"exact"} else "",
        "verifier opinions": stats.scores,
        "journal": stats.journal and f"{stats.journal:,} answers",
        "reused call ids": stats.reused_call_ids and f"in {stats.reused_call_ids:,} traces",
        "secrets and personal data replaced": _counts(stats.redactions),
        "read up to": ", ".join(f"{source}: {value}" for source, value in stats.watermarks.items()),
    }
    figures |= {name: value for name, value in optional.items() if value}
    if problems is not None:
        figures["verified"] = "yes, all is as it was written" if not problems else f"no: {len(problems):,} problems"
    return figures


def _kept(stats: Stats) -> str:
    """How many messages are held once: beside those of the traces those of their older revisions and of searches."""
    others = ["older revisions"] * (stats.revisions > stats.traces) + ["searches"] * (stats.searches > 0)
    if not others:
        return f"of which {stats.nodes:,} differ"
    return f"and {stats.nodes:,} different ones held, those of {' and '.join(others)} among them"


def _searched(stats: Stats) -> str:
    """A search of logged runs alone (stitch) has finished branches too, but none that is not in a log."""
    return f"{stats.searches:,} with {stats.search_nodes:,} nodes; {stats.counterfactuals:,} finished branches that are in no log"


def _given(row: Held) -> tuple[str, ...]:
    """How whole the prompts and answers of one format are, and what else is lost; what is as it should be is not named."""
    lost = {
        "without tools": row.count - row.tools_known,
        "without system prompt": row.count - row.system_prompt_known,
        "truncated": row.truncated,
        "redacted": row.redacted,
        "attributes dropped": row.dropped_attributes,
        "spans left open": row.open_spans,
    }
    name = f"{row.format}/{row.dialect}" if row.dialect else row.format
    return name, f"{row.count:,} {row.of}", _counts(row.inputs), _counts(row.outputs), _counts(lost) or "-"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)


def _top(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    more = f" (the first {_ROWS} of {len(rows):,}; --json lists them)" if len(rows) > _ROWS else ""
    return console.table(title + more, columns, [[_cut(value, 160) for value in row] for row in rows[:_ROWS]])


def _size(number: float) -> str:
    """Bytes with a decimal unit, three figures."""
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} GB"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _cut(value: Any, length: int = 60) -> Any:
    return value if not isinstance(value, str) or len(value) <= length else value[: length - 1] + "…"
