"""The dataset card: what is in the folder, where it comes from and what was left out, for people and for the Hub's reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from counterplay.finetune.kinds import LAYOUTS
from counterplay.finetune.rows import Drop, Kind

MANIFEST = "counterplay.json"


@dataclass(frozen=True)
class DatasetReport:
    """What was written. `dropped` counts by reason; `drops` names each row. Token figures are None where no tokenizer was given.

    `label_noise` is the expected share of pairs that are the wrong way round, None for SFT. `neutralised`, `reissued` and `fractions`
    count rows: with control tokens broken, with call ids re-issued, with fractions in arguments or tool schemas; `undefined` those
    whose messages call tools that the source gave no definitions of.
    """

    folder: Path
    kind: Kind
    rows: Mapping[str, int]
    tasks: Mapping[str, int]
    dropped: Mapping[str, int]
    drops: tuple[Drop, ...]
    grades: Mapping[str, int]
    algorithms: Mapping[str, int]
    verifiers: tuple[str, ...]
    tokens: Mapping[str, int] | None = None
    max_length: int | None = None
    label_noise: float | None = None
    neutralised: int = 0
    reissued: int = 0
    fractions: int = 0
    undefined: int = 0
    logged: int = 0
    split: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    licence: str = "unknown"

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, **asdict(self), "folder": self.folder.name}


def card(report: DatasetReport, formats: Sequence[str]) -> str:
    """Markdown with the Hub's YAML header."""
    parts = [
        _header(report, formats),
        f"# {LAYOUTS[report.kind].title}\n\nMade by counterplay from logged agent traces.",
        LAYOUTS[report.kind].reads,
    ]
    counts = {name: f"{count} rows of {report.tasks[name]} tasks" for name, count in report.rows.items()}
    parts.append(_section("Splits", counts) + f"\n\nDrawn by hash with seed {report.seed}; no task, session or trace is in two splits.")
    parts.append(
        _section("Left out", report.dropped, "Nothing was left out.") + "\n\nEvery one is named in `counterplay.json` under `drops`."
    )
    parts.append(_section("Sources", {**report.algorithms, "recorded as they are": report.logged}))
    parts.append(_section("Grades", report.grades))
    verifiers = ", ".join(f"`{name}`" for name in report.verifiers) or "none named"
    parts.append(f"Verifiers (`name@version`): {verifiers}. Every row names its task, traces, sessions, search, fork step and state keys.")
    if report.label_noise is not None:
        parts.append(
            f"## Label noise\n\nExpected share of pairs the wrong way round: {report.label_noise:.4f} (mean of 1 - `probability`)."
        )
    parts.append(_lengths(report))
    parts.append(_notes(report))
    if report.undefined:
        parts.append(
            f"## Tools without definitions\n\n{report.undefined} rows call tools that their logs do not define, so that `tools` is "
            "empty there: the model is trained on calls of tools that it is not shown. Give the definitions, or leave these rows out."
        )
    return "\n\n".join(parts) + "\n"


def _header(report: DatasetReport, formats: Sequence[str]) -> str:
    folder, ending = ("data", "parquet") if "parquet" in formats else ("jsonl", "jsonl")
    files = "".join(f"\n  - split: {name}\n    path: {folder}/{name}.{ending}" for name, count in report.rows.items() if count)
    tags = f"tags:\n- counterplay\n- trl\n- {report.kind}"
    return f"---\nlicense: {report.licence}\n{tags}\nconfigs:\n- config_name: default\n  data_files:{files}\n---"


def _section(title: str, counts: Mapping[str, object], nothing: str = "Nothing.") -> str:
    return f"## {title}\n\n" + ("\n".join(f"- {name}: {count}" for name, count in counts.items()) or nothing)


def _lengths(report: DatasetReport) -> str:
    if report.tokens is None:
        return "## Length\n\nNot measured: no tokenizer was given."
    figures = ", ".join(f"{name} {count}" for name, count in report.tokens.items())
    limit = "none" if report.max_length is None else f"{report.max_length}; longer rows were left out, none was cut"
    return f"## Length\n\nTokens a row, rendered with the chat template: {figures}. Limit: {limit}."


def _notes(report: DatasetReport) -> str:
    return _section(
        "Changes to the logged text",
        {
            "rows in which control tokens of a chat template were broken by a space": report.neutralised,
            "rows in which a tool-call id named two calls and was issued anew": report.reissued,
        },
    ) + (
        f"\n\n{report.fractions} rows hold numbers with fractions in arguments or tool schemas. `datasets` 5.2 reads these from JSON "
        "columns with errors in the last digit (0.0048 becomes 0.0048000000000000004); `counterplay.finetune.write.read_dataset` and "
        "any reader of the stored text are exact. The JSONL files hold the same rows; read through Arrow without a schema, their "
        "missing fields become nulls."
    )
