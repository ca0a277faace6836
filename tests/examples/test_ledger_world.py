"""The ledger's tasks, world and demonstrations: deterministic, without leaks, silent about mistakes until the close."""

from __future__ import annotations

import json
from random import Random

import pytest

from counterplay.examples.ledger import Ledger, tasks
from counterplay.examples.ledger.demonstrations import PERFECT, SKILL, demonstrate
from counterplay.examples.ledger.tasks import OVERSEAS, PITFALLS, convert, expected_postings, first_instalment, make_task
from counterplay.examples.ledger.world import TOOLS
from counterplay.replay.world import ToolError, World

NAMES = [*tasks("train", 100), *tasks("heldout", 100)]


def calls_of(messages):
    functions = [message["tool_calls"][0]["function"] for message in messages if message["role"] == "assistant"]
    return [(function["name"], function["arguments"]) for function in functions]


def some_task(pitfall):
    return next(name for name in tasks("train", 200) if pitfall in make_task(name).pitfalls.values())


def test_is_a_world_with_enough_tools():
    world = Ledger("train-0001")
    assert isinstance(world, World)
    assert len(world.tools) >= 8
    kinds = {tool.effect.kind for tool in TOOLS}
    assert kinds == {"pure", "read", "write"}


def test_tasks_depend_on_their_name_alone():
    assert [make_task(name) for name in NAMES] == [make_task(name) for name in NAMES]
    assert len({make_task(name).number for split in ("train", "heldout", "dev") for name in tasks(split, 3000)}) == 9000
    assert len({make_task(name).documents for name in NAMES}) == len(NAMES)


def test_every_prompt_is_unique_so_that_no_two_tasks_share_a_state():
    assert len({Ledger(name).prompt for name in NAMES}) == len(NAMES)


def test_mixture_of_pitfalls():
    names = [*tasks("train", 500), *tasks("heldout", 500)]
    counts = [len(make_task(name).pitfalls) for name in names]
    assert 0.38 <= counts.count(0) / len(counts) <= 0.52
    assert max(counts) == 3
    assert {p for name in names for p in make_task(name).pitfalls.values()} == set(PITFALLS)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_bookkeeping_is_paid(name):
    demonstration = demonstrate(name, Random(0), PERFECT)
    assert demonstration.reward == 1.0
    assert not demonstration.mishandled
    assert 10 <= len(calls_of(demonstration.messages)) <= 30


def test_flawed_bookkeeping_fails_exactly_where_a_pitfall_was_mishandled():
    rng = Random(7)
    for name in NAMES:
        demonstration = demonstrate(name, rng)
        assert demonstration.reward == float(not demonstration.mishandled)
        assert demonstration.mishandled <= set(make_task(name).pitfalls.values())


@pytest.mark.parametrize("pitfall", PITFALLS)
def test_each_pitfall_alone_costs_the_reward(pitfall):
    careless = demonstrate(some_task(pitfall), Random(0), {**PERFECT, pitfall: 0.0})
    assert careless.mishandled == {pitfall}
    assert careless.reward == 0.0


def test_skill_is_the_share_of_pitfalls_handled_rightly():
    rng = Random(1)
    met = fallen = 0
    for name in tasks("train", 1500):
        met += len(make_task(name).pitfalls)
        fallen += len(demonstrate(name, rng).mishandled)
    assert 1 - fallen / met == pytest.approx(sum(SKILL.values()) / len(SKILL), abs=0.04)


def test_snapshot_equals_execution_from_the_start():
    name = some_task("currency")
    calls = calls_of(demonstrate(name, Random(0), PERFECT).messages)
    world = Ledger(name)
    for fork in range(len(calls)):
        snapshot = world.snapshot()
        rest = [world.call(*call) for call in calls[fork:]]
        assert (world.done, world.reward) == (True, 1.0)
        fresh = Ledger(name)
        assert [fresh.call(*call) for call in calls][fork:] == rest
        world.restore(snapshot)
        assert not world.done
        world.call(*calls[fork])


def test_copies_do_not_leak_into_each_other():
    world = Ledger("train-0001")
    document = make_task("train-0001").documents[0].id
    account = next(iter(make_task("train-0001").accounts.values()))
    before = world.snapshot()
    twin = world.copy()
    twin.call("post_entry", {"document_id": document, "debit": account, "credit": "90", "amount": 100, "rate": 19})
    twin.call("close_period", {})
    assert world.snapshot() == before
    assert (world.done, twin.done) == (False, True)
    assert twin.snapshot() != before


def test_a_wrong_entry_taken_back_does_not_count():
    name = some_task("credit_note")
    calls = calls_of(demonstrate(name, Random(0), PERFECT).messages)
    world = Ledger(name)
    at = next(i for i, (tool, _) in enumerate(calls) if tool == "post_entry")
    wrong = {**calls[at][1], "amount": calls[at][1]["amount"] + 1}
    for call in calls[:at]:
        world.call(*call)
    entry = json.loads(world.call("post_entry", wrong))["entry"]
    undone = world.copy()
    undone.call("reverse_entry", {"entry_id": entry})
    for branch in (world, undone):
        for call in calls[at:]:
            branch.call(*call)
    assert (world.reward, undone.reward) == (0.0, 1.0)


