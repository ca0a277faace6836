"""What a job file says, held against the code that it is about: exports against the functions that make them, keys against known ones."""

from __future__ import annotations

import inspect
import os
import time
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from counterplay.core.errors import UserError
from counterplay.jobs.wording import told as in_keys
from counterplay.plan import DEFAULTS
from counterplay.search.registry import SEARCHES, meant, options

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
_LISTS = ("tuple_type", "list_type", "sequence_type", "sequence_str")
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
        model.model_validate(listed(model, given))
    except ValidationError as error:
        raise ValueError(told(error, model, place=lambda location: ".".join(map(str, location)))) from None


def typed(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the export takes them: texts that are files as paths, lists as tuples."""
    model = export_options(kind)
    model = model.model_validate(listed(model, given))
    return {name: getattr(model, name) for name in given}


def listed(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, with a text as a list of one where a list of texts is wanted."""
    return {name: [value] if isinstance(value, str) and _is_list(model, name) else value for name, value in given.items()}


def _is_list(model: Any, name: str) -> bool:
    hint = model.model_fields[name].annotation if name in model.model_fields else None
    return any(get_origin(each) in (tuple, abc.Sequence) and get_args(each)[0] is str for each in (hint, *get_args(hint)))


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
    if kind in _LISTS:
        return at + _list_wanted(found["input"], location)
    said = str(found["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return at + said
    said = "wanted the letters, digits, . _ and - of a file name" if kind == "string_pattern_mismatch" else said
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        said = "wanted a table"
    said = "wanted a path, as text" if kind == "path_type" else said
    said = said.replace("Input should be ", "wanted ").partition(", unable to")[0]
    return f"{at}got {found['input']!r:.80}, {said}"


def _list_wanted(given: Any, location: Sequence[Any]) -> str:
    if isinstance(given, Mapping) and len(location) == 1:
        return f"got one table, wanted tables in double brackets: [[{location[0]}]]"
    return f"got {given!r:.80}, wanted a list, in brackets: [{_plain(given)}, ...]"


def _plain(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value!r:.80}"


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
        raise ValueError(str(in_keys(error))) from None


def moment(text: str) -> int:
    """Microseconds since 1970 of a date or time, or of an age such as 7d before now. Raises UserError where it is neither."""
    from counterplay.connectors.pulls.address import moment_us, span_us

    if text[:1].isdigit() and text[-1:] in "smhd":
        return time.time_ns() // 1000 - span_us(text, "")
    try:
        return moment_us(text, "")
    except UserError as error:
        raise UserError(error.got, f"{error.wanted}, or an age such as 7d or 12h") from None


def search_options(algorithm: str | None, given: Mapping[str, Any]) -> list[str]:
    """Options of a search as `Plan.parse` reads them. Raises UserError where a value can't be written so, or is text for a figure."""
    figure = next(
        (name for name, value in given.items() if isinstance(value, str) and value.strip().isdecimal() and _is_figure(algorithm, name)),
        None,
    )
    if figure is not None:
        raise UserError(f"got [search] options.{figure} = {_plain(given[figure])}, a text", f"a number: {figure} = {given[figure].strip()}")
    return [f"{name}={_text(name, value)}" for name, value in given.items()]


def _is_figure(algorithm: str | None, name: str) -> bool:
    searches = DEFAULTS if algorithm is None else (algorithm,)
    found = [options(SEARCHES[each]) for each in searches if each in SEARCHES]
    kinds = [known[name].kind.split(" or ") for known in found if name in known]
    return bool(kinds) and all(set(each) <= {"int", "float", "none"} for each in kinds)


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
