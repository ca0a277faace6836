"""Entries of a double-entry ledger, whatever a bookkeeping tool calls its arguments: lines with an account, a side and an exact amount."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from counterplay.verifiers.packs.base import Use

_SIDES = {"d": "debit", "dr": "debit", "c": "credit", "cr": "credit"}


@dataclass(frozen=True, slots=True)
class Line:
    """One side of an entry. `amount` is positive on the side it is booked on."""

    account: str
    side: str  # debit or credit
    amount: Decimal
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a call posts. `problem` says why it can't be read as an entry; empty where it can."""

    step: int
    tool: str
    ref: str
    document: str
    day: date | None
    lines: tuple[Line, ...]
    args: Mapping[str, Any]
    problem: str = ""

    @property
    def total(self) -> Decimal:
        """The sum of its debits, of all currencies together."""
        return sum((line.amount for line in self.lines if line.side == "debit"), Decimal(0))


@dataclass(frozen=True)
class Fields:
    """What the arguments of the posting tools are called. An entry is a list `lines` of objects, or one pair of accounts with an amount.

    In a line either `side` says debit or credit and `amount` how much, or the fields `debit` and `credit` hold the amounts; in an entry
    without lines the fields `debit` and `credit` hold the accounts. `ref` is the field of the tool's answer that names the entry.
    `net`, `tax`, `gross`, `rate` (percent) and `country` are read for the tax rules where a call has them.
    """

    lines: str = "lines"
    account: str = "account"
    side: str = "side"
    debit: str = "debit"
    credit: str = "credit"
    amount: str = "amount"
    currency: str = "currency"
    day: str = "date"
    document: str = "document_id"
    ref: str = "entry"
    net: str = "net"
    tax: str = "tax"
    gross: str = "gross"
    rate: str = "rate"
    country: str = "country"


def entry_of(use: Use, names: Fields) -> Entry:
    """The entry that a call posts."""
    args = use.call.args or {}
    answer = use.value
    ref = str(answer.get(names.ref, "")) if isinstance(answer, Mapping) else ""
    day = day_of(args.get(names.day))
    problem = "" if args.get(names.day) is None or day else f"{names.day} {args.get(names.day)!r} is no date"
    lines: tuple[Line, ...] = ()
    try:
        lines = tuple(_lines(args, names))
    except ValueError as error:
        problem = str(error)
    return Entry(use.step, use.call.name, ref, str(args.get(names.document) or ""), day, lines, args, problem)


def day_of(value: Any) -> date | None:
    """The date at the start of a text such as `2024-05-31`; None where there is none."""
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None


def amount_of(value: Any) -> Decimal:
    """An exact amount. Raises ValueError where it is none; binary fractions are read as they are printed."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        msg = f"amount {value!r} is no number"
        raise ValueError(msg)
    try:
        amount = Decimal(str(value).replace(",", "")) if isinstance(value, str) else Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite():
        msg = f"amount {value!r} is no number"
        raise ValueError(msg)
    return amount


def _lines(args: Mapping[str, Any], names: Fields) -> Iterator[Line]:
    listed = args.get(names.lines)
    currency = str(args.get(names.currency) or "")
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        for each in listed:
            yield from _line(each, names, currency)
        return
    if args.get(names.amount) is None:
        msg = f"it has neither {names.lines} nor {names.amount}"
        raise ValueError(msg)
    amount = amount_of(args[names.amount])
    for side, name in (("debit", names.debit), ("credit", names.credit)):
        if args.get(name) not in (None, ""):
            yield Line(str(args[name]), side, amount, currency)


def _line(line: Any, names: Fields, currency: str) -> Iterator[Line]:
    if not isinstance(line, Mapping):
        msg = f"line {str(line)[:40]!r} is no object"
        raise ValueError(msg)
    account, currency = str(line.get(names.account) or ""), str(line.get(names.currency) or currency)
    if line.get(names.side) is not None:
        side = str(line[names.side]).casefold()
        yield Line(account, _SIDES.get(side, side), amount_of(line.get(names.amount)), currency)
        return
    for side, name in (("debit", names.debit), ("credit", names.credit)):
        if line.get(name) not in (None, "", 0):
            yield Line(account, side, amount_of(line[name]), currency)
