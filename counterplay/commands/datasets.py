"""From logged and searched trajectories to datasets."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterplay import console
from counterplay.commands.options import (
    DEFAULT_STORE,
    Agent,
    AllowExternal,
    AsJson,
    EnvironmentSpec,
    Limit,
    MaxLength,
    Seed,
    StoreFile,
    TraceIds,
    VerifierSpecs,
    app,
    bounded,
    group,
    some,
)

if TYPE_CHECKING:
    from counterplay.finetune.card import DatasetReport

export_app = group("export", "Datasets for TRL and others from logged and searched trajectories.")

_MEMORY = "512MB"
"""What the store may take while its traces are read one task at a time; it would otherwise keep as much of the file as fits."""

Tau = Annotated[float, typer.Option("--tau", help="Least probability that what is called better is better, in (0.5, 1].")]
MinScore = Annotated[float, typer.Option("--min-score", help="The verified score or reward that a success has.")]
Source = Annotated[str, typer.Option("--source", help="logged: by their own outcome; searched: by the verifiers; or both.")]


def _shared(
    out: Annotated[str, typer.Option("--out", help="The dataset folder to write, or s3://BUCKET/PREFIX.")],
    store: StoreFile = DEFAULT_STORE,
    min_grade: Annotated[
        str, typer.Option("--min-grade", help="exact, reused, executed or simulated: the worst that may enter.")
    ] = "executed",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Model folder whose chat template audits the lengths.")] = None,
    max_length: MaxLength = None,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of tasks kept for the test split.")] = 0.0,
    split_by: Annotated[
        str, typer.Option("--split-by", help="What the splits never share, comma-separated: task, session, user.")
    ] = "task,session",
    near_duplicates: Annotated[
        float, typer.Option("--near-duplicates", help="Share of runs of five words from which two rows are one; 0 keeps all.")
    ] = 0.8,
    held_out_file: Annotated[
        Path | None, typer.Option("--held-out-file", help="Tasks or prompts of an evaluation; rows that repeat them are left out.")
    ] = None,
    look_for: Annotated[
        list[str] | None,
        typer.Option("--look-for", help="Beside secrets, rows with these are left out: pii, or email, card, iban, phone; repeatable."),
    ] = None,
    look_for_rules: Annotated[Path | None, typer.Option("--look-for-rules", help="TOML file of kinds and patterns to look for.")] = None,
    keep_secrets: Annotated[bool, typer.Option("--keep-secrets", help="Look for no secrets.")] = False,
    formats: Annotated[
        str, typer.Option("--format", help="Comma-separated: parquet, jsonl, openai (as Fireworks takes it), sharegpt.")
    ] = "parquet,jsonl",
    licence: Annotated[str, typer.Option("--licence", help="The licence field of the card, by the Hub's names.")] = "unknown",
    per_task: Annotated[int | None, typer.Option("--per-task", min=1, help="At most so many rows of a task, the surest.")] = None,
    per_tool: Annotated[int | None, typer.Option("--per-tool", min=1, help="At most so many rows that call a tool, the surest.")] = None,
    algorithm: Annotated[list[str] | None, typer.Option("--algorithm", help="Only trees of this search; repeatable.")] = None,
    agent: Agent = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The options of every export, once."""


