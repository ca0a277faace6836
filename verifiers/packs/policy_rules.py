"""One rule of a policy: which calls it is about, and how arguments and answers are matched."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from counterplay.core.canonical import canonical
from counterplay.core.errors import UserError
from counterplay.verifiers.packs.base import Use, at, leaves, matches

YES = ("yes", "yeah", "yep", "confirm", "confirmed", "go ahead", "proceed", "please do", "sounds good", "that works", "i agree", "correct")
_NO = re.compile(r"\b(?:no|nope|not|don'?t|do not|wait|stop|hold on|cancel that|instead|before you|unless)\b", re.IGNORECASE)
_TESTS = ("is", "not", "min", "max", "above", "below", "pattern", "missing")


@dataclass(frozen=True)
class Rule:
    """Something asked of every call of a tool in `on` (names or patterns such as `update_*`) whose arguments match `when`.

    Of these, any may be given together:
    `only` what its arguments must be.
    `requires` one of these tools answered, without an error, in an earlier step; `showing` what that answer's fields must be; `fresh`
    that nothing may have changed it since, by the tools' effects.
    `then` one of these tools must be answered after it, `within` so many steps, or by the end where that is None.
    `never` it must not be called.
    `at_most` so many calls, not counting those refused by an error.
    `confirmed` the user's last turn says yes to what the agent said before it; `yes` are the words that count, `once` that a yes covers
    one call only, `telling` the arguments whose values the agent's words must have named.
    `seen` arguments whose values (each of a list) must occur in an earlier text of `seen_in`: tools, `user` or `system`; empty means
    any tool.

    `same` ties it to a resource: arguments that must be equal in both calls (`requires`, `then`) or by which calls are counted
    (`at_most`); `as_` gives their names in the other call where those differ. `when`, `only` and `showing` map a field (dots look into
    objects) to a value, a list of values, or tests: is, not, min, max, above, below, pattern, missing.
    """

    on: tuple[str, ...]
    name: str = ""
    reason: str = ""
    weight: float = 1.0
    when: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    showing: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    then: tuple[str, ...] = ()
    within: int | None = None
    never: bool = False
    at_most: int | None = None
    confirmed: bool = False
    once: bool = False
    telling: tuple[str, ...] = ()
    yes: tuple[str, ...] = YES
    seen: tuple[str, ...] = ()
    seen_in: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    as_: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError where the rule asks for nothing, or for something that makes no sense."""
        label = f"rule {self.name!r}" if self.name else f"a rule on {self.on}"
        for key in ("on", "requires", "then", "telling", "yes", "seen", "seen_in", "same", "as_"):
            if isinstance(getattr(self, key), str):
                raise UserError(f"got {label} with {key} = {getattr(self, key)!r}", "a tuple of names")
        if not self.on:
            raise UserError(f"got {label} without `on`", "the tools that it is about")
        if not (self.requires or self.then or self.never or self.at_most is not None or self.confirmed or self.seen or self.only):
            raise UserError(f"got {label}, which asks for nothing", "only, requires, then, never, at_most, confirmed or seen")
        if (self.fresh or self.showing) and not self.requires:
            raise UserError(f"got {label} with `fresh` or `showing`, but without `requires`", "the tool whose answer is meant")
        if self.within is not None and not self.then:
            raise UserError(f"got {label} with `within`, but without `then`", "the tool that must follow")
        if (self.once or self.telling) and not self.confirmed:
            raise UserError(f"got {label} with `once` or `telling`, but without `confirmed`", "confirmed = true")
        if self.as_ and len(self.as_) != len(self.same):
            raise UserError(f"got {label} with {len(self.as_)} names in `as` for {len(self.same)} in `same`", "one for each")
        if self.weight <= 0 or (self.at_most is not None and self.at_most < 1) or (self.within is not None and self.within < 1):
            raise UserError(f"got {label} with a weight or number that is not positive", "weight > 0, at_most and within from 1")
        for test in (*self.when.values(), *self.only.values(), *self.showing.values()):
            _check(test, label)

    def applies(self, use: Use) -> bool:
        return matches(use.call.name, self.on) and (not self.when or _mismatch(self.when, use.call.args or {}) is None)

    def strangers(self, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """By setting, the patterns of tools that fit none of `names`; `seen_in` may also mean the user or the system."""
        held = {"on": self.on, "requires": self.requires, "then": self.then, "seen_in": self.seen_in}
        missed = {
            key: tuple(each for each in patterns if not _fits(each, (*names, "user", "system") if key == "seen_in" else names))
            for key, patterns in held.items()
        }
        return {key: patterns for key, patterns in missed.items() if patterns}

    def values(self, use: Use, names: tuple[str, ...]) -> tuple[str, ...]:
        """The values of these arguments of a call as text; empty where it has none."""
        args = use.call.args or {}
        return tuple(_text(at(args, name)) for name in names)

    def met_by(self, use: Use) -> tuple[str, ...]:
        """The values of the tying arguments in the other call."""
        return self.values(use, self.as_ or self.same)

    def not_only(self, use: Use) -> str | None:
        """Which argument is not as `only` asks; None where all are."""
        return _mismatch(self.only, use.call.args or {})

    def not_shown(self, answer: Any) -> str | None:
        """Which field of an answer is not as `showing` asks; None where all are."""
        return _mismatch(self.showing, answer) if self.showing else None

    def relies_on(self, who: str) -> bool:
        """Whether what a tool, the user or the system said counts as seen."""
        return matches(who, self.seen_in) if self.seen_in else who not in ("user", "system", "developer", "assistant")

    def shown_values(self, use: Use) -> Iterator[tuple[str, str]]:
        """Every argument of `seen` with its plain values, each of a list or object on its own. Empty ones and flags say nothing."""
        for name in self.seen:
            for value in leaves(at(use.call.args or {}, name)):
                if not isinstance(value, bool) and str(value).strip():
                    yield name, _text(value)


def _fits(pattern: str, names: Collection[str]) -> bool:
    return any(matches(name, (pattern,)) for name in names)


def explicit_yes(text: str, words: tuple[str, ...]) -> bool:
    """Whether a user's turn agrees: one of the words, with nothing before it in its sentence that takes it back. A question agrees
    only where it begins with the word ("Yes, can you do it now?", not "Can you confirm my seat?").
    """
    parts = re.split(r"([.!?\n;]+)", text.replace("\u2019", "'"))
    for sentence, end in zip(parts[::2], [*parts[1::2], ""], strict=True):
        found = _words(words).search(sentence)
        if found and not _NO.search(sentence[: found.start()]) and ("?" not in end or not sentence[: found.start()].strip()):
            return True
    return False


def occurs(value: str, text: str) -> bool:
    """Whether a value stands in a text as a word of its own, whatever its letter case."""
    return bool(_whole(value.strip().casefold()).search(text.casefold()))


@lru_cache(maxsize=64)
def _words(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in words)})\b", re.IGNORECASE)


