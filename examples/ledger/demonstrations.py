"""Flawed demonstrations: a bookkeeper who works carefully but handles each pitfall rightly only now and then.

What a model learns from them is systematic: its most likely action at a pitfall is the mistake, while the right action
keeps a fair probability, to be found by sampling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any

from counterplay.examples.ledger.tasks import HOME, PAYABLES, Pitfall, treatment
from counterplay.examples.ledger.world import Ledger

SKILL: Mapping[Pitfall, float] = MappingProxyType(
    {"currency": 0.25, "reverse_charge": 0.25, "credit_note": 0.25, "prepaid": 0.25, "copy": 0.25}
)
"""The probability of doing the right thing at each pitfall."""

PERFECT: Mapping[Pitfall, float] = MappingProxyType(dict.fromkeys(SKILL, 1.0))


@dataclass(frozen=True)
class Demonstration:
    """`messages` in OpenAI form with arguments as objects; `mishandled` the pitfalls fallen into; `reward` 0.0 or 1.0."""

    messages: list[dict[str, Any]]
    mishandled: frozenset[Pitfall]
    reward: float


def demonstrate(task_id: str, rng: Random, skill: Mapping[Pitfall, float] = SKILL) -> Demonstration:
    """Book the task from the first call to the close, seeing only what an agent sees."""
    bookkeeper = _Bookkeeper(Ledger(task_id), rng, skill)
    for document_id in bookkeeper.call("list_documents"):
        bookkeeper.book(document_id)
    bookkeeper.call("trial_balance")
    bookkeeper.call("close_period")
    return Demonstration(bookkeeper.messages, frozenset(bookkeeper.mishandled), bookkeeper.world.reward)


class _Bookkeeper:
    def __init__(self, world: Ledger, rng: Random, skill: Mapping[Pitfall, float]) -> None:
        self.world, self.rng, self.skill = world, rng, skill
        self.messages = [message.to_openai() for message in world.prompt]
        self.mishandled: set[Pitfall] = set()

    def call(self, name: str, **arguments: Any) -> Any:
        result = self.world.call(name, arguments)
        call_id = f"call_{len(self.messages)}"
        function = {"name": name, "arguments": arguments}
        self.messages += [
            {"role": "assistant", "content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": call_id, "content": result},
        ]
        return json.loads(result)

    def heeds(self, pitfall: Pitfall) -> bool:
        right = self.rng.random() < self.skill[pitfall]
        if not right:
            self.mishandled.add(pitfall)
        return right

    def book(self, document_id: str) -> None:
        document = self.call("get_document", document_id=document_id)
        if document["kind"] == "cancellation":
            self.call("reverse_entry", entry_id=document["entry"])
        elif "copy_of" not in document or not self.heeds("copy"):
            self.post(document_id, document)

    def post(self, document_id: str, document: Mapping[str, Any]) -> None:
        vendor = self.call("lookup_vendor", vendor_id=document["vendor"])
        account = vendor.get("account") or self.call("lookup_account", category=vendor["category"])["account"]
        amount = self.amount(document)
        rate = self.call("tax_rate", vendor_id=document["vendor"], treatment=self.treatment(vendor["country"]))["rate"]
        debit, credit = account, PAYABLES
        if document["kind"] == "credit_note" and self.heeds("credit_note"):
            debit, credit = credit, debit
        self.call("post_entry", document_id=document_id, debit=debit, credit=credit, amount=amount, rate=rate)

    def amount(self, document: Mapping[str, Any]) -> int:
        amount: int = document["amount"]
        if document["currency"] != "EUR" and self.heeds("currency"):
            amount = self.call("convert_currency", amount=amount, currency=document["currency"], day=document["day"])["amount"]
        if "prepaid_months" in document and self.heeds("prepaid"):
            amount = self.call("split_instalments", amount=amount, months=document["prepaid_months"])["first"]
        return amount

    def treatment(self, country: str) -> str:
        right = treatment(country)
        if right == "reverse_charge" and not self.heeds("reverse_charge"):
            return treatment(HOME)
        return right
