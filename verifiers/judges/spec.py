"""From text to a judge, for command lines and configuration: `judge:MODEL?mode=step&criteria=FILE.toml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

from counterplay.core.canonical import loads
from counterplay.core.errors import UserError
from counterplay.core.nouns import Usage
from counterplay.core.protocols import Verifier
from counterplay.verifiers.judges import prompts
from counterplay.verifiers.judges.criteria import Criteria
from counterplay.verifiers.judges.ensemble import Ensemble
from counterplay.verifiers.judges.judge import Judge
from counterplay.verifiers.judges.model import ChatModel
from counterplay.verifiers.judges.siblings import Siblings
from counterplay.verifiers.judges.typed import Question, TypedJudge

PREFIX = "judge:"
SPELLING = "judge:MODEL[,MODEL...][?option=value&...]"


@dataclass(frozen=True, slots=True)
class _Option:
    """Where a value goes (`model`, `judge` or the `ensemble`), for which modes of judge, and how it is read."""

    target: str
    kinds: str
    read: Callable[[str], Any]


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _checklist(text: str) -> tuple[str, ...]:
    return prompts.TOULMIN if text == "toulmin" else tuple(_lines(text))


def _questions(text: str) -> tuple[Question, ...]:
    return tuple(Question(line) for line in _lines(text))


def _lines(path: str) -> list[str]:
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def _reference(path: str) -> Mapping[str, str]:
    known = loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(known, dict) or not all(isinstance(answer, str) for answer in known.values()):
        raise ValueError(path)
    return cast("Mapping[str, str]", known)


_OPTIONS: Mapping[str, _Option] = {
    "base_url": _Option("model", "*", str),
    "temperature": _Option("model", "*", float),
    "max_tokens": _Option("model", "*", int),
    "concurrency": _Option("model", "*", int),
    "retries": _Option("model", "*", int),
    "timeout_s": _Option("model", "*", float),
    "formal": _Option("judge", "*", _flag),
    "max_chars": _Option("judge", "*", int),
    "seed": _Option("judge", "*", int),
    "criteria": _Option("judge", "judge siblings", Criteria.from_toml),
    "samples": _Option("judge", "judge", int),
    "checklist": _Option("judge", "judge", _checklist),
    "reference": _Option("judge", "judge", _reference),
    "by": _Option("judge", "siblings", str),
    "orders": _Option("judge", "siblings", int),
    "questions": _Option("judge", "typed", _questions),
    "rule": _Option("ensemble", "*", str),
}
_NAMES = {"checklist": "questions"}


def from_spec(text: str, *, base_url: str | None = None, price: Callable[[Usage], float] | None = None) -> Verifier:
    """The judge that `text` names; several models make an `Ensemble`. `base_url` is for specs that hold none,
    `price` as with `ChatModel`.

    `mode` is outcome (the default), step, progress or siblings; `typed=true` asks typed questions in place of criteria. Files:
    `criteria` TOML, `questions` and `checklist` (or `toulmin`) one question a line, `reference` a JSON object. Raises UserError where an
    option is unknown, unreadable, or means nothing to this kind of judge.
    """
    models, _, query = text.removeprefix(PREFIX).partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    names = [name.strip() for name in models.split(",")]
    if not text.startswith(PREFIX) or not all(names) or len(given) < len(pairs):
        raise UserError(f"got judge {text!r}", SPELLING)
    mode, typed = given.pop("mode", "outcome"), _value(text, "typed", given.pop("typed", "false"), _flag)
    if mode not in ("outcome", "step", "progress", "siblings") or (typed and mode == "siblings"):
        raise UserError(f"got judge {text!r}", "mode=outcome, step, progress or siblings, and typed=true with the first three alone")
    kind = "siblings" if mode == "siblings" else "typed" if typed else "judge"
    options: dict[str, dict[str, Any]] = {"model": {"base_url": base_url, "price": price}, "judge": {}, "ensemble": {}}
    for name, value in given.items():
        option = _OPTIONS.get(name)
        if option is None or (option.kinds != "*" and kind not in option.kinds.split()):
            known = [each for each, o in _OPTIONS.items() if o.kinds == "*" or kind in o.kinds.split()]
            raise UserError(f"got option {name!r} for a judge of kind {kind}", f"one of mode, typed, {', '.join(known)}")
        options[option.target][_NAMES.get(name, name)] = _value(text, name, value, option.read)
    if kind != "siblings":
        options["judge"]["mode"] = mode
    if len(names) == 1 and options["ensemble"]:
        raise UserError(f"got judge {text!r} with a rule for one model", SPELLING)
    make: Any = {"judge": Judge, "siblings": Siblings, "typed": TypedJudge}[kind]
    members = [make(ChatModel(name, **options["model"]), **options["judge"]) for name in names]
    return members[0] if len(members) == 1 else Ensemble(members, **options["ensemble"])


def _value(text: str, name: str, value: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(value)
    except (ValueError, OSError) as error:
        raise UserError(f"got {name}={value!r} in judge {text!r} ({error})", "a value, or a file, that can be read as that") from error
