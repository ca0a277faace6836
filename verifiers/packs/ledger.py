"""The double-entry ledger pack: does an accounting agent keep the books as its own look-ups say it must?

Every rule compares what was posted with what the agent was shown before, so it needs no ground truth and applies to any
prefix. Tool and field names are a `Conventions`; the rules are the trade's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.nouns import Score, Trajectory, parse_json_object

EU = frozenset("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split())  # noqa: SIM905


@dataclass(frozen=True)
class Conventions:
    """What the agent's tools are called, and where the books are kept. Tools an agent lacks are never matched."""

    list_documents: str = "list_documents"
    document: str = "get_document"
    vendor: str = "lookup_vendor"
    account: str = "lookup_account"
    tax: str = "tax_rate"
    convert: str = "convert_currency"
    split: str = "split_instalments"
    post: str = "post_entry"
    reverse: str = "reverse_entry"
    balance: str = "trial_balance"
    close: str = "close_period"
    home_currency: str = "EUR"
    home_country: str = "DE"
    payables: str = "90"


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule broken at `step` (0-based) and not put right since."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """One tool call and its answer: `result` where that is a JSON object or list, else None with the text in `refusal`.

    Both are None where no answer was logged.
    """

    step: int
    tool: str
    args: Mapping[str, Any]
    result: Any
    refusal: str | None = None


@dataclass
class Books:
    """What a trajectory shows, by kind. Keys are ids; postings that were reversed are gone."""

    listed: list[str] = field(default_factory=list)
    documents: dict[str, Event] = field(default_factory=dict)
    vendors: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    accounts: dict[str, str] = field(default_factory=dict)
    tax: dict[str, Event] = field(default_factory=dict)
    derived: dict[tuple[str, str], Any] = field(default_factory=dict)
    postings: dict[str, Event] = field(default_factory=dict)
    reversed: set[str] = field(default_factory=set)
    balanced_at: int | None = None
    closed_at: int | None = None


class LedgerRules:
    """A process verifier: 0.5 to the power of the violations that stand, so 1 is clean books; no opinion before the first step.

    The reason names the first violation and its step. `violations` gives them all.
    """

    name = "ledger"
    version = "1"

    def __init__(self, conventions: Conventions | None = None) -> None:
        self.conventions = conventions or Conventions()
        self.fingerprint = f"{self.name}@{self.version}({self.conventions})"

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        found = self.violations(trajectory)
        reason = "clean books" if not found else f"step {found[0].step}: {found[0].reason}"
        return Score(0.5 ** len(found), reason, self.name, self.version)

    def violations(self, trajectory: Trajectory) -> list[Violation]:
        """Every violation that stands at the end of `trajectory`, in step order."""
        conventions, books, found = self.conventions, Books(), []
        for event in _events(trajectory):
            if event.refusal is not None:
                found.append(Violation(event.step, f"{event.tool} was refused: {event.refusal[:80]}"))
            elif books.closed_at is not None and event.tool in (conventions.post, conventions.reverse):
                found.append(Violation(event.step, f"{event.tool} after the period was closed"))
            _record(conventions, books, event)
        if trajectory.finished and books.closed_at is None:
            found.append(Violation(len(trajectory) - 1, "it ended without closing the period"))
        found += _posted(conventions, books)
        found += _taxed(conventions, books)
        found += _closed(conventions, books)
        return sorted(found, key=lambda violation: violation.step)


def _events(trajectory: Trajectory) -> Iterator[Event]:
    """Calls and their answers, paired in order within a step (ids may repeat in a trajectory)."""
    for index, step in enumerate(trajectory.steps):
        answers = iter(message for message in step.observations if message.role == "tool")
        for call in step.action.tool_calls:
            answer = next(answers, None)
            result = None if answer is None else _parsed(answer.content_text)
            refusal = answer.content_text if answer is not None and result is None else None
            yield Event(index, call.name, call.args or {}, result, refusal)


def _parsed(text: str) -> Any:
    wrapped = parse_json_object(f'{{"value":{text}}}')
    value = None if wrapped is None else wrapped["value"]
    return value if isinstance(value, dict | list) else None


def _record(c: Conventions, books: Books, event: Event) -> None:
    args, result = event.args, event.result
    if event.tool == c.list_documents and isinstance(result, list):
        books.listed = [str(item) for item in result]
    if not isinstance(result, dict):
        return
    if event.tool == c.document:
        books.documents[str(args.get("document_id"))] = event
    elif event.tool == c.vendor:
        books.vendors[str(args.get("vendor_id"))] = result
    elif event.tool == c.account:
        books.accounts[str(args.get("category"))] = str(result.get("account"))
    elif event.tool == c.tax:
        books.tax[str(args.get("vendor_id"))] = event
    elif event.tool == c.convert:
        books.derived["converted", f"{args.get('amount')} {args.get('currency')} {args.get('day')}"] = result.get("amount")
    elif event.tool == c.split:
        books.derived["split", f"{args.get('amount')} {args.get('months')}"] = result.get("first")
    elif event.tool == c.post:
        books.postings[str(result.get("entry"))] = event
    elif event.tool == c.reverse:
        books.postings.pop(str(args.get("entry_id")), None)
        books.reversed.add(str(args.get("entry_id")))
    elif event.tool == c.balance:
        books.balanced_at = event.step
    elif event.tool == c.close:
        books.closed_at = event.step


def _posted(c: Conventions, books: Books) -> Iterator[Violation]:
    """Each standing posting against its document: booked once, the right sides, account, amount and tax."""
    seen: set[str] = set()
    for posting in books.postings.values():
        document_id = str(posting.args.get("document_id"))
        read = books.documents.get(document_id)
        if document_id in seen:
            yield Violation(posting.step, f"{document_id} is booked twice")
        elif read is None:
            yield Violation(posting.step, f"{document_id} was booked without being read")
        else:
            problem = _problem(c, books, posting.args, read.result)
            if problem:
                yield Violation(posting.step, f"{document_id}: {problem}")
        seen.add(document_id)


def _problem(c: Conventions, books: Books, posted: Mapping[str, Any], document: Mapping[str, Any]) -> str | None:
    if document.get("copy_of"):
        return f"it is a copy of {document['copy_of']}, which is booked"
    vendor = books.vendors.get(str(document.get("vendor")))
    if vendor is None:
        return "it was booked before its vendor was looked up"
    account = vendor.get("account") or books.accounts.get(str(vendor.get("category")))
    wanted = (c.payables, account) if document.get("kind") == "credit_note" else (account, c.payables)
    if (posted.get("debit"), posted.get("credit")) != wanted:
        sides = f"debit {posted.get('debit')} credit {posted.get('credit')}"
        return f"{sides}, wanted debit {wanted[0]} credit {wanted[1]} for a {document.get('kind')}"
    return _amount_problem(c, books, posted, document)


def _amount_problem(c: Conventions, books: Books, posted: Mapping[str, Any], document: Mapping[str, Any]) -> str | None:
    amount = document.get("amount")
    if document.get("currency", c.home_currency) != c.home_currency:
        amount = books.derived.get(("converted", f"{amount} {document['currency']} {document.get('day')}"))
        if amount is None:
            return f"{document['currency']} was booked without converting it"
    if document.get("prepaid_months"):
        amount = books.derived.get(("split", f"{amount} {document['prepaid_months']}"))
        if amount is None:
            return "a prepaid amount was booked without splitting it"
    if posted.get("amount") != amount:
        return f"amount {posted.get('amount')}, wanted {amount}"
    tax = books.tax.get(str(document.get("vendor")))
    if tax is None:
        return "it was booked before its tax rate was looked up"
    return None if posted.get("rate") == tax.result.get("rate") else f"tax rate {posted.get('rate')}, wanted {tax.result.get('rate')}"


def _taxed(c: Conventions, books: Books) -> Iterator[Violation]:
    """The latest treatment asked for each vendor must be that of its country."""
    for vendor_id, event in books.tax.items():
        country = books.vendors.get(vendor_id, {}).get("country")
        if country is None:
            continue
        wanted = "domestic" if country == c.home_country else "reverse_charge" if country in EU else "import"
        if event.args.get("treatment") != wanted:
            yield Violation(event.step, f"tax of {vendor_id} in {country} as {event.args.get('treatment')}, wanted {wanted}")


def _closed(c: Conventions, books: Books) -> Iterator[Violation]:
    """At close every listed document is booked or rightly left out, and the trial balance was looked at."""
    if books.closed_at is None:
        return
    if books.balanced_at is None:
        yield Violation(books.closed_at, f"the period was closed without {c.balance}")
    booked = {str(posting.args.get("document_id")) for posting in books.postings.values()}
    for document_id in books.listed:
        read = books.documents.get(document_id)
        document: Mapping[str, Any] = {} if read is None else read.result
        settled = document.get("copy_of") or document.get("entry") in books.reversed
        if document_id not in booked and not settled:
            yield Violation(books.closed_at, f"the period was closed with {document_id} open")
