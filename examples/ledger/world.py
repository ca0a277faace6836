"""The ledger as a world: eleven tools with declared effects over the books of one task.

Posting a wrong entry is accepted, as in life; whether the books are right shows only in the reward at close. All state
is one immutable `Books`, so a snapshot costs nothing and no two copies can share a change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from counterplay.core.effects import Effect
from counterplay.core.nouns import Message, ToolSpec
from counterplay.examples.ledger.tasks import (
    CURRENCIES,
    MAX_MONTHS,
    PAYABLES,
    RATES,
    Document,
    Posting,
    Task,
    Vendor,
    convert,
    expected_postings,
    first_instalment,
    make_task,
)
from counterplay.replay.world import ToolError

SYSTEM = """You are an accounting agent in DE. Book each listed document once, check the trial balance, close the period.
Invoice: debit the expense account, credit account 90. Credit note: debit 90, credit the expense account.
Foreign currency: first convert to EUR at the document's day. Prepaid: split, book the first instalment only.
EU vendor outside DE: reverse_charge. Vendor outside the EU: import. Copy of a booked document: skip it.
Cancellation: reverse the entry it names."""

_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_TREATMENTS = ("domestic", "reverse_charge", "import")


def _tool(name: str, description: str, effect: str, **parameters: Mapping[str, Any]) -> ToolSpec:
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return ToolSpec.function(name, description, schema, Effect.parse(effect))


TOOLS: tuple[ToolSpec, ...] = (
    _tool("list_documents", "Documents to book.", "read(documents)"),
    _tool("get_document", "One document; amounts in cents.", "read(document:{document_id})", document_id=_TEXT),
    _tool("lookup_vendor", "Country and account of a vendor.", "read(vendor:{vendor_id})", vendor_id=_TEXT),
    _tool("lookup_account", "Expense account of a category.", "read(account:{category})", category=_TEXT),
    _tool("tax_rate", "Tax rate in percent.", "read(vendor:{vendor_id})", vendor_id=_TEXT, treatment={"enum": list(_TREATMENTS)}),
    _tool("convert_currency", "Convert to EUR.", "pure", amount=_NUMBER, currency=_TEXT, day=_NUMBER),
    _tool("split_instalments", "Split a prepaid amount.", "pure", amount=_NUMBER, months=_NUMBER),
    _tool(
        "post_entry",
        "Post an entry.",
        "write(books)",
        document_id=_TEXT,
        debit=_TEXT,
        credit=_TEXT,
        amount=_NUMBER,
        rate={"enum": [*RATES]},
    ),
    _tool("reverse_entry", "Take back an entry.", "write(books)", entry_id=_TEXT),
    _tool("trial_balance", "Totals of the books.", "read(books)"),
    _tool("close_period", "Close the period; final.", "write(books)"),
)


@dataclass(frozen=True, slots=True)
class Books:
    """All that changes: the entries in the order of posting, those taken back, and whether the period is closed."""

    entries: tuple[tuple[str, Posting], ...]
    reversed: frozenset[str] = frozenset()
    closed: bool = False

    @property
    def postings(self) -> list[Posting]:
        """What stands: every posting whose entry was not taken back."""
        return [posting for entry, posting in self.entries if entry not in self.reversed]


class Ledger:
    """One live set of books. `Ledger("train-0001")` is the task of that name; satisfies `counterplay.replay.world.World`."""

    tools: Sequence[ToolSpec] = TOOLS
    fingerprint = "ledger-1"

    def __init__(self, task_id: str) -> None:
        self._task: Task = make_task(task_id)
        self._books = Books(tuple(self._task.opening.items()))
        self.prompt: Sequence[Message] = (
            Message.system(SYSTEM),
            Message.user(f"Book ledger {self._task.number} and close it."),
        )

    @property
    def done(self) -> bool:
        return self._books.closed

    @property
    def reward(self) -> float:
        """1.0 where the period is closed and the books hold exactly what they should, else 0.0."""
        right = Counter(self._books.postings) == Counter(expected_postings(self._task))
        return float(self._books.closed and right)

    def snapshot(self) -> object:
        return self._books

    def restore(self, snapshot: object) -> None:
        """Go back to what `snapshot()` of this task returned."""
        self._books = cast("Books", snapshot)

    def copy(self) -> Ledger:
        twin = object.__new__(Ledger)
        twin.__dict__.update(self.__dict__)
        return twin

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Execute one tool; the result is JSON text. Raises ToolError with a text for the agent."""
        spec = next((tool for tool in TOOLS if tool.name == name), None)
        if spec is None:
            raise ToolError(f"error: unknown tool {name}")
        if self._books.closed:
            raise ToolError("error: the period is closed")
        _check(spec, arguments)
        return json.dumps(getattr(self, f"_{name}")(**arguments))

    def _list_documents(self) -> list[str]:
        return [document.id for document in self._task.documents]

    def _get_document(self, document_id: str) -> dict[str, Any]:
        return _document_view(self._document(document_id))

    def _lookup_vendor(self, vendor_id: str) -> dict[str, Any]:
        vendor = self._vendor(vendor_id)
        where = {"account": vendor.account} if vendor.account else {"category": vendor.category}
        return {"country": vendor.country, **where}

    def _lookup_account(self, category: str) -> dict[str, Any]:
        if category not in self._task.accounts:
            raise ToolError(f"error: unknown category {category}")
        return {"account": self._task.accounts[category]}

    def _tax_rate(self, vendor_id: str, treatment: str) -> dict[str, Any]:
        vendor = self._vendor(vendor_id)
        if treatment not in _TREATMENTS:
            raise ToolError(f"error: unknown treatment {treatment}")
        return {"rate": vendor.rate if treatment == "domestic" else 0}

    def _convert_currency(self, amount: int, currency: str, day: int) -> dict[str, Any]:
        if currency not in CURRENCIES:
            raise ToolError(f"error: no rate for {currency}")
        return {"amount": convert(amount, currency, day)}

    def _split_instalments(self, amount: int, months: int) -> dict[str, Any]:
        if not 2 <= months <= MAX_MONTHS:
            raise ToolError(f"error: months must be 2 to {MAX_MONTHS}")
        return {"first": first_instalment(amount, months), "later": amount // months}

    def _post_entry(self, document_id: str, debit: str, credit: str, amount: int, rate: int) -> dict[str, Any]:
        self._document(document_id)
        known = {PAYABLES, *self._task.accounts.values()}
        unknown = [account for account in (debit, credit) if account not in known]
        if unknown:
            raise ToolError(f"error: unknown account {unknown[0]}")
        if debit == credit:
            raise ToolError("error: debit and credit are the same account")
        if amount <= 0:
            raise ToolError("error: the amount must be positive")
        if rate not in RATES:
            raise ToolError(f"error: no tax rate of {rate} percent")
        entries = self._books.entries
        entry = f"e{int(entries[-1][0][1:]) + 1}"
        self._books = replace(self._books, entries=(*entries, (entry, Posting(document_id, debit, credit, amount, rate))))
        return {"entry": entry}

    def _reverse_entry(self, entry_id: str) -> dict[str, Any]:
        if entry_id not in dict(self._books.entries):
            raise ToolError(f"error: unknown entry {entry_id}")
        if entry_id in self._books.reversed:
            raise ToolError(f"error: entry {entry_id} is already reversed")
        self._books = replace(self._books, reversed=self._books.reversed | {entry_id})
        return {"reversed": entry_id}

    def _trial_balance(self) -> dict[str, Any]:
        total = sum(posting.amount for posting in self._books.postings)
        return {"debit": total, "credit": total}

    def _close_period(self) -> dict[str, Any]:
        self._books = replace(self._books, closed=True)
        return {"closed": True}

    def _document(self, document_id: str) -> Document:
        for document in self._task.documents:
            if document.id == document_id:
                return document
        raise ToolError(f"error: unknown document {document_id}")

    def _vendor(self, vendor_id: str) -> Vendor:
        if vendor_id not in self._task.vendors:
            raise ToolError(f"error: unknown vendor {vendor_id}")
        return self._task.vendors[vendor_id]


def _document_view(document: Document) -> dict[str, Any]:
    """What the agent sees: fields that say nothing are left out."""
    if document.kind == "cancellation":
        return {"kind": document.kind, "entry": document.entry}
    view: dict[str, Any] = {"kind": document.kind, "vendor": document.vendor, "day": document.day}
    view |= {"amount": document.amount, "currency": document.currency}
    if document.months > 1:
        view["prepaid_months"] = document.months
    if document.copy_of:
        view["copy_of"] = document.copy_of
    return view


def _check(spec: ToolSpec, arguments: Mapping[str, Any]) -> None:
    properties: Mapping[str, Mapping[str, Any]] = spec.parameters["properties"]
    for name in properties:
        if name not in arguments:
            raise ToolError(f"error: {spec.name} needs {name}")
    for name, value in arguments.items():
        if name not in properties:
            raise ToolError(f"error: {spec.name} takes no {name}")
        numeric = properties[name] == _NUMBER or name == "rate"
        if not isinstance(value, int if numeric else str) or isinstance(value, bool):
            raise ToolError(f"error: {name} must be {'an integer' if numeric else 'a string'}")
