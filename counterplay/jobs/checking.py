"""What a job file says, held against the code that it is about: exports against the functions that make them, keys against known ones."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from counterplay.core.errors import UserError
from counterplay.search.registry import meant

_DESCRIBED = {
    "rows": "What a row is made of: the choices of counterplay export KIND --rows.",
    "source": "logged: by their own outcome; searched: by the verifiers; or both.",
    "min_score": "The verified score or reward that a success has.",
    "tau": "Least probability that what is called better is better, in (0.5, 1].",
    "weights": "none, advantage or oreal: the columns weight and step_weights.",
    "threshold": "The value an action is held against; none: its siblings.",
    "low": "Least share of lines that succeeded from a searched state.",
    "high": "Greatest share of lines that succeeded from a searched state.",
    "labels": "mc-soft, mc-hard, omega, sorm, advantage, rest, td or reflection.",
    "hard": "Labels of 1 from this value on, else 0.",
    "min_grade": "exact, reused, executed or simulated: the worst that may enter.",
    "tokenizer": "Model folder whose chat template audits the lengths.",
    "max_length": "The most tokens of a row; longer ones are left out by name.",
    "held_out": "Share of tasks kept for the test split.",
    "split_by": "What the splits never share: task, session, user.",
    "algorithms": "Only trees of these searches.",
    "agent": "Only traces of this agent.",
    "seed": "Seed of what is drawn; the job's where not given.",
    "licence": "The licence field of the card, by the Hub's names.",
    "formats": "parquet, jsonl, openai, sharegpt.",
    "near_duplicates": "Share of runs of five words from which two rows are one; 0 keeps all.",
    "held_out_file": "Tasks or prompts of an evaluation; rows that repeat them are left out.",
    "look_for": "Beside secrets, rows with these are left out: pii, or email, card, iban, phone.",
    "look_for_rules": "TOML file of kinds and patterns to look for.",
    "keep_secrets": "Look for no secrets.",
    "per_task": "At most so many rows of a task, the surest.",
    "per_tool": "At most so many rows that call a tool, the surest.",
}
_NOT_OPTIONS = frozenset({"store", "out", "shared"})


@lru_cache
def export_options(kind: str) -> Any:
    """The options of `exporting.export_<kind>` as a pydantic model: read off its signature, so that the two can't drift apart."""
    from counterplay import exporting

    found = inspect.signature(getattr(exporting, f"export_{kind}")).parameters
    own = {name: parameter for name, parameter in found.items() if name not in _NOT_OPTIONS}
    written = SimpleNamespace(__annotations__={name: parameter.annotation for name, parameter in own.items()})
    hints, fields = get_type_hints(written, vars(exporting)), dict[str, Any]()
    for name, parameter in own.items():
        fields[name] = (hints[name], Field(parameter.default, description=_DESCRIBED.get(name)))
    for name, hint in get_type_hints(exporting.Shared).items():
        fields.setdefault(name, (hint, Field(None, description=_DESCRIBED.get(name))))
    return create_model(f"{kind}_options", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def check_export_options(kind: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError, in words, where an option is unknown to the export or is of another type."""
    model = export_options(kind)
    try:
        model.model_validate(dict(given))
    except ValidationError as error:
        raise ValueError(told(error, model, place=lambda location: ".".join(map(str, location)))) from None


def typed(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the export takes them: texts that are files as paths, lists as tuples."""
    model = export_options(kind).model_validate(dict(given))
    return {name: getattr(model, name) for name in given}


def known_keys(model: Any, location: Sequence[Any]) -> list[str]:
    """The keys that the table at `location` may have; empty where that is not known."""
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        found = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((each for each in found if hasattr(each, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


def told(error: ValidationError, model: Any, *, place: Callable[[Sequence[Any]], str] | None = None) -> str:
    """What is wrong, as `[table] key: got ..., wanted ...`, each on its own, without pydantic's words and addresses."""
    return "; ".join(_told_one(each, model, place or _place) for each in error.errors(include_url=False))


def _told_one(found: Any, model: Any, place: Callable[[Sequence[Any]], str]) -> str:
    location, kind = found["loc"], found["type"]
    at = f"{place(location)}: " if location else ""
    if kind in ("extra_forbidden", "missing"):
        *table, key = location
        at = f"{place(table)}: " if table else ""
        if kind == "missing":
            return f"{at}the key {key!r} is missing"
        known = known_keys(model, table)
        return f"{at}got the key {key!r}, wanted one of {', '.join(known)}. {meant(str(key), known)}".rstrip()
    said = str(found["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return at + said
    said = "wanted the letters, digits, . _ and - of a file name" if kind == "string_pattern_mismatch" else said
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        said = "wanted a table"
    said = said.replace("Input should be ", "wanted ").partition(", unable to")[0]
    return f"{at}got {found['input']!r:.80}, {said}"


def _place(location: Sequence[Any]) -> str:
    """`[table] key`, with the number of the table where there are several."""
    if not location:
        return "the file"
    table, *rest = location
    number = f" {rest.pop(0) + 1}" if rest and isinstance(rest[0], int) else ""
    key = ".".join(str(part) for part in rest)
    return f"[{table}]{number}" + (f" {key}" if key else "")


@contextmanager
def worded() -> Iterator[None]:
    """A UserError inside becomes the ValueError that pydantic puts its place to."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from None


def moment(text: str) -> int:
    """Microseconds since 1970 of a date or time, or of an age such as 7d before now. Raises UserError where it is neither."""
    from counterplay.connectors.pulls.address import moment_us, span_us

    if text[:1].isdigit() and text[-1:] in "smhd":
        return time.time_ns() // 1000 - span_us(text, "")
    return moment_us(text, "")


def search_options(given: Mapping[str, Any]) -> list[str]:
    """Options of a search as `Plan.parse` reads them. Raises UserError where a value can't be written so."""
    return [f"{name}={_text(name, value)}" for name, value in given.items()]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(_text(name, each) for each in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"got [search] options.{name} = {value!r:.80}", "a number, a text, true or false, or a list of them")


def below(folder: Path | None, path: Path | str) -> Path:
    """`path` as seen from the folder of the job file; None: as it really is, seen from the working directory."""
    found = Path(path).expanduser()
    return Path(os.path.realpath(found)) if folder is None else folder / found


def without(budget: str, kind: str) -> str:
    """A budget's text without one kind."""
    return ",".join(part for part in budget.split(",") if part.partition("=")[0].strip() != kind)
