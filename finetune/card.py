"""The dataset card: what is in the folder, where it comes from and what was left out, for people and for the Hub's reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from counterplay.core.nouns import Trace
from counterplay.finetune.balance import Balance
from counterplay.finetune.gates.account import GateCount
from counterplay.finetune.kinds import LAYOUTS
from counterplay.finetune.kto import weights
from counterplay.finetune.noise import Noise
from counterplay.finetune.rows import Drop, Kind

MANIFEST = "counterplay.json"
DROPPED = "dropped.jsonl"


@dataclass(frozen=True)
class DatasetReport:
    """What was written. `dropped` counts by reason; `drops` names what was left out, the first 1,000 (`spool.NAMED`): where there are more,
    all are in `dropped.jsonl`. `replaced` says that a dataset was in the folder before. Token figures are None without a tokenizer.

    `label_noise` is the expected share of labels that are wrong, `labels` counts them by value, and both are None where a kind has none;
    `noise` is what the labels of pairs themselves say (`noise.noise_of`).
    `sources` counts the traces behind the rows by connector, agent and model; `settings` are what chose the rows; `unsayable` counts by
    format and reason the rows that are not in its files. `neutralised`, `reissued` and `fractions`
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
    labels: Mapping[bool, int] | None = None
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    unsayable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    formats: tuple[str, ...] = ("parquet", "jsonl")
    by: tuple[str, ...] = ("task", "session")
    gates: tuple[GateCount, ...] = ()
    balance: Balance | None = None
    noise: Noise | None = None
    replaced: bool = False

    def to_json(self) -> dict[str, Any]:
        labels = None if self.labels is None else {str(label).lower(): count for label, count in self.labels.items()}
        gates = {gate.gate: gate.dropped for gate in self.gates if gate.on}
        spread = None if self.balance is None else self.balance.to_json()
        told = {"folder": self.folder.name, "labels": labels, "gates": gates, "balance": spread}
        fields = asdict(replace(self, balance=None))
        del fields["replaced"]
        return {"format": 1, **fields, **told}

    @property
    def all_named(self) -> bool:
        """Whether `drops` names everything that was left out."""
        return len(self.drops) == sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class Origin:
    """The little of a trace that a card tells: by which connector it came, whose it is, and which models were called."""

    id: str
    connector: str
    agent: str
    models: tuple[str, ...]

    @classmethod
    def of(cls, trace: Trace) -> Origin:
        models = dict.fromkeys(call.model or "not named" for call in trace.calls)
        return cls(trace.id, trace.source.format, trace.agent or "not named", tuple(models))


def sources(names: Collection[str], traces: Iterable[Trace | Origin]) -> dict[str, dict[str, int]]:
    """How many of the traces with these `names` came by each connector, from each agent and from each model."""
    counted: dict[str, Counter[str]] = {"connectors": Counter(), "agents": Counter(), "models": Counter()}
    for trace in traces:
        if trace.id in names:
            origin = trace if isinstance(trace, Origin) else Origin.of(trace)
            counted["connectors"][origin.connector] += 1
            counted["agents"][origin.agent] += 1
            counted["models"].update(origin.models)
    return {name: dict(counts.most_common()) for name, counts in counted.items() if counts}


def card(report: DatasetReport) -> str:
    """Markdown with the Hub's YAML header."""
    parts = [
        _header(report),
        f"# {LAYOUTS[report.kind].title}\n\nMade by counterplay from logged agent traces.",
        LAYOUTS[report.kind].reads,
    ]
    counts = {name: f"{count} rows of {report.tasks[name]} tasks" for name, count in report.rows.items()}
    shared = ", ".join(dict.fromkeys(("task", *report.by)))
    parts.append(_section("Splits", counts) + f"\n\nDrawn by hash with seed {report.seed}; no {shared} or trace is in two splits.")
    where = "Every one is" if report.all_named else f"All are in `{DROPPED}`, one a line; the first {len(report.drops)} are"
    parts.append(_section("Left out", report.dropped, "Nothing was left out.") + f"\n\n{where} named in `counterplay.json` under `drops`.")
    if report.gates:
        passed = {f"{gate.gate} ({gate.asks})": f"{gate.dropped} left out" if gate.on else "not asked for" for gate in report.gates}
        parts.append(_section("Gates", passed))
    parts.append(_section("Sources", {**report.algorithms, "recorded as they are": report.logged, **_named(report.sources)}))
    if report.settings:
        parts.append(_section("Filters", {f"`{name}`": _words(value) for name, value in report.settings.items()}))
    parts.append(_section("Grades", report.grades))
    verifiers = ", ".join(f"`{name}`" for name in report.verifiers) or "none named"
    parts.append(f"Verifiers (`name@version`): {verifiers}. Every row names its task, traces, sessions, search, fork step and state keys.")
    if report.label_noise is not None:
        parts.append(_noise(report.label_noise, report.noise))
    if report.labels is not None:
        parts.append(_labels(report.labels))
    if report.balance is not None:
        parts.append("## Balance\n\n" + report.balance.markdown())
    parts.append(_lengths(report))
    parts.append(_notes(report))
    if report.undefined:
        parts.append(
            f"## Tools without definitions\n\n{report.undefined} rows call tools that their logs do not define, so that `tools` is "
            "empty there: the model is trained on calls of tools that it is not shown. Give the definitions, or leave these rows out."
        )
    if report.unsayable:
        parts.append(_section("Other formats", {name: _said(lost) for name, lost in report.unsayable.items()}))
    return "\n\n".join(parts) + "\n"


def _labels(labels: Mapping[bool, int]) -> str:
    good, bad = labels.get(True, 0), labels.get(False, 0)
    desirable, undesirable = weights(good, bad)
    recommended = f"`desirable_weight={desirable:g}`, `undesirable_weight={undesirable:g}`"
    return f"## Labels\n\n{good} desirable and {bad} undesirable rows. For KTOConfig: {recommended}."


def _noise(posterior: float, noise: Noise | None) -> str:
    said = f"## Label noise\n\nExpected share of labels that are wrong: {posterior:.4f} (mean of 1 - `probability`)."
    if noise is None or noise.interval is None:
        return said
    low, high = noise.interval
    return f"{said} The labels themselves say {noise.share:.4f} (95 % interval {low:.3f} to {high:.3f}): so many break their own rules."


def _named(counts: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    return {name: ", ".join(f"{what} ({count} traces)" for what, count in of.items()) for name, of in counts.items()}


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _said(lost: Mapping[str, int]) -> str:
    left_out = ", ".join(f"{count} with {reason}" for reason, count in lost.items())
    return f"all but {left_out}" if left_out else "all rows"


def _header(report: DatasetReport) -> str:
    lines = "jsonl" if "jsonl" in report.formats else report.formats[0]
    folder, ending = ("data", "parquet") if "parquet" in report.formats else (lines, "jsonl")
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