def test_the_same_entry_twice_is_wrong():
    name = "train-0001"
    calls = calls_of(demonstrate(name, Random(0), PERFECT).messages)
    world = Ledger(name)
    for tool, arguments in calls:
        for _ in range(2 if tool == "post_entry" else 1):
            world.call(tool, arguments)
    assert (world.done, world.reward) == (True, 0.0)


def test_right_books_earn_nothing_before_the_close():
    world = Ledger("train-0001")
    for tool, arguments in calls_of(demonstrate("train-0001", Random(0), PERFECT).messages)[:-1]:
        world.call(tool, arguments)
        assert (world.done, world.reward) == (False, 0.0)


def test_nothing_the_agent_sees_tells_right_from_wrong():
    name = some_task("credit_note")
    right, wrong = (demonstrate(name, Random(0), {**PERFECT, "credit_note": skill}).messages for skill in (1.0, 0.0))
    seen = [[m["content"] for m in messages if m["role"] == "tool"] for messages in (right, wrong)]
    assert seen[0] == seen[1]


def test_rates_never_leave_an_amount_unchanged():
    for currency in ("USD", "GBP", "CHF"):
        for day in range(1, 32):
            assert all(convert(amount, currency, day) != amount for amount in (300, 1000, 9999))
    assert convert(1234, "EUR", 5) == 1234


@pytest.mark.parametrize(("amount", "months"), [(1000, 3), (999, 2), (4720, 6)])
def test_instalments_add_up(amount, months):
    split = json.loads(Ledger("train-0001").call("split_instalments", {"amount": amount, "months": months}))
    assert split["first"] == first_instalment(amount, months)
    assert split["first"] + (months - 1) * split["later"] == amount


def test_trial_balance_counts_what_stands():
    world = Ledger("train-0001")
    total = sum(posting.amount for posting in make_task("train-0001").opening.values())
    assert json.loads(world.call("trial_balance", {})) == {"debit": total, "credit": total}
    entry, posting = next(iter(make_task("train-0001").opening.items()))
    world.call("reverse_entry", {"entry_id": entry})
    assert json.loads(world.call("trial_balance", {}))["debit"] == total - posting.amount


def entry(**changes):
    task = make_task("train-0001")
    good = {"document_id": task.documents[0].id, "debit": task.accounts["rent"], "credit": "90", "amount": 100, "rate": 19}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("tool", "arguments", "text"),
    [
        ("mail", {}, "unknown tool mail"),
        ("get_document", {}, "get_document needs document_id"),
        ("get_document", {"document_id": "d1", "page": 2}, "get_document takes no page"),
        ("get_document", {"document_id": 12}, "document_id must be a string"),
        ("get_document", {"document_id": "d1"}, "unknown document d1"),
        ("lookup_vendor", {"vendor_id": "v1"}, "unknown vendor v1"),
        ("lookup_account", {"category": "yachts"}, "unknown category yachts"),
        ("tax_rate", {"vendor_id": "v1", "treatment": "import"}, "unknown vendor v1"),
        ("convert_currency", {"amount": 100, "currency": "EUR", "day": 3}, "no rate for EUR"),
        ("convert_currency", {"amount": "100", "currency": "USD", "day": 3}, "amount must be an integer"),
        ("split_instalments", {"amount": 100, "months": 1}, "months must be 2 to 6"),
        ("post_entry", entry(document_id="d1"), "unknown document d1"),
        ("post_entry", entry(debit="99"), "unknown account 99"),
        ("post_entry", entry(debit="90"), "debit and credit are the same account"),
        ("post_entry", entry(amount=0), "the amount must be positive"),
        ("post_entry", entry(amount=True), "amount must be an integer"),
        ("post_entry", entry(rate=3), "no tax rate of 3 percent"),
        ("reverse_entry", {"entry_id": "e1"}, "unknown entry e1"),
    ],
)
def test_tool_errors(tool, arguments, text):
    world = Ledger("train-0001")
    before = world.snapshot()
    with pytest.raises(ToolError, match=f"^error: {text}$"):
        world.call(tool, arguments)
    assert world.snapshot() == before


def test_tool_errors_that_depend_on_what_went_before():
    world = Ledger("train-0001")
    task = make_task("train-0001")
    entry_id = next(iter(task.opening))
    with pytest.raises(ToolError, match=r"^error: unknown treatment none$"):
        world.call("tax_rate", {"vendor_id": next(iter(task.vendors)), "treatment": "none"})
    world.call("reverse_entry", {"entry_id": entry_id})
    with pytest.raises(ToolError, match=f"^error: entry {entry_id} is already reversed$"):
        world.call("reverse_entry", {"entry_id": entry_id})
    world.call("close_period", {})
    with pytest.raises(ToolError, match=r"^error: the period is closed$"):
        world.call("list_documents", {})


def test_ground_truth_of_one_task_by_hand():
    task = make_task(some_task("reverse_charge"))
    document, _ = next((d, p) for d, p in task.pitfalls.items() if p == "reverse_charge")
    posting = next(p for p in expected_postings(task) if p.document == document)
    assert posting.rate == 0
    assert posting.credit == "90"
    assert not {vendor.country for vendor in task.vendors.values()} <= {"DE", *OVERSEAS}
