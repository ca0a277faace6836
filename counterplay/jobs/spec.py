"""`Job`: what a job file says, read, checked and never changed. `load` reads TOML; every mistake is told with its place in the file.

A job is its content: of two files that say the same about what decides results, one is the other's continuation. How fast it goes
(engine, pace, servers), where its datasets go and which they are can change from one command to the next.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import UserError
from counterplay.jobs import checking, sections
from counterplay.jobs.sections import (
    Engine,
    Environment,
    Export,
    Head,
    Limits,
    Output,
    Pacing,
    Policy,
    Search,
    Section,
    Select,
    Source,
    Texts,
)
from counterplay.parts import Asked
from counterplay.plan import Pace, Plan
from counterplay.searching import check_price
from counterplay.version import __version__

_SECRET = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PASSWORD = re.compile(r"(://[^/\s\"@:]*:)[^/\s\"@]+@")
_SERVED = ("s3://", "gs://", "az://", "postgresql://", "postgres://")
_OF_FILES = ("policy", "double_entry", "prm")
_DECIDES = ("source", "select", "policy", "environment", "verifiers", "search", "budget")
_KEY = 10


class Job(Section):
    """A batch job: logs in, searches over those that are selected, datasets out."""

    job: Head = Field(description="What the job is called, and its store.")
    source: tuple[Source, ...] = Field((), description="Logs to take in first; none: the store as it is.")
    select: Select = Field(Select.model_validate({}), description="Which traces the job is about.")
    policy: Policy = Field(Policy.model_validate({}), description="The model that is asked.")
    environment: Environment = Field(Environment.model_validate({}), description="Where alternatives are played out.")
    verifiers: Texts = Field(
        (), description="NAME, policy:FILE, judge:MODEL, prm:FOLDER or module:attr; all must be content. None: the outcome."
    )
    search: Search = Field(Search.model_validate({}), description="How alternatives are looked for.")
    budget: Limits = Field(Limits.model_validate({}), description="What the job may use.")
    pace: Pacing = Field(Pacing.model_validate({}), description="What the policy's server may be asked at a time.")
    engine: Engine = Field(Engine.model_validate({}), description="Who works.")
    export: tuple[Export, ...] = Field((), description="Datasets to make once all is settled.")
    output: Output = Field(Output.model_validate({}), description="Where datasets and the report go.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        with checking.worded():
            check_price(self.asked(), self.plan())
        folders = [export.folder for export in self.export]
        twice = next((folder for folder in folders if folders.count(folder) > 1), None)
        if twice is not None:
            raise ValueError(f"got two exports into the folder {twice!r}, wanted a name for each")
        if self.search.algorithm == "auto":
            raise ValueError("got [search] algorithm 'auto', which chooses in rounds; wanted one search for all units of a job")
        if not self.stitches and not self.policy.spec:
            raise ValueError("got no [policy] spec, wanted openai:MODEL, transformers:DIR, logged or module:attr (only stitch takes none)")
        return self

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The job in a TOML file; paths in it are relative to its folder. Raises UserError, which says where and what is wrong."""
        file = Path(path)
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"got job file {file}, which can't be read: {error.strerror}", "a TOML file", _START) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is no TOML: {error}", "a TOML file", _START) from None
        return cls.read(found, folder=file.parent, name=str(file))

    @classmethod
    def read(cls, found: Mapping[str, Any], *, folder: Path | None = None, name: str = "the job") -> Self:
        """The job in tables as TOML gives them. `folder` is what its paths are relative to; None: the working directory."""
        tables = dict(found)
        if "verifier" in tables:  # [[verifier]] tables, each with a spec
            given = tables.get("verifiers", ())
            first = given if isinstance(given, list | tuple) else [given]
            tables["verifiers"] = [*first, *_specs(tables.pop("verifier"), name)]
        _only_secrets(tables.get("policy"), tables, name)
        try:
            made = cls.model_validate(tables)
        except ValidationError as error:
            raise UserError(f"{name}: {checking.told(error, cls).rstrip('.')}", do=_START) from None
        return made if folder is None else made.placed(folder)

    def placed(self, folder: Path | None) -> Self:
        """This job with its paths as they are seen from the working directory; None: with those they really have."""
        at = folder if folder is None or str(folder) != "." else Path()

        def moved(section: Any, *names: str) -> Any:
            given = {name: getattr(section, name) for name in names if getattr(section, name) is not None}
            return section.model_copy(update={name: checking.below(at, path) for name, path in given.items()})

        sources = tuple(_moved_source(moved(source, "effects", "redact_rules"), at) for source in self.source)
        policy = self.policy
        kind, _, rest = policy.spec.partition(":")
        if kind in ("transformers", "batch"):
            policy = policy.model_copy(update={"spec": f"{kind}:{_where(at, rest)}"})
        verifiers = tuple(_moved_verifier(spec, at) for spec in self.verifiers)
        exports = tuple(_moved_export(export, at) for export in self.export)
        changes = {"job": moved(self.job, "store"), "output": moved(self.output, "folder"), "source": sources, "export": exports}
        return self.model_copy(update={**changes, "policy": policy, "verifiers": verifiers})

    @property
    def stitches(self) -> bool:
        """Whether its units are tasks whose logged runs are merged, which asks nobody."""
        return self.search.algorithm == "stitch"

    @property
    def identity(self) -> str:
        """32 hex digits over what decides the units and what comes of each, the same wherever the command is given."""
        tables = self.placed(None).model_dump(mode="json", include={*_DECIDES})
        tables["policy"] = {name: value for name, value in tables["policy"].items() if name not in ("base_urls", "api_key")}
        return content_key("job", __version__, str(self.job.seed), self.job.name, canonical(tables))

    @property
    def family(self) -> str:
        """What the ids of all its jobs begin with: its name and the first digits of its identity."""
        return f"{self.job.name}-{self.identity[:_KEY]}"

    def asked(self) -> Asked:
        """The parts that the job names."""
        policy, world = self.policy, self.environment
        return Asked(
            policy.spec,
            world.spec,
            self.verifiers,
            ",".join(policy.base_urls) or None,
            policy.temperature,
            policy.max_tokens,
            self.job.seed,
            self.search.max_steps,
            frozenset(world.allow_external),
            policy.price,
            policy.extra_body,
            world.simulate,
            timeout_s=self.pace.timeout_s,
        )

    def plan(self) -> Plan:
        """How to search. Raises UserError where the search can't be run so."""
        search = self.search
        return Plan.parse(
            search.algorithm,
            checking.search_options(search.algorithm, search.options),
            fork=None if search.fork is None else str(search.fork),
            budget=checking.without(self.budget.total, "seconds"),
            trace_budget=self.budget.per_trace,
            concurrency=self.engine.at_once,
            split=self.budget.split,
            stop_when=search.stop_when,
            pace=Pace(self.pace.in_flight, self.pace.requests_per_minute, self.pace.tokens_per_minute),
        )

    def hand_over_key(self) -> None:
        """Put the key of the policy's server where the policy looks for it: the environment of this process and of those it starts."""
        if self.policy.api_key is not None:
            name = self.policy.api_key[2:-1]
            if not os.environ.get(name):
                raise UserError(f"got [policy] api_key = ${{{name}}}, which is not set", f"{name} in the environment")
            os.environ["OPENAI_API_KEY"] = os.environ[name]

    def to_json(self) -> str:
        """The job as JSON text, for the store. Secrets are named, not told, and passwords in addresses left out."""
        return _PASSWORD.sub(r"\1…@", json.dumps(self.model_dump(mode="json"), ensure_ascii=False))


