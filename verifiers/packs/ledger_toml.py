"""The settings of the double-entry pack as TOML: its fields, `[fields]`, `[[period]]`, `[tax]` and `[[approval]]`."""

from __future__ import annotations

from dataclasses import fields
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from counterplay.verifiers.packs.ledger_books import Approval, DoubleEntry, Fields, Period, Tax
from counterplay.verifiers.packs.settings import Lines, fail, loaded

_NAMES = ("post", "reverse", "close", "balance", "accounts")
_TABLES = ("fields", "period", "tax", "approval")
_PLAIN = ("reverse_ref", "must_close", "corrected", "decay", "title")


def parse(text: str, where: str) -> dict[str, Any]:
    """The settings of a DoubleEntry. Raises UserError with the line of what is wrong."""
    document, lines = loaded(text, where, "See docs/packs/ledger.md for the settings.")
    settings: dict[str, Any] = {}
    for key, value in document.items():
        line = lines.of(key)
        if key in _NAMES:
            settings[key] = _names(value, where, line, key)
        elif key in _PLAIN:
            settings[key] = _plain(value, DoubleEntry.__dataclass_fields__[key].default, where, line, key)
        elif key not in _TABLES:
            fail(where, line, f"got {key!r}", (*_NAMES, *_PLAIN, *_TABLES), key)
    if "fields" in document:
        settings["fields"] = _made(Fields, document["fields"], where, lines, "fields")
    if "period" in document:
        listed = _listed(document["period"], where, lines, "period")
        settings["periods"] = tuple(_period(table, where, lines, number) for number, table in enumerate(listed))
    if "tax" in document:
        settings["tax"] = _tax(document["tax"], where, lines)
    if "approval" in document:
        listed = _listed(document["approval"], where, lines, "approval")
        settings["approvals"] = tuple(_approval(table, where, lines, number) for number, table in enumerate(listed))
    return settings


def _made(kind: type[Any], table: Any, where: str, lines: Lines, section: str, number: int = 0) -> Any:  # noqa: PLR0917
    """A dataclass of texts and tuples of texts out of a table."""
    known = {each.name: each for each in fields(kind)}
    if not isinstance(table, dict):
        fail(where, lines.of("", section, number), f"got {section} = {table!r:.60}", "a table")
    made: dict[str, Any] = {}
    for key, value in table.items():
        line = lines.of(key, section, number)
        if key not in known:
            fail(where, line, f"got {key!r} in {section}", tuple(known), key)
        if isinstance(known[key].default, tuple):
            made[key] = value if key == "rates" else _names(value, where, line, key)
        elif not isinstance(value, str):
            fail(where, line, f"got {key} = {value!r:.60}", "a text")
        else:
            made[key] = value
    return kind(**made)


def _period(table: Any, where: str, lines: Lines, number: int) -> Period:
    line = lines.of("", "period", number)
    if not isinstance(table, dict) or set(table) != {"first", "last"}:
        fail(where, line, f"got period {table!r:.80}", "`first` and `last`, two dates")
    days = [each.date() if isinstance(each, datetime) else each for each in (table["first"], table["last"])]
    if not all(isinstance(each, date) for each in days) or days[0] > days[1]:
        fail(where, line, f"got period {days[0]} to {days[1]}", "two dates such as 2024-01-31, the first not after the last")
    return Period(*days)


def _tax(table: Any, where: str, lines: Lines) -> Tax:
    tax: Tax = _made(Tax, {**table, "within": _amount(table, "within", "0.01", where, lines, "tax")}, where, lines, "tax")
    rates = table.get("rates", {})
    line = lines.of("rates", "tax")
    if not isinstance(rates, dict) or not all(isinstance(each, list) for each in rates.values()):
        fail(where, line, f"got rates = {rates!r:.60}", '{ DE = [19, 7, 0], "*" = [0] }: percentages by country')
    percent = tuple((country, tuple(str(_decimal(rate, where, line)) for rate in listed)) for country, listed in rates.items())
    return Tax(percent, tax.accounts, tax.within)


def _approval(table: Any, where: str, lines: Lines, number: int) -> Approval:
    if not isinstance(table, dict) or "tool" not in table:
        fail(where, lines.of("", "approval", number), "got an approval without `tool`", "the tool that approves")
    least = _amount(table, "least", "0", where, lines, "approval", number)
    approval: Approval = _made(Approval, {**table, "least": least}, where, lines, "approval", number)
    return approval


def _amount(table: Any, key: str, default: str, where: str, lines: Lines, section: str, number: int = 0) -> str:  # noqa: PLR0917
    return str(_decimal(table.get(key, default), where, lines.of(key, section, number))) if isinstance(table, dict) else default


def _decimal(value: Any, where: str, line: int) -> Decimal:
    try:
        found = None if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        found = None
    if found is None or not found.is_finite() or found < 0:
        fail(where, line, f"got {value!r}", "a number from 0")
    return found


def _names(value: Any, where: str, line: int, key: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        fail(where, line, f"got {key} = {value!r:.60}", "a name or a list of names")
    return tuple(listed)


def _plain(value: Any, default: Any, where: str, line: int, key: str) -> Any:
    if isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            fail(where, line, f"got {key} = {value!r:.60}", "a number in [0, 1]")
        return float(value)
    if type(value) is not type(default):
        fail(where, line, f"got {key} = {value!r:.60}", f"a {type(default).__name__}")
    return value


def _listed(value: Any, where: str, lines: Lines, section: str) -> list[Any]:
    if not isinstance(value, list):
        fail(where, lines.of("", section), f"got [{section}]", f"[[{section}]] tables")
    return value
