"""Policies as TOML: one `[[rule]]` a rule, and errors that name the line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.verifiers.packs.policy_rules import Rule
from counterplay.verifiers.packs.settings import Lines, fail, loaded

_TOP = {"title": str, "decay": float, "effects": dict, "rule": list}
_KEYS = {each.name.removesuffix("_"): each.name for each in fields(Rule)}
_LISTS = {"on", "requires", "then", "telling", "yes", "seen", "seen_in", "same", "as"}
_TABLES = {"when", "only", "showing"}
_TEXTS, _FLAGS, _NUMBERS = {"name", "reason"}, {"fresh", "never", "confirmed", "once"}, {"within", "at_most"}


def parse(text: str, where: str) -> dict[str, Any]:
    """The settings of a PolicyRules. Raises UserError with the line of what is wrong."""
    document, lines = loaded(text, where, "See docs/packs/policy.md for the form of a rule.")
    for key, value in document.items():
        if key not in _TOP:
            fail(where, lines.of(key), f"got {key!r}", list(_TOP), key)
        wanted = _TOP[key]
        if not isinstance(value, (int, float) if wanted is float else wanted) or isinstance(value, bool):
            fail(where, lines.of(key), f"got {key} = {value!r:.60}", f"a {wanted.__name__}")
    decay = float(document.get("decay", 0.5))
    if not 0 < decay < 1:
        fail(where, lines.of("decay"), f"got decay = {decay}", "a number between 0 and 1")
    rules = tuple(_rule(table, where, lines, number) for number, table in enumerate(document.get("rule", ())))
    if not rules:
        fail(where, 1, "got no rule", "at least one [[rule]]")
    effects = tuple(_effect(tool, spelling, where, lines) for tool, spelling in document.get("effects", {}).items())
    return {"rules": rules, "effects": effects, "title": document.get("title", Path(where).stem), "decay": decay}


def _rule(table: Any, where: str, lines: Lines, number: int) -> Rule:
    if not isinstance(table, dict):
        fail(where, lines.of("rule"), f"got rule = {table!r:.60}", "[[rule]] tables")
    settings: dict[str, Any] = {}
    for key, value in table.items():
        line = lines.of(key, "rule", number)
        if key not in _KEYS:
            fail(where, line, f"got {key!r} in a rule", list(_KEYS), key)
        settings[_KEYS[key]] = _setting(key, value, where, line)
    try:
        return Rule(**{"on": (), **settings})
    except UserError as error:
        raise UserError(f"{where}, line {lines.of('', 'rule', number)}: {error.got}", error.wanted) from error


def _setting(key: str, value: Any, where: str, line: int) -> Any:
    if key in _LISTS:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed or not all(isinstance(each, str) and each for each in listed):
            fail(where, line, f"got {key} = {value!r:.60}", "a name or a list of names")
        return tuple(listed)
    if key in _TABLES:
        if not isinstance(value, dict) or not value:
            fail(where, line, f"got {key} = {value!r:.60}", '{ field = value }, [values], or tests such as { "amount" = { max = 100 } }')
        return value
    kinds: tuple[type, ...] = (str,) if key in _TEXTS else (bool,) if key in _FLAGS else (int,) if key in _NUMBERS else (int, float)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        fail(where, line, f"got {key} = {value!r:.60}", f"a {kinds[-1].__name__}")
    return value


def _effect(tool: str, spelling: Any, where: str, lines: Lines) -> tuple[str, str]:
    line = lines.of(tool, "effects")
    if not isinstance(spelling, str):
        fail(where, line, f"got effect {tool} = {spelling!r:.60}", 'text such as "write(order:{order_id})"')
    try:
        Effect.parse(spelling)
    except ValueError as error:
        raise UserError(f"{where}, line {line}: {error}") from error
    return tool, spelling