_START = "See docs/jobs.md, or begin with: counterplay run --init"


def _specs(tables: Any, name: str) -> list[Any]:
    if not isinstance(tables, list | tuple):
        raise UserError(f"{name}: got one table, or a value, for verifier", "tables in double brackets: [[verifier]]")
    found = [table.get("spec") if isinstance(table, Mapping) and set(table) == {"spec"} else None for table in tables]
    if None in found:
        raise UserError(f"{name}: got a [[verifier]] with other keys", "spec alone", 'For example: spec = "ledger"')
    return found


def _only_secrets(policy: Any, tables: Mapping[str, Any], name: str) -> None:
    """Refuse `${NAME}` anywhere but in a secret, and a secret that is written out."""
    key = policy.get("api_key") if isinstance(policy, Mapping) else None
    if key is not None and (not isinstance(key, str) or not _SECRET.fullmatch(key)):
        do = "A key in a file is a key in a repository."
        raise UserError(f"{name}: [policy] api_key: got a key that is written out", "${NAME}, to be read from the environment", do)
    elsewhere = {**tables, "policy": {k: v for k, v in policy.items() if k != "api_key"}} if isinstance(policy, Mapping) else tables
    found = _SECRET.search(json.dumps(elsewhere, default=str))
    if found is not None:
        raise UserError(f"{name}: got {found[0]} outside of [policy] api_key", "a value: only secrets are read from the environment")


def _where(folder: Path | None, path: str) -> str:
    return str(checking.below(folder, path))


def _moved_verifier(spec: str, folder: Path | None) -> str:
    """What is a file or folder beside the job file; anything else may be the name of a model."""
    kind, _, rest = spec.partition(":")
    return f"{kind}:{_where(folder, rest)}" if kind in _OF_FILES and rest and checking.below(folder, rest).exists() else spec


def _moved_source(source: Source, folder: Path | None) -> Source:
    from counterplay.connectors.pulls.address import is_address

    served = source.path.startswith(_SERVED) or "://" in source.path or is_address(source.path)
    return source if served else source.model_copy(update={"path": _where(folder, source.path)})


def _moved_export(export: Export, folder: Path | None) -> Export:
    files = {name for name in ("tokenizer", "held_out_file", "look_for_rules") if export.options.get(name) is not None}
    moved = {name: _where(folder, export.options[name]) for name in files}
    return type(export).model_validate({"kind": export.kind, "name": export.name, **export.options, **moved})


def schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    found = Job.model_json_schema()
    kinds = sections.Kind.__args__  # type: ignore[attr-defined]
    for kind in kinds:
        found["$defs"][f"Export_{kind}"] = _export_schema(kind)
    found["$defs"]["Export"] = {"oneOf": [{"$ref": f"#/$defs/Export_{kind}"} for kind in kinds]}
    found["properties"]["verifier"] = {
        "description": "The same as `verifiers`, as [[verifier]] tables.",
        "type": "array",
        "items": {"type": "object", "properties": {"spec": {"type": "string"}}, "required": ["spec"], "additionalProperties": False},
    }
    return found


def _export_schema(kind: str) -> dict[str, Any]:
    options = checking.export_options(kind).model_json_schema()
    fixed = {name: field for name, field in Export.model_json_schema()["properties"].items() if name == "name"}
    options["properties"] = {"kind": {"const": kind, "description": "The kind of dataset."}, **fixed, **options["properties"]}
    return {**options, "required": ["kind"], "title": f"Export {kind}"}
