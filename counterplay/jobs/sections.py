"""The sections of a job file. What decides results and what only decides how fast they come are told apart by `Job.identity`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from counterplay.core.budget import KINDS, Budget
from counterplay.jobs.checking import check_export_options, moment, worded

Kind = Literal["sft", "dpo", "kto", "reward", "prm", "grpo"]


def _amounts(value: Any) -> Any:
    """`model_calls=400,usd=5` of a table of amounts."""
    if not isinstance(value, Mapping):
        return value
    unknown = next((kind for kind in value if kind not in KINDS), None)
    if unknown is not None:
        raise ValueError(f"got {unknown!r}, wanted amounts of {', '.join(KINDS)}")
    return ",".join(f"{kind}={amount}" for kind, amount in value.items())


def _readable(text: str) -> str:
    with worded():
        Budget.parse(text)
    return text


_AMOUNT = {"type": "object", "properties": {kind: {"type": "number", "minimum": 0} for kind in KINDS}, "additionalProperties": False}
Amounts = Annotated[str, BeforeValidator(_amounts), WithJsonSchema({"anyOf": [{"type": "string"}, _AMOUNT]})]
_EFFORT = "e.g. { model_calls = 4000, usd = 5 }, or the text model_calls=4000,usd=5; kinds: " + ", ".join(KINDS)


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _here(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        do = "To send datasets elsewhere: counterplay export KIND --store STORE --out " + value
        raise ValueError(f"got {value}, wanted a path on this machine. {do}")
    return value


def _time(value: Any) -> Any:
    """TOML has dates and times of its own."""
    return value.isoformat() if isinstance(value, date) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
"""Texts in a list; one alone needs no brackets."""
Here = Annotated[Path, BeforeValidator(_here)]
When = Annotated[str | None, BeforeValidator(_time)]
_FILE_NAME = r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$"


class Section(BaseModel):
    """A table of the file: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Head(Section):
    """[job]"""

    name: str = Field(description="What the job is called; its id begins with it.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)
    store: Here = Field(Path("counterplay.duckdb"), description="The store, one DuckDB file; made where there is none.")
    seed: int = Field(0, description="Seed of sampling, of searches, and of what is drawn for the sample and the exports.")


class Source(Section):
    """[[source]]: read before anything else, as `counterplay ingest` would. What is held already is not stored again."""

    path: str = Field(
        description="A log file, a folder, an object store (s3://...), a server (langfuse://HOST/PROJECT) or a database (postgresql://...)."
    )
    format: str = Field("auto", description="auto (by content), or a format by name: docs/formats.md.")
    together: Literal["all", "partition", "file"] | None = Field(
        None, description="Which files may hold parts of one trace; none: all of a folder, and of a prefix those of a partition."
    )
    effects: Path | None = Field(None, description="TOML table of tool effects that completes what the logs say.")
    redact: Texts = Field((), description="Also replaced, beside secrets: pii, or email, card, iban, us-ssn, ip, phone.")
    redact_rules: Path | None = Field(None, description="TOML file of kinds and patterns to replace, in place of secrets.")
    no_redact: bool = Field(False, description="Store everything as logged, secrets too.")


class Select(Section):
    """[select]: which traces of the store the job is about. All that is given has to hold."""

    which: Literal["failed", "succeeded", "all"] | None = Field(
        None, description="By outcome. Where not given: failed, and for the search stitch all."
    )
    agents: Texts = Field((), description="Only traces of these agents.")
    tasks: Texts = Field((), description="Only traces of these tasks.")
    tags: Texts = Field((), description="Only traces that have all of these tags.")
    formats: Texts = Field((), description="Only traces that came in one of these formats.")
    cost_above_usd: float | None = Field(None, ge=0, description="Only traces that cost more; those without a price are left out.")
    steps_above: int | None = Field(None, ge=0, description="Only traces whose main trajectory has more steps.")
    since: When = Field(None, description="Only traces from then on: an ISO date or time (UTC), or an age such as 7d, 12h.")
    until: When = Field(None, description="Only traces before then, given like `since`.")
    sample: float | None = Field(None, gt=0, le=1, description="A share of all traces, drawn by id and seed: stable as the store grows.")
    limit: int | None = Field(None, ge=1, description="At most so many, the first by id, however often the job is run.")
    traces: Texts = Field((), description="These traces alone, by id.")

    @field_validator("since", "until")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            with worded():
                moment(value)
        return value


class Policy(Section):
    """[policy]: the model that is asked what else could have been done."""

    spec: str = Field("", description="openai:MODEL, batch:FOLDER:MODEL, transformers:DIR, logged, or module:attr; none for stitch.")
    base_urls: Texts = Field((), description="OpenAI-compatible servers of the same model; none: OPENAI_BASE_URL, else OpenAI.")
    api_key: str | None = Field(None, description="Key of the server, as ${NAME} of the environment; else OPENAI_API_KEY.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    max_tokens: int | None = Field(None, ge=1, description="The most tokens an action may have; none: the policy's own default.")
    price: tuple[float, float] | None = Field(None, description="US dollars per million input and output tokens of a server.")
    extra_body: dict[str, Any] | None = Field(None, description="Further fields of every request to a server.")


class Environment(Section):
    """[environment]: where alternatives are played out."""

    spec: str = Field("recorded", description="recorded, or module:attr, a factory of worlds by task.")
    allow_external: Texts = Field((), description="Tools with external effect that may really be called, and again in prefixes.")
    simulate: str = Field("", description="Answers what the recordings do not hold: nearest, openai:MODEL or module:attr.")


class Search(Section):
    """[search]: how alternatives are looked for, and where."""

    algorithm: str | None = Field(
        None,
        description="A search of docs/papers.md, or stitch (merges logged runs, asks no model). None: repair, or fork_best_of_n where the "
        "verifier has no opinion on unfinished runs.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the algorithm, by name.")
    fork: str | int | None = Field(
        None, description="Where to fork: value_drop, pivot, tool_error, entropy, rare_state, every, start or a step number."
    )
    stop_when: str = Field("", description="Stop a search where one holds, e.g. value=1,finished=8: docs/searching.md.")
    max_steps: int | None = Field(None, ge=1, description="Model calls a branch may have; none: the search's own limit.")


class Limits(Section):
    """[budget]: what the job may use. Divided once, when its units are made; killed or not, no unit gets more than its share."""

    total: Annotated[Amounts, Field(description=f"For all units together, {_EFFORT}; seconds: so long a command works on the job.")] = ""
    per_trace: Annotated[Amounts, Field(description=f"The most of one unit, {_EFFORT}.")] = ""
    split: Literal["gain", "even"] = Field("gain", description="How the total is divided: by what it is expected to bring, or evenly.")

    _total = field_validator("total", "per_trace")(_readable)


class Pacing(Section):
    """[pace]: what all units together may ask of the policy's server."""

    in_flight: int | None = Field(None, ge=1, description="Requests in flight; 64 where not given, and no limit for transformers:.")
    requests_per_minute: float | None = Field(None, ge=1, description="Requests a minute.")
    tokens_per_minute: float | None = Field(None, ge=1, description="Tokens a minute.")
    timeout_s: float | None = Field(
        None, gt=0, le=86_400, description="Seconds a server may take for an answer before it is asked again; 120 where not given."
    )


class Engine(Section):
    """[engine]: who works, how often a unit is tried. It decides how fast a job is, not what comes of it."""

    kind: Literal["local", "ray"] = Field("local", description="This machine, or a Ray cluster (counterplay[ray]).")
    processes: int = Field(0, ge=0, description="Processes that work; 0: this one alone. For ray: worker actors, 0 one for each CPU.")
    at_once: int = Field(16, ge=1, le=100_000, description="Units that are worked on at once, over all processes.")
    lease_s: float = Field(300.0, gt=0, le=31_536_000, description="Seconds after which a unit whose driver is gone is given out again.")
    silent_s: float = Field(
        900.0, gt=0, le=31_536_000, description="Seconds without a sign of life after which a worker process or actor is ended as stuck."
    )
    attempts: int = Field(3, ge=1, le=1000, description="How often a unit is tried before it is parked.")
    backoff_s: float = Field(2.0, ge=0, description="Seconds before the second try; doubled for each further one, more after rate limits.")
    memory: str | None = Field(None, description="What the store may take of memory, e.g. 1GB.")
    address: str | None = Field(None, description="For ray: the cluster's address; none: the one this machine is in, else a local one.")
    actors: dict[str, int] = Field(default_factory=dict, description="For ray: sizes of actor pools, by policy and verifier.")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Engine:
        if self.kind == "local" and (self.address is not None or self.actors):
            raise ValueError("got address or actors for kind = 'local', wanted kind = 'ray'")
        return self


class Export(BaseModel):
    """[[export]]: a dataset, made once every unit has settled. Its options are those of `counterplay export KIND`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Kind = Field(description="sft, dpo, kto, reward, prm or grpo.")
    name: str = Field("", description="Its folder in the output folder; the kind where not given.", pattern=_FILE_NAME)

    @field_validator("name")
    @classmethod
    def _is_free(cls, value: str) -> str:
        if value in ("report.json", "report.md"):
            raise ValueError(f"got {value!r}, wanted another name: the report is called so")
        return value

    @model_validator(mode="after")
    def _options_are_known(self) -> Export:
        check_export_options(self.kind, self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What is given of the options of `exporting.export_<kind>`, as it takes them."""
        return dict(self.model_extra or {})

    @property
    def folder(self) -> str:
        return self.name or self.kind


class Output(Section):
    """[output]"""

    folder: Here = Field(Path("out"), description="Where datasets, report.json and report.md go.")
