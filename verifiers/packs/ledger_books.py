"""Double entry for any bookkeeping agent: do its entries balance, fall into open periods, carry the right tax, and have their approval?

Unlike `LedgerRules`, which knows one trade's documents, this pack reads entries alone. A wrong entry that can still be reversed weighs
`corrected`, as it does once it was; one that stands when the period is closed or the work is over weighs all of its rule's weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from counterplay.core.nouns import Score, Step, Trajectory
from counterplay.verifiers.packs.base import Finding, Fold, Index, Pack, Use, matches, uses_of
from counterplay.verifiers.packs.ledger_entries import Entry, Fields, Line, amount_of, day_of, entry_of

__all__ = ["Approval", "DoubleEntry", "Entry", "Fields", "Line", "Period", "Tax"]


@dataclass(frozen=True)
class Period:
    """Days, both included, that may be booked on. The days of entries are ISO dates."""

    first: date
    last: date


@dataclass(frozen=True)
class Tax:
    """The rates in percent that may be used, by country (`*` for all others; empty allows any rate), and the accounts of tax.

    Where a call has net and rate, tax must be net * rate, and gross the sum of both, `within` so much of the currency for rounding;
    what is booked on `accounts` must then be the tax.
    """

    rates: tuple[tuple[str, tuple[str, ...]], ...] = ()
    accounts: tuple[str, ...] = ()
    within: str = "0.01"


@dataclass(frozen=True)
class Approval:
    """Entries of at least `least` need an earlier call of `tool` for the same document, answered without error.

    Where its answer has the field `status`, it must be one of `approved`; where both name a person (`by` in the approval's answer or
    arguments, `poster` in the entry's), nobody approves what they post.
    """

    tool: str
    least: str = "0"
    status: str = "status"
    approved: tuple[str, ...] = ("approved",)
    by: str = "approved_by"
    poster: str = "posted_by"


@dataclass(frozen=True, slots=True)
class _Books:
    entries: tuple[tuple[Entry, tuple[Finding, ...]], ...] = ()  # those with something wrong and not reversed
    fixed: tuple[Finding, ...] = ()
    final: tuple[Finding, ...] = ()
    documents: Index[str] = Index()  # noqa: RUF009  what stands, by document
    posted: Index[str] = Index()  # noqa: RUF009  entries that stand, by reference: their document
    approvals: Index[Use] = Index()  # noqa: RUF009
    closed_at: int | None = None
    closed_days: tuple[tuple[date | None, date | None], ...] = ()
    checked: bool = False


@dataclass(frozen=True, eq=False)
class DoubleEntry(Pack):
    """A process verifier: `decay` to the power of what is wrong in the books; no opinion before the first step.

    Tools are names or patterns: `post` books, `reverse` takes back the entry its argument `reverse_ref` names, `close` closes
    (the days from `first` to `last` of its arguments, or everything), `balance` shows the totals; empty where the agent has none.
    Rules: every entry balances by currency, to the last digit, has two sides, positive amounts and, with `accounts` (patterns), known
    ones; with `periods`, its day is in one; it was not closed; `tax`; `approvals`; a document is booked once; nothing is booked or
    reversed after the close of everything. With `must_close` the end without
    closing is wrong, and closing without a look at `balance`. `title` tells several settings apart in scores.
    """

    post: tuple[str, ...] = ("post_*", "book_*", "create_journal*")
    reverse: tuple[str, ...] = ("reverse_*", "void_*")
    reverse_ref: str = "entry_id"
    close: tuple[str, ...] = ("close_*",)
    balance: tuple[str, ...] = ("trial_balance",)
    fields: Fields = field(default_factory=Fields)
    accounts: tuple[str, ...] = ()
    periods: tuple[Period, ...] = ()
    tax: Tax | None = None
    approvals: tuple[Approval, ...] = ()
    must_close: bool = False
    corrected: float = 0.25
    decay: float = 0.5
    title: str = "double_entry"

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read the settings from a TOML file. Raises UserError with the line of what is wrong."""
        from counterplay.verifiers.packs.ledger_toml import parse
        from counterplay.verifiers.packs.settings import read

        return cls(**{"title": Path(path).stem, **parse(read(path), str(path))})

    @property
    def name(self) -> str:  # type: ignore[override]
        """`double_entry:` and the title; `double_entry` without one."""
        return "double_entry" if self.title == "double_entry" else f"double_entry:{self.title}"

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        return self.verdict(self.findings(trajectory), "the books are in order", self.decay)

    def findings(self, trajectory: Trajectory) -> list[Finding]:
        """What is wrong, in step order, each with what it weighs by now."""
        books = self._fold(trajectory)
        over = trajectory.finished or books.closed_at is not None
        standing = [finding for _, found in books.entries for finding in found]
        if not over and self.reverse:
            standing = [replace(finding, weight=finding.weight * self.corrected) for finding in standing]
        found = [*standing, *books.fixed, *books.final]
        if self.must_close and trajectory.finished and books.closed_at is None and not books.closed_days:
            found.append(Finding(len(trajectory) - 1, "it ended without closing", 1.0, "close"))
        return sorted(found, key=lambda finding: finding.step)

    @cached_property
    def _fold(self) -> Fold[_Books]:
        return Fold(lambda _: _Books(), self._add)

    def _add(self, books: _Books, step: Step, index: int) -> _Books:
        for use in uses_of(step, index):
            name = use.call.name
            if not use.done:
                continue
            if matches(name, self.reverse):
                books = self._reversed(books, use)
            elif matches(name, self.post):
                books = self._posted(books, use)
            elif matches(name, self.close):
                books = self._closed(books, use)
            if matches(name, self.balance):
                books = replace(books, checked=True)
            document = str((use.call.args or {}).get(self.fields.document) or "")
            given = [((number, document), use) for number, each in enumerate(self.approvals) if fnmatchcase(name, each.tool)]
            books = replace(books, approvals=books.approvals.put(given))
        return books

    def _posted(self, books: _Books, use: Use) -> _Books:
        entry = entry_of(use, self.fields)
        found = tuple(Finding(use.step, f"{use.call.name}: {reason}", 1.0, kind) for kind, reason in self._wrong(books, entry))
        if books.closed_at is not None:
            books = replace(books, final=(*books.final, Finding(use.step, f"{use.call.name} after the close", 1.0, "period")))
        documents = books.documents.put([(entry.document, entry.ref or "?")]) if entry.document else books.documents
        posted = books.posted.put([(entry.ref, entry.document)]) if entry.ref else books.posted
        entries = (*books.entries, (entry, found)) if found else books.entries
        return replace(books, entries=entries, documents=documents, posted=posted)

    def _reversed(self, books: _Books, use: Use) -> _Books:
        ref = str((use.call.args or {}).get(self.reverse_ref) or "")
        if books.closed_at is not None:
            return replace(books, final=(*books.final, Finding(use.step, f"{use.call.name} after the close", 1.0, "period")))
        taken = [(entry, found) for entry, found in books.entries if entry.ref and entry.ref == ref]
        fixed = [replace(finding, weight=finding.weight * self.corrected) for _, found in taken for finding in found]
        document = books.posted.get(ref)
        documents = books.documents.put([(document, "")]) if document else books.documents
        kept = tuple((entry, found) for entry, found in books.entries if not entry.ref or entry.ref != ref)
        return replace(books, entries=kept, fixed=(*books.fixed, *fixed), documents=documents)

    def _closed(self, books: _Books, use: Use) -> _Books:
        args = use.call.args or {}
        first, last = day_of(args.get("first")), day_of(args.get("last"))
        if self.must_close and self.balance and not books.checked:
            told = f"{use.call.name} without {' or '.join(self.balance)} before it"
            books = replace(books, final=(*books.final, Finding(use.step, told, 1.0, "close")))
        if first or last:
            return replace(books, closed_days=(*books.closed_days, (first, last)))
        return replace(books, closed_at=use.step)

    def _wrong(self, books: _Books, entry: Entry) -> Iterator[tuple[str, str]]:
        """What is wrong with an entry, by kind."""
        if entry.problem:
            yield "entry", entry.problem
            return
        yield from _unbalanced(entry)
        unknown = sorted({line.account for line in entry.lines if self.accounts and not matches(line.account, self.accounts)})
        if unknown:
            yield "account", f"unknown account {', '.join(unknown)}"
        yield from self._untimely(books, entry)
        if self.tax is not None:
            yield from self._mistaxed(entry, self.tax)
        for number, approval in enumerate(self.approvals):
            given = books.approvals.get((number, entry.document)) if entry.document else None
            problem = _unapproved(entry, approval, given)
            if problem:
                yield "approval", problem
        if entry.document and books.documents.get(entry.document):
            yield "twice", f"{entry.document} is booked already, as {books.documents.get(entry.document)}"

    def _untimely(self, books: _Books, entry: Entry) -> Iterator[tuple[str, str]]:
        if self.periods and entry.day is None:
            yield "period", f"it has no {self.fields.day}"
        elif self.periods and entry.day and not any(period.first <= entry.day <= period.last for period in self.periods):
            yield "period", f"{entry.day} is in no open period"
        for first, last in books.closed_days:
            if entry.day and (first is None or first <= entry.day) and (last is None or entry.day <= last):
                yield "period", f"{entry.day} is closed"

    def _mistaxed(self, entry: Entry, tax: Tax) -> Iterator[tuple[str, str]]:
        names, within = self.fields, Decimal(tax.within)
        try:
            given = [entry.args.get(name) for name in (names.net, names.tax, names.gross, names.rate)]
            net, paid, gross, rate = (None if each is None else amount_of(each) for each in given)
        except ValueError as error:
            yield "tax", str(error)
            return
        country = str(entry.args.get(names.country) or "")
        allowed = dict(tax.rates).get(country, dict(tax.rates).get("*"))
        if rate is not None and allowed and rate not in [Decimal(each) for each in allowed]:
            yield "tax", f"tax rate {rate} in {country or 'no country'}, wanted {' or '.join(allowed)}"
        if net is not None and rate is not None and paid is not None and abs(net * rate / 100 - paid) > within:
            yield "tax", f"tax {paid} on {net} at {rate} %, wanted {(net * rate / 100).quantize(Decimal('0.01'))}"
        if net is not None and paid is not None and gross is not None and abs(net + paid - gross) > within:
            yield "tax", f"gross {gross}, wanted {net + paid}"
        on_tax = [line for line in entry.lines if matches(line.account, tax.accounts)]
        booked = sum((line.amount if line.side == "debit" else -line.amount for line in on_tax), Decimal(0))
        if paid is not None and tax.accounts and abs(abs(booked) - abs(paid)) > within:
            yield "tax", f"{abs(booked)} booked on {' or '.join(tax.accounts)}, wanted the tax of {paid}"


def _unapproved(entry: Entry, approval: Approval, given: Use | None) -> str | None:
    if entry.total < Decimal(approval.least):
        return None
    if given is None:
        return f"{entry.total} of {entry.document or 'no document'} is booked without {approval.tool} before it"
    told: dict[str, Any] = {**(given.call.args or {}), **(given.value if isinstance(given.value, dict) else {})}
    if approval.status in told and str(told[approval.status]).casefold() not in approval.approved:
        return f"{entry.document} is {told[approval.status]}, wanted {' or '.join(approval.approved)}"
    poster = entry.args.get(approval.poster)
    if poster is not None and told.get(approval.by) == poster:
        return f"{poster} approved what {poster} posted"
    return None


def _unbalanced(entry: Entry) -> Iterator[tuple[str, str]]:
    sides = {line.side for line in entry.lines}
    if not entry.lines or not sides <= {"debit", "credit"} or not all(line.account for line in entry.lines):
        yield "entry", "a line lacks its account or its side"
        return
    if len(sides) < 2:
        yield "balance", f"it has no {'credit' if 'debit' in sides else 'debit'}"
    if any(line.amount <= 0 for line in entry.lines):
        yield "balance", "an amount is not positive"
    if len({line.account for line in entry.lines}) < 2:
        yield "balance", f"both sides are {entry.lines[0].account}"
    for currency in sorted({line.currency for line in entry.lines}):
        lines = [line for line in entry.lines if line.currency == currency]
        debits, credits_ = (sum((line.amount for line in lines if line.side == side), Decimal(0)) for side in ("debit", "credit"))
        if len(sides) == 2 and debits != credits_:
            yield "balance", f"debits {debits} and credits {credits_}{' ' + currency if currency else ''} differ"