@lru_cache(maxsize=4096)
def _whole(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else canonical(value)


def _mismatch(tests: Mapping[str, Any], value: Any) -> str | None:
    """The first field that is not as asked, with its value; None where all are."""
    for path, test in tests.items():
        got = at(value, path)
        if not _holds(test, got):
            return f"{path} {_text(got)[:60] or 'missing'}, wanted {_told(test)}"
    return None


def _holds(test: Any, got: Any) -> bool:
    if isinstance(test, list | tuple):
        return any(_equal(each, got) for each in test)
    if isinstance(test, Mapping):
        return all(_passes(name, each, got) for name, each in test.items())
    return _equal(test, got)


def _passes(name: str, wanted: Any, got: Any) -> bool:
    if name == "missing":
        return bool((got is None) == wanted)
    if name in ("is", "not"):
        return bool(_holds([wanted] if isinstance(wanted, Mapping) else wanted, got) == (name == "is"))
    if name == "pattern":
        return got is not None and re.search(wanted, _text(got)) is not None
    number = _number(got)
    if number is None:
        return False
    return bool({"min": number >= wanted, "max": number <= wanted, "above": number > wanted, "below": number < wanted}[name])


def _equal(wanted: Any, got: Any) -> bool:
    """Equal, or equal as text where only one of the two is a number; a list equals what it holds."""
    if isinstance(got, list) and not isinstance(wanted, list):
        return any(_equal(wanted, each) for each in got)
    if isinstance(wanted, bool) or isinstance(got, bool):
        return wanted is got
    return bool(wanted == got) or (got is not None and _text(wanted) == _text(got))


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return None


def _told(test: Any) -> str:
    if isinstance(test, Mapping):
        return " and ".join(f"{name} {_told(each)}" for name, each in test.items())
    return " or ".join(map(_text, test)) if isinstance(test, list | tuple) else _text(test)


def _check(test: Any, label: str) -> None:
    if not isinstance(test, Mapping):
        return
    for name, value in test.items():
        if name not in _TESTS:
            raise UserError(f"got {label} with the test {name!r}", f"one of: {', '.join(_TESTS)}")
        if name in ("min", "max", "above", "below") and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"got {label} with {name} = {value!r}", "a number")
        if name == "pattern":
            try:
                re.compile(value)
            except (re.error, TypeError) as error:
                raise UserError(f"got {label} with pattern {value!r}: {error}", "a regular expression") from error
