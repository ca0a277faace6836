"""What models cost: what searches paid, what the journal saved, and what the agent's own calls had cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from counterplay import console
from counterplay.commands.options import DEFAULT_STORE, AsJson, StoreFile, app, bounded
from counterplay.core.errors import UserError

if TYPE_CHECKING:
    from counterplay.core.store import Costs, Spent

_PAID = ("paid calls", "tokens in", "cached", "out", "usd")
_BESIDE = ("not paid again", "usd saved", "logged calls", "logged usd", "paid / logged")
_OF_JOBS = "Logged are a job's own traces; in the whole store, all traces. What several jobs share is paid by one of them."


@app.command("costs")
@bounded
def show_costs(
    by: Annotated[str, typer.Option("--by", help="model, trace, job, agent or day.")] = "model",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many lines, what cost most first.")] = 50,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """What searches cost by model, trace, job, agent or day, beside what the agent's own calls had cost."""
    from counterplay import loop
    from counterplay.core.store import By
    from counterplay.search.registry import meant

    if by not in get_args(By):
        raise UserError(f"got --by {by}", f"one of {', '.join(get_args(By))}", meant(by, get_args(By)))
    with loop.opened(store, read_only=True) as opened:
        lines, whole = opened.costs(cast("By", by), limit=limit), opened.costs("")
    result: dict[str, Any] = {"by": by, "lines": [_plain(line) for line in lines], "all": _plain(whole[0]) if whole else None}
    if by == "job":
        result["note"] = _OF_JOBS
    console.emit(result, as_json=as_json, human=_shown(by, lines, whole) if lines else f"no model call in {store}")


def _plain(line: Costs) -> dict[str, Any]:
    told = {name: getattr(line, name) for name in ("reused_calls", "reused_usd", "relative")}
    return {**asdict(line), **told}


def _shown(by: str, lines: list[Costs], whole: list[Costs]) -> list[Any]:
    all_ = "whole store" if by == "job" else "all"
    named = [(line.key or "(not said)", line) for line in lines] + [(all_, line) for line in whole]
    shown: list[Any] = [
        console.table(f"paid, by {by}", [by, *_PAID], [(key, *_paid(line)) for key, line in named]),
        console.table("saved, and what the agent itself had cost", [by, *_BESIDE], [(key, *_beside(line)) for key, line in named]),
    ]
    if by == "job":
        shown.append(_OF_JOBS)
        of = [(line.key, line.budget or "none", _used(line.charged), _wasted(line)) for line in lines]
        shown.append(console.table("against budgets", ["job", "budget", "charged", "paid for nothing"], of))
    return shown


def _paid(line: Costs) -> tuple[Any, ...]:
    paid = line.paid
    return _whole(paid.calls), paid.input_tokens, paid.cached_tokens, paid.output_tokens, paid.usd


def _beside(line: Costs) -> tuple[Any, ...]:
    logged = line.logged
    return _whole(line.reused_calls), line.reused_usd, _whole(logged.calls), logged.usd, line.relative


def _whole(amount: float | None) -> int | None:
    return None if amount is None else round(amount)


def _used(spent: Spent | None) -> str:
    if spent is None:
        return ""
    return f"model_calls={spent.calls:,.0f}" + (f", usd={spent.usd:.6g}" if spent.usd is not None else "")


def _wasted(line: Costs) -> str:
    return ", ".join(f"{amount:,.0f} {name.replace('_', ' ')}" for name, amount in line.wasted.items()) or "nothing"
