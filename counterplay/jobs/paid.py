"""What the policy of one unit was really asked and answered: counted from what goes into the unit's journal, once, before it is used.

Whatever becomes of the unit, what is counted is what the journal has. See `Store.paid_since` for what a worker that is gone can't tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import loads
from counterplay.core.journal import delivered
from counterplay.core.nouns import Usage
from counterplay.core.protocols import requests

if TYPE_CHECKING:
    from counterplay.core.journal import Journal
    from counterplay.desk import Desk

NAMES = ("calls", "input_tokens", "output_tokens", "cached_tokens", "cost_usd")
"""What of a tally is counted by the journal."""


class Paid:
    """Counts for one attempt at one unit. `price` is the policy's, for requests whose answers do not say what they cost."""

    def __init__(self, price: Any = None) -> None:
        self._price = price
        self._each: Counter[str] = Counter()
        self._together: Counter[str] = Counter()
        self._in_parts = False

    def desk(self, desk: Desk) -> Desk:
        """`desk`, with journals that are counted."""
        return _CountedDesk(desk, self)

    @property
    def live_calls(self) -> int:
        """Proposals that were really made."""
        return int(self._counted["draws"])

    @property
    def tally(self) -> dict[str, float]:
        """Amounts by `NAMES`; what is nothing is left out."""
        counted = self._counted
        return {name: counted[name] for name in NAMES if counted[name]}

    def found(self) -> None:
        """A part of a proposal was in the journal already."""
        self._in_parts = True

    def proposed(self, proposals: list[dict[str, Any]]) -> None:
        """A proposal was answered. One of several draws may have been made of requests, which are counted themselves."""
        used = [proposal["usage"] for proposal in proposals]
        amounts = {name: sum(one[name] or 0 for one in used) for name in NAMES[1:]}
        (self._each if len(proposals) == 1 else self._together).update({"draws": len(proposals), "calls": 1, **amounts})

    def requested(self, body: Mapping[str, Any]) -> None:
        """One of the requests for a proposal was answered."""
        self._in_parts = True
        told = body.get("usage") or {}
        cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        usage = Usage(told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0, cached)
        cost = 0.0 if self._price is None else self._price.of(usage)
        amounts = (1, usage.input_tokens, usage.output_tokens, usage.cached_tokens, cost)
        self._each.update({"draws": 1, **dict(zip(NAMES, amounts, strict=True))})

    @property
    def _counted(self) -> Counter[str]:
        return self._each if self._in_parts else self._each + self._together


class _CountedDesk:
    """A desk whose journals are counted."""

    def __init__(self, desk: Desk, paid: Paid) -> None:
        self._desk, self._paid = desk, paid
        self.held, self.search, self.siblings, self.watch = desk.held, desk.search, desk.siblings, desk.watch

    def journal(self, scope: str) -> Journal:
        return _CountedJournal(self._desk.journal(scope), self._paid)


class _CountedJournal:
    """One scope, with account of what is put there."""

    def __init__(self, journal: Journal, paid: Paid) -> None:
        self._journal, self._paid = journal, paid
        if hasattr(journal, "delivered"):
            self.delivered = lambda: delivered(journal)

    def get(self, key: str) -> str | None:
        known = self._journal.get(key)
        if known is not None and requests.get() is not None:
            self._paid.found()
        return known

    def put(self, key: str, kind: str, answer: str) -> None:
        self._journal.put(key, kind, answer)
        if kind == "propose":
            self._paid.proposed(loads(answer))
        elif kind == "request":
            self._paid.requested(loads(answer))