def exporting_command(name: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """A command of `export`: the options of its function, then the shared ones, handed to `exporting.export_<name>`."""

    def added(function: Callable[..., Any]) -> Callable[..., None]:
        @wraps(function)
        def command(*, out: str, store: Path, algorithm: list[str] | None, as_json: bool, **chosen: Any) -> None:
            from counterplay import exporting, loop, sinks

            chosen |= {option: _names(chosen[option]) for option in ("split_by", "formats")}
            with loop.opened(store, read_only=True, memory=_MEMORY) as opened, sinks.landing(out, beside=store) as folder:
                report = getattr(exporting, f"export_{name}")(opened, folder, algorithms=algorithm, **chosen)
            place = str(report.folder) if str(folder) == out else sinks.sink_of(out).uri
            console.emit({**report.to_json(), "folder": place}, as_json=as_json, human=_shown(report, place))
            if report.replaced:
                console.err.print(f"the dataset that was in {report.folder} is replaced", markup=False, soft_wrap=True)
            for split in (name for name, count in report.rows.items() if not count):
                tasks = sum(report.tasks.values())
                console.err.print(f"the split {split} is empty: its share fell on none of {tasks} tasks; another --seed draws anew")

        own, shared = (inspect.signature(part, eval_str=True).parameters.values() for part in (function, _shared))
        keyword = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in (*shared, *own)]
        signed: Any = command
        signed.__signature__ = inspect.Signature(keyword)  # what typer reads
        command.__annotations__ = {option.name: option.annotation for option in keyword}
        export_app.command(name)(bounded(command))
        return command

    return added


@exporting_command("sft")
def export_sft(
    rows: Annotated[
        str,
        typer.Option(
            "--rows",
            help="whole, per-call, improved (steps surely better than the log's), recovery (wrong step and correction kept), "
            "shortest, distill (best of n).",
        ),
    ] = "whole",
    source: Source = "both",
    min_score: MinScore = 1.0,
    tau: Tau = 0.9,
    weights: Annotated[
        str, typer.Option("--weights", help="none, advantage (over the mean of a task) or oreal: the columns weight and step_weights.")
    ] = "none",
) -> None:
    """Trajectories that succeeded, logged or searched, as SFT rows."""


@exporting_command("dpo")
def export_dpo(
    rows: Annotated[
        str,
        typer.Option(
            "--rows",
            help="step (sibling actions), trajectory (branches to their ends, best against worst), nearest (that fork last), "
            "shorter (of two successes), ablation (tool calls left out).",
        ),
    ] = "step",
    source: Source = "both",
    tau: Tau = 0.9,
    min_score: MinScore = 1.0,
) -> None:
    """Preference pairs with one shared prompt."""


@exporting_command("reward")
def export_reward(
    rows: Annotated[str, typer.Option("--rows", help="step, trajectory or nearest, as in export dpo.")] = "step",
    source: Source = "both",
    tau: Tau = 0.9,
    min_score: MinScore = 1.0,
) -> None:
    """Preference pairs with margins for a reward model."""


@exporting_command("kto")
def export_kto(
    rows: Annotated[str, typer.Option("--rows", help="step (single actions) or trajectory (all from the fork to the end).")] = "step",
    source: Source = "both",
    tau: Tau = 0.9,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="The value an action is held against; without it, its siblings.")
    ] = None,
    min_score: MinScore = 1.0,
) -> None:
    """Answers that are desirable or not, both labels spread evenly."""


@exporting_command("grpo")
def export_grpo(
    source: Source = "both",
    low: Annotated[float, typer.Option("--low", help="Least share of lines that succeeded from a searched state.")] = 0.1,
    high: Annotated[float, typer.Option("--high", help="Greatest share of lines that succeeded from a searched state.")] = 0.9,
) -> None:
    """Prompts for reinforcement learning, with what a replay environment needs to stand there."""


@exporting_command("prm")
def export_prm(
    labels: Annotated[str, typer.Option("--labels", help="mc-soft, mc-hard, omega, sorm, advantage, rest, td or reflection.")] = "mc-soft",
    hard: Annotated[float | None, typer.Option("--hard", help="Labels of 1 from this value on, else 0.")] = None,
) -> None:
    """Labelled steps for a process reward model."""


