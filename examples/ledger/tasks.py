"""The tasks of the accounting agent: a handful of documents, made from the task's name alone, and how each is booked rightly.

Five of the things a document can bring are pitfalls: the wrong way of booking it is accepted in silence. A document has
at most one, and nearly half of all tasks have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal, TypeAlias

Pitfall: TypeAlias = Literal["currency", "reverse_charge", "credit_note", "prepaid", "copy"]
PITFALLS: tuple[Pitfall, ...] = ("currency", "reverse_charge", "credit_note", "prepaid", "copy")

HOME = "DE"
EU = ("FR", "NL", "AT", "ES")
OVERSEAS = ("US", "GB", "CH")
CURRENCIES = ("USD", "GBP", "CHF")
CATEGORIES = ("travel", "rent", "software", "energy")
RATES = (19, 7, 0)
PAYABLES = "90"
MAX_MONTHS = 6


@dataclass(frozen=True, slots=True)
class Vendor:
    """`rate` is the tax in percent on what the vendor sells at home. `account` is empty where the category decides."""

    country: str
    rate: int
    account: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """`amount` is gross, in cents of `currency`; `months` is 1 unless the amount is prepaid for several.

    `entry` is the entry a cancellation takes back, `copy_of` the booked document a copy repeats; both mostly empty.
    """

    id: str
    kind: Literal["invoice", "credit_note", "cancellation"]
    vendor: str = ""
    day: int = 1
    amount: int = 0
    currency: str = "EUR"
    months: int = 1
    copy_of: str = ""
    entry: str = ""


@dataclass(frozen=True, slots=True)
class Posting:
    """What an entry says. `amount` is gross, in euro cents; `rate` is the tax in percent contained in it."""

    document: str
    debit: str
    credit: str
    amount: int
    rate: int


@dataclass(frozen=True)
class Task:
    """`opening` holds what was booked before, entry id to posting; `pitfalls` names the documents that have one."""

    id: str
    number: str
    documents: tuple[Document, ...]
    vendors: Mapping[str, Vendor]
    accounts: Mapping[str, str]
    opening: Mapping[str, Posting]
    pitfalls: Mapping[str, Pitfall]


def tasks(split: str, n: int) -> list[str]:
    """The names of the first `n` tasks of a split, such as `train` or `heldout`. Different names share no content."""
    return [f"{split}-{i:04d}" for i in range(1, n + 1)]


def convert(amount: int, currency: str, day: int) -> int:
    """Euro cents for `amount` cents of `currency` at the rate of that day of the period."""
    base = {"EUR": 1000, "USD": 910, "GBP": 1170, "CHF": 1040}[currency]
    drift = 0 if currency == "EUR" else (day * 7 + len(CURRENCIES) * day * day) % 41 - 20
    return round(amount * (base + drift) / 1000)


def first_instalment(amount: int, months: int) -> int:
    """The first of `months` equal parts; it carries what does not divide."""
    return amount - (months - 1) * (amount // months)


def treatment(country: str) -> str:
    """How tax falls on a purchase from `country`: domestic, reverse_charge (the rest of the EU) or import."""
    return "domestic" if country == HOME else "reverse_charge" if country in EU else "import"


def expected_postings(task: Task) -> list[Posting]:
    """The ground truth: what must stand in the books at close. For verification only; the agent never sees it."""
    cancelled = {document.entry for document in task.documents if document.entry}
    kept = [posting for entry, posting in task.opening.items() if entry not in cancelled]
    return kept + [_posting(task, d) for d in task.documents if d.kind != "cancellation" and not d.copy_of]


def _posting(task: Task, document: Document) -> Posting:
    vendor = task.vendors[document.vendor]
    amount = first_instalment(convert(document.amount, document.currency, document.day), document.months)
    rate = vendor.rate if treatment(vendor.country) == "domestic" else 0
    account = vendor.account or task.accounts[vendor.category]
    debit, credit = (PAYABLES, account) if document.kind == "credit_note" else (account, PAYABLES)
    return Posting(document.id, debit, credit, amount, rate)


def make_task(task_id: str) -> Task:
    """The task of that name, the same on every machine."""
    rng = Random(f"ledger/{task_id}")
    pitfalls: list[Pitfall] = rng.sample(PITFALLS, rng.choices((0, 1, 2, 3), (45, 33, 17, 5))[0])
    size = max(rng.choices((2, 3, 4), (40, 40, 20))[0], len(pitfalls), 3 if "copy" in pitfalls else 0)
    plan: list[Pitfall | None] = [*pitfalls, *[None] * (size - len(pitfalls))]
    rng.shuffle(plan)
    ids = [str(i) for i in rng.sample(range(10, 100), 2 * size + 4)]
    accounts = dict(zip(CATEGORIES, (str(a) for a in rng.sample(range(10, 80), len(CATEGORIES))), strict=True))
    opening = _opening(rng, ids[2 * size :], list(accounts.values()))
    documents: list[Document] = []
    vendors: dict[str, Vendor] = {}
    marked: dict[str, Pitfall] = {}
    for pitfall, number, vendor_number in zip(plan, ids, ids[size:], strict=False):
        may_cancel = pitfall is None and size > 2 and all(d.kind != "cancellation" for d in documents)
        if may_cancel and rng.random() < 0.2:
            documents.append(Document(f"d{number}", "cancellation", entry=rng.choice(list(opening))))
            continue
        vendors[f"v{vendor_number}"] = _vendor(rng, pitfall, list(accounts.values()))
        documents.append(_document(rng, pitfall, number, vendor_number, [p.document for p in opening.values()]))
        if pitfall is not None:
            marked[f"d{number}"] = pitfall
    number = str(int.from_bytes(blake2b(task_id.encode(), digest_size=8).digest()) % 900_000_000 + 100_000_000)
    return Task(task_id, number, tuple(documents), vendors, accounts, opening, marked)


def _opening(rng: Random, numbers: list[str], accounts: list[str]) -> dict[str, Posting]:
    first = rng.randrange(10, 80)
    return {
        f"e{first + i}": Posting(f"d{number}", rng.choice(accounts), PAYABLES, rng.randrange(300, 9900), rng.choice(RATES[:2]))
        for i, number in enumerate(numbers)
    }


def _vendor(rng: Random, pitfall: Pitfall | None, accounts: list[str]) -> Vendor:
    if pitfall == "reverse_charge":
        country = rng.choice(EU)
    else:
        country = rng.choice(OVERSEAS) if pitfall is None and rng.random() < 0.15 else HOME
    named = rng.random() < 0.25
    return Vendor(country, rng.choice(RATES[:2]), "" if named else rng.choice(accounts), rng.choice(CATEGORIES) if named else "")


def _document(rng: Random, pitfall: Pitfall | None, number: str, vendor_number: str, booked: list[str]) -> Document:
    return Document(
        id=f"d{number}",
        kind="credit_note" if pitfall == "credit_note" else "invoice",
        vendor=f"v{vendor_number}",
        day=rng.randrange(10, 31),
        amount=rng.randrange(300, 10_000),
        currency=rng.choice(CURRENCIES) if pitfall == "currency" else "EUR",
        months=rng.randrange(2, MAX_MONTHS + 1) if pitfall == "prepaid" else 1,
        copy_of=rng.choice(booked) if pitfall == "copy" else "",
    )
