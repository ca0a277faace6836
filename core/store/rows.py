"""What the store answers with, where it is not a noun of core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from counterplay.core.nouns import Coverage, Grade


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one `ingest` took in. `tasks` counts over everything it was given; `succeeded`, `failed` and `unknown` count the traces of it,
    each as its current revision says: one that was superseded, or only a beginning of what is held, does not count.

    `traces_known` were held already, unchanged; `traces_updated` were held with other content, which is kept beside the new.
    `files_unchanged` were not read, as they are what they were when they were last read; `files_read` were, of those that are files.
    """

    traces_added: int = 0
    traces_known: int = 0
    traces_updated: int = 0
    nodes_added: int = 0
    rejected_added: int = 0
    rejected_known: int = 0
    tasks: int = 0
    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    files_unchanged: int = 0
    files_read: int = 0


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A trace without its content. `steps`, `messages` and `grade` are its main trajectory's; None means not known."""

    id: str
    task: str | None
    session: str | None
    agent: str | None
    source: str
    uri: str
    trajectories: int
    steps: int
    messages: int
    calls: int
    reward: float | None
    success: bool | None
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    grade: Grade
    inputs: Coverage
    started_at_us: int | None


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """One trajectory without its content. `kind` is logged, fork (the root of a search) or counterfactual.

    `trace` is the trace it belongs to or forked from, at step `fork_step`; `tip` its content key; `reward` its last step's.
    """

    id: str
    kind: str
    trace: str | None
    fork_step: int | None
    search: str | None
    search_node: int | None
    steps: int
    reward: float | None
    grade: Grade
    tip: str


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A verifier's opinion of the state `key`. `value` is None where it had none or, with `error`, where it failed."""

    key: str
    verifier: str
    version: str = ""
    value: float | None = None
    reason: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A search without its tree. `finished` counts leaves whose trajectory has ended."""

    id: str
    algorithm: str
    trace: str | None
    task: str | None
    fork_step: int
    stopped: str
    nodes: int
    finished: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written: in which table, at which row, and what is wrong."""

    table: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.table} {self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Held:
    """What the sources of one format could give: of `count` traces, or of the model calls in them (`of` says which).

    `inputs` and `outputs` count full, stitched, partial and none; the others count where it is so, `dropped_attributes` and
    `open_spans` add up.
    """

    of: str
    format: str
    dialect: str
    count: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    tools_known: int
    system_prompt_known: int
    dropped_attributes: int
    truncated: int
    redacted: int
    open_spans: int


@dataclass(frozen=True, slots=True)
class LoggedScores:
    """The scores of one name and source: how many traces and steps they were given to, and the mean of those with a known scale."""

    name: str
    source: str
    traces: int
    steps: int
    scaled: int
    mean: float | None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Rejected input of one reason; places and figures inside reasons are left out, so that one kind is one row. `where` is an example."""

    reason: str
    count: int
    where: str


@dataclass(frozen=True)
class Stats:
    """What a store holds. Counts of traces, steps and calls are of current traces; `revisions` are held beside them.

    `content_bytes` is the text held, each message once; `message_bytes` the text of all trajectories; `logged_bytes` what logs
    repeat that keep the whole prompt of every step, the form in which most sources keep it. `reused_call_ids` counts traces in
    which two tool calls share an id. `cost_usd` is None where no call has a price. `completeness` has a row for the traces and one
    for the calls of each format; `notes` counts traces by what their source could not give; `redactions` counts what was replaced
    by kind, every time it was; `watermarks` says how far live sources were read.
    """

    traces: int = 0
    revisions: int = 0
    tasks: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    messages: int = 0
    nodes: int = 0
    toolsets: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    content_bytes: int = 0
    message_bytes: int = 0
    logged_bytes: int = 0
    file_bytes: int = 0
    inputs: Mapping[str, int] = field(default_factory=dict)
    grades: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    searches: int = 0
    search_nodes: int = 0
    counterfactuals: int = 0
    scores: int = 0
    journal: int = 0
    quarantine: Mapping[str, int] = field(default_factory=dict)
    quarantined: tuple[Quarantined, ...] = ()
    reused_call_ids: int = 0
    completeness: tuple[Held, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    logged_scores: tuple[LoggedScores, ...] = ()
    redactions: Mapping[str, int] = field(default_factory=dict)
    watermarks: Mapping[str, str] = field(default_factory=dict)


UnitState: TypeAlias = Literal["pending", "running", "done", "failed", "skipped", "parked"]
"""pending: to be claimed, once it is due; running: claimed, under a lease. The others are for good: settled."""

UNIT_STATES: tuple[UnitState, ...] = ("pending", "running", "done", "failed", "skipped", "parked")
SETTLED: tuple[UnitState, ...] = ("done", "failed", "skipped", "parked")


@dataclass(frozen=True, slots=True)
class JobRow:
    """A batch job. `spec` is its JSON text; `state` is "running" until `end_job` says otherwise; `ended_us` None until then.

    `number` counts the jobs of a store in the order they were first put.
    """

    number: int
    id: str
    name: str
    spec: str
    state: str
    created_us: int
    ended_us: int | None


@dataclass(frozen=True, slots=True)
class NewUnit:
    """A unit of work to be added to a job: its id, the traces that it is about, and its own limits by kind of budget.

    `state` is pending, or skipped with a `reason` for one that is not to be worked on at all.
    """

    id: str
    traces: tuple[str, ...]
    share: Mapping[str, float] = field(default_factory=dict)
    state: UnitState = "pending"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A unit of work as the store holds it. `number` orders the units of a job as they were added.

    `attempts` counts its claims. `owner` and `lease_until_us` are None where it is not running; `not_before_us` None where it is due at
    once. `error_class` and `reason` tell of the last attempt, `result` is what it was settled with, `at_us` when its state last changed.
    """

    job: str
    number: int
    id: str
    traces: tuple[str, ...]
    share: Mapping[str, float]
    state: UnitState
    attempts: int
    owner: str | None
    lease_until_us: int | None
    not_before_us: int | None
    error_class: str
    reason: str
    result: Mapping[str, Any]
    at_us: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a claimed unit came to: done, failed, skipped or parked for good, or pending once more, not before `not_before_us`.

    `result` are values of JSON.
    """

    id: str
    state: UnitState = "done"
    reason: str = ""
    error_class: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    not_before_us: int | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which traces a job is about; what is None or empty leaves nothing out, and all that is given has to hold.

    `outcome` is success, failed or unknown, or several of them. `tags`: traces that have all of these. `cost_above_usd` leaves out traces
    without a price, `steps_above` counts the main trajectory's. Times are of the trace's start, or of its end where the start is not known,
    microseconds since 1970, UTC: from `since_us` on, before `until_us`; traces without a time are left out where one is given.
    `sample` is a share in (0, 1] of all trace ids, drawn by `seed` and the id alone: it stays as it is when the store grows. `limit`
    keeps the first of what is left, in order of trace id. `jobs` are ids: traces that are in a unit of one of these.
    """

    outcome: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    cost_above_usd: float | None = None
    steps_above: int | None = None
    since_us: int | None = None
    until_us: int | None = None
    sample: float | None = None
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class LightRow:
    """The little of a trace that a plan is made of; None means not known. `succeeded` is `Outcome.succeeded`."""

    id: str
    task: str | None
    agent: str | None
    steps: int
    calls: int
    reward: float | None
    success: bool | None
    succeeded: bool | None
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