@app.command()
@bounded
def ablate(
    store: StoreFile = DEFAULT_STORE,
    environment: EnvironmentSpec = "recorded",
    verifier: VerifierSpecs = None,
    reads_only: Annotated[bool, typer.Option("--reads-only", help="Leave out no call of a tool that may write or reach outside.")] = False,
    allow_external: AllowExternal = None,
    trace: TraceIds = None,
    agent: Agent = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Leave each call of logged successes out and play the rest again: which calls were not needed? For export dpo --rows ablation."""
    from counterplay import ablating, loop
    from counterplay.parts import Asked

    asked = Asked(environment=environment, verifiers=tuple(verifier or ()), allow_external=frozenset(allow_external or ()))
    with loop.opened(store, existing=True) as opened:
        chosen = loop.select(opened, trace_ids=trace, which="succeeded", agent=agent, limit=limit)
        some(chosen, store)
        with console.ticking("leaving calls out", len(chosen), quiet=as_json) as tick:
            report = asyncio.run(ablating.ablate(opened, chosen, asked, reads_only=reads_only, on_trace=tick.advance))
    console.emit(report, as_json=as_json)


@export_app.command("parquet")
@bounded
def export_parquet(
    out: Annotated[str, typer.Option("--out", help="A folder or s3://BUCKET/PREFIX; files of earlier exports in it are replaced.")],
    store: StoreFile = DEFAULT_STORE,
    by: Annotated[
        str | None, typer.Option("--by", help="date, month or bucket (of tasks): a folder a partition. Without it one file a view.")
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="With --by: leave partitions alone that have not changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """The views that counterplay sql asks, one Parquet file each, for pandas, polars, Spark and the like."""
    from counterplay import loop, sinks
    from counterplay.core.errors import UserError

    if only_new and by is None:
        raise UserError("got --only-new without --by", "both", "Give --by date.")
    with loop.opened(store, read_only=True) as opened:
        if by is not None:
            with console.ticking("partitions written", quiet=as_json) as tick:
                report = sinks.export_partitions(opened, out, by=by, only_new=only_new, on_part=tick.advance)
            console.emit(report, as_json=as_json)
            return
        with sinks.landing(out, beside=store) as folder:
            rows = opened.write_parquet(folder)
    console.emit({f"{view}.parquet": count for view, count in rows.items()}, as_json=as_json)


@export_app.command("check")
@bounded
def export_check(
    folder: Annotated[Path, typer.Argument(help="A dataset folder that export has written.")],
    split_by: Annotated[
        str, typer.Option("--split-by", help="What the splits may not share, comma-separated: task, session, user.")
    ] = "task,session",
    as_json: AsJson = False,
) -> None:
    """Whether the splits of a dataset share anything: a task, a trace, a session, or nearly the same words of a task. Exit code 1 if so."""
    from counterplay import gating

    found = gating.leaks_of(folder, split_by=_names(split_by))
    rows = [(leak.kind, leak.value, " and ".join(leak.splits), " and ".join(leak.rows)) for leak in found]
    human = console.table(f"{len(found)} leaks", ("kind", "what", "splits", "rows"), rows) if rows else "The splits share nothing."
    console.emit({"folder": folder, "leaks": found}, as_json=as_json, human=human)
    if found:
        raise typer.Exit(1)


def _shown(report: DatasetReport, place: str) -> list[Any]:
    """A report as a person reads it: what was written, what was left out and why, and how far to trust the labels."""
    from counterplay.finetune.card import DROPPED

    splits = [(name, count, report.tasks[name]) for name, count in report.rows.items()]
    parts: list[Any] = [console.table(f"{report.kind} rows in {place}", ["split", "rows", "tasks"], splits)]
    if report.dropped:
        parts.append(console.table("left out", ["reason", "how many"], list(report.dropped.items())))
    if not report.all_named:
        parts.append(f"All that was left out is named in {place}/{DROPPED}.")
    figures: dict[str, Any] = {"files": ", ".join(report.formats), "grades": dict(report.grades), "licence": report.licence}
    if report.label_noise is not None:
        figures["labels expected to be wrong"] = f"{report.label_noise:.2%}"
    if report.labels is not None:
        figures["labels"] = {str(label).lower(): count for label, count in report.labels.items()}
    if report.tokens is not None:
        figures["tokens a row"] = ", ".join(f"{name} {count}" for name, count in report.tokens.items())
    for name, lost in report.unsayable.items():
        if lost:
            figures[f"not in {name}"] = dict(lost)
    return [*parts, console.facts(figures)]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
