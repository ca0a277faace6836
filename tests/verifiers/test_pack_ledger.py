"""The double-entry pack: each rule by hand, its TOML, and the example's agent beside `LedgerRules`."""

import json
from datetime import date
from random import Random

import pytest

from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Trajectory, steps_of
from counterplay.examples.ledger.demonstrations import PERFECT, SKILL, demonstrate
from counterplay.verifiers.packs.ledger import LedgerRules
from counterplay.verifiers.packs.ledger_books import Approval, DoubleEntry, Period, Tax
from tests.verifiers.pack_shapes import ROOT, call, ended, say, trajectory, values


def line(account, side, amount, **more):
    return {"account": account, "side": side, "amount": amount, **more}


def posted(*lines, entry="e1", **args):
    return call("post_entry", {"lines": list(lines), **args}, {"entry": entry})


GOOD = posted(line("10", "debit", "100.10"), line("90", "credit", 100.10))


def kinds(*steps, **settings):
    return [(finding.step, finding.kind) for finding in DoubleEntry(**settings).findings(trajectory(*steps))]


@pytest.mark.parametrize(
    ("step", "kind", "reason"),
    [
        (posted(line("10", "debit", 100), line("90", "credit", 99)), "balance", "debits 100 and credits 99 differ"),
        (posted(line("10", "debit", 0.3), line("90", "credit", 0.1), line("91", "credit", "0.21")), "balance", "credits 0.31 differ"),
        (
            posted(line("10", "debit", 5, currency="EUR"), line("90", "credit", 5, currency="USD")),
            "balance",
            "debits 5 and credits 0 EUR differ",
        ),
        (posted(line("10", "debit", 5)), "balance", "it has no credit"),
        (posted(line("10", "debit", -5), line("90", "credit", -5)), "balance", "an amount is not positive"),
        (posted(line("10", "debit", 5), line("10", "credit", 5)), "balance", "both sides are 10"),
        (posted(line("10", "debit", "much")), "entry", "amount 'much' is no number"),
        (posted(line("10", "left", 5)), "entry", "a line lacks its account or its side"),
        (posted("10"), "entry", "line '10' is no object"),
        (call("post_entry", {}, {"entry": "e"}), "entry", "it has neither lines nor amount"),
        (posted(line("10", "debit", 5), date="soon"), "entry", "date 'soon' is no date"),
    ],
)
def test_an_entry_must_balance(step, kind, reason):
    found = DoubleEntry().findings(trajectory(step))
    assert found[0].kind == kind
    assert reason in " ".join(finding.reason for finding in found)


@pytest.mark.parametrize(
    "step",
    [
        GOOD,
        posted(line("10", "Dr", 0.1), line("11", "d", 0.2), line("90", "Cr", 0.3)),
        posted({"account": "10", "debit": 5, "credit": 0}, {"account": "90", "debit": None, "credit": "5.00"}),
        call("book_it", {"debit": "10", "credit": "90", "amount": "1,000.50"}, {"entry": "e1"}),
        call("post_entry", {"lines": "nonsense"}, "Error: refused"),
        call("look", {"amount": -1}),
    ],
)
def test_what_balances_is_in_order(step):
    assert DoubleEntry()(ended(trajectory(step))).reason == "the books are in order"


def test_accounts_periods_and_closed_days():
    year = (Period(date(2024, 1, 1), date(2024, 12, 31)),)
    lines = (line("10", "debit", 5), line("90", "credit", 5))
    assert kinds(GOOD, accounts=("1?", "9?")) == []
    assert kinds(GOOD, accounts=("1?",)) == [(0, "account")]
    assert kinds(posted(*lines, date="2024-12-31T23:00"), periods=year) == []
    assert kinds(posted(*lines, date="2025-01-01"), periods=year) == [(0, "period")]
    assert kinds(GOOD, periods=year) == [(0, "period")], "a day is asked for"
    january = call("close_period", {"first": "2024-01-01", "last": "2024-01-31"}, {})
    assert kinds(january, posted(*lines, date="2024-01-31")) == [(1, "period")]
    assert kinds(january, posted(*lines, date="2024-02-01")) == []
    assert kinds(call("close_period", {}, {}), GOOD, call("reverse_entry", {"entry_id": "e1"}, {})) == [(1, "period"), (2, "period")]
    assert kinds(call("close_period", {}, "Error: not yet"), GOOD) == [], "a refused close closed nothing"


def test_tax_is_recomputed():
    tax = Tax((("DE", ("19", "7")), ("*", ("0",))), ("15*",))

    def wrong(**args):
        lines = args.pop("lines", (line("10", "debit", 100), line("1576", "debit", 19), line("90", "credit", 119)))
        return [finding.reason.partition(": ")[2] for finding in DoubleEntry(tax=tax).findings(trajectory(posted(*lines, **args)))]

    assert wrong(net=100, tax=19, gross=119, rate=19, country="DE") == []
    assert wrong(net=100, tax="19.01", gross=119, rate=19, country="DE") == [], "a cent is rounding"
    assert wrong(net=100, tax=19, gross=119, rate=19, country="CH") == ["tax rate 19 in CH, wanted 0"]
    assert wrong(net=100, tax=19, gross=119, rate=7, country="DE") == ["tax 19 on 100 at 7 %, wanted 7.00"]
    assert wrong(net=100, tax=19, gross=120, rate=19, country="DE") == ["gross 120, wanted 119"]
    plain = (line("10", "debit", 119), line("90", "credit", 119))
    assert wrong(lines=plain, net=100, tax=19, gross=119, rate=19, country="DE") == ["0 booked on 15*, wanted the tax of 19"]
    assert wrong(net="x", tax=19) == ["amount 'x' is no number"]


def test_approvals_come_before_and_from_somebody_else():
    rules = {"approvals": (Approval("approve", "100"),)}
    large = posted(line("10", "debit", 100), line("90", "credit", 100), document_id="d1", posted_by="ann")
    small = posted(line("10", "debit", 99), line("90", "credit", 99), document_id="d1")

    def approve(answer, document="d1"):
        return call("approve", {"document_id": document}, answer)

    assert kinds(small, **rules) == []
    assert kinds(large, **rules) == [(0, "approval")]
    assert kinds(approve({"status": "Approved", "approved_by": "bob"}), large, **rules) == []
    assert kinds(approve("ok"), large, **rules) == []
    assert kinds(approve("ok", "d2"), large, **rules) == [(1, "approval")]
    assert kinds(approve({"status": "pending"}), large, **rules) == [(1, "approval")]
    assert kinds(approve({"status": "pending"}), approve({"status": "approved"}), large, **rules) == [], "the latest word counts"
    assert kinds(approve({"approved_by": "ann"}), large, **rules) == [(1, "approval")]
    assert kinds(large, approve("ok"), **rules) == [(0, "approval")], "afterwards is too late"


def test_a_document_is_booked_once_unless_taken_back():
    lines = (line("10", "debit", 5), line("90", "credit", 5))
    first, again = posted(*lines, document_id="d1"), posted(*lines, document_id="d1", entry="e2")
    undo = call("reverse_entry", {"entry_id": "e1"}, {"ok": True})
    assert kinds(first, again) == [(1, "twice")]
    assert kinds(first, undo, again) == []
    assert kinds(first, call("reverse_entry", {"entry_id": "e9"}, {}), again) == [(2, "twice")]


def test_a_wrong_entry_weighs_little_while_it_can_be_taken_back():
    wrong = posted(line("10", "debit", 5), line("90", "credit", 4))
    undo, close = call("reverse_entry", {"entry_id": "e1"}, {}), call("close_period", {}, {})
    pack = DoubleEntry()
    assert values(pack, trajectory(wrong, say("hm"), undo, close)) == [0.5**0.25] * 4
    assert values(pack, trajectory(wrong, say("hm"), close)) == [0.5**0.25, 0.5**0.25, 0.5]
    assert pack(ended(trajectory(wrong, say("hm")))).value == 0.5
    assert values(DoubleEntry(reverse=()), trajectory(wrong)) == [0.5], "what can't be taken back weighs all at once"


def test_closing_is_asked_for_at_the_end():
    pack = DoubleEntry(must_close=True)
    assert values(pack, trajectory(GOOD, say("done"))) == [1.0, 1.0]
    assert pack(ended(trajectory(GOOD, say("done")))).reason == "step 1: it ended without closing"
    month = call("close_period", {"last": "2024-01-31"}, {})
    assert pack(ended(trajectory(GOOD, call("trial_balance", {}, {}), month, say("done")))).value == 1.0, "part of the year is closed"
    blind = trajectory(GOOD, call("close_period", {}, {}))
    assert pack(ended(blind)).reason == "step 1: close_period without trial_balance before it"
    assert pack(ended(trajectory(GOOD, call("trial_balance", {}, {}), call("close_period", {}, {})))).value == 1.0


TABLE = """
post = "post_*"
must_close = true
decay = 0.6

[fields]
document = "doc"

[[period]]
first = 2024-01-01
last = 2024-12-31

[tax]
accounts = ["15*"]
within = 0.02
rates = { DE = [19, 7], "*" = [0] }

[[approval]]
tool = "approve"
least = 1000
"""


def test_settings_from_toml(tmp_path):
    (tmp_path / "books.toml").write_text(TABLE)
    pack = DoubleEntry.from_toml(tmp_path / "books.toml")
    assert (pack.post, pack.must_close, pack.decay, pack.fields.document) == (("post_*",), True, 0.6, "doc")
    assert pack.periods == (Period(date(2024, 1, 1), date(2024, 12, 31)),)
    assert pack.tax == Tax((("DE", ("19", "7")), ("*", ("0",))), ("15*",), "0.02")
    assert pack.approvals == (Approval("approve", "1000"),)
    assert DoubleEntry.from_toml(ROOT / "examples/packs/books.toml").approvals
    assert (pack.name, DoubleEntry().name) == ("double_entry:books", "double_entry")
    (tmp_path / "named.toml").write_text('title = "germany"\n' + TABLE)
    assert DoubleEntry.from_toml(tmp_path / "named.toml").name == "double_entry:germany"


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("must_close = true", "must_clos = true", 3, r"Did you mean must_close\?"),
        ("must_close = true", 'must_close = "yes"', 3, "wanted a bool"),
        ("decay = 0.6", "decay = 6", 4, r"wanted a number in \[0, 1\]"),
        ('document = "doc"', 'documnt = "doc"', 7, r"got 'documnt' in fields.*Did you mean document\?"),
        ("last = 2024-12-31", "last = 2023-12-31", 9, "the first not after the last"),
        ("last = 2024-12-31", "", 9, "`first` and `last`"),
        ("within = 0.02", 'within = "much"', 15, "got 'much'; wanted a number from 0"),
        ("DE = [19, 7]", "DE = 19", 16, "percentages by country"),
        ('tool = "approve"', "", 18, "an approval without `tool`"),
        ("least = 1000", "least = -1", 20, "wanted a number from 0"),
        ("[[approval]]", "[approval]", 18, r"wanted \[\[approval\]\] tables"),
        ("post = ", "post = = ", 2, "Invalid value .at line 2"),
    ],
)
def test_errors_in_the_table_name_the_line(tmp_path, old, new, line, text):
    path = tmp_path / "books.toml"
    path.write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=rf"(?s)books\.toml.*line {line}.*{text}" if "at line" not in text else text):
        DoubleEntry.from_toml(path)


def shown(task, skill):
    demonstration = demonstrate(task, Random(f"0/{task}"), skill)
    for message in demonstration.messages:
        for made in message.get("tool_calls", ()):
            made["function"]["arguments"] = json.dumps(made["function"]["arguments"])
    prompt, steps = steps_of([Message.from_openai(message) for message in demonstration.messages])
    return demonstration, ended(Trajectory((), prompt, steps))


def test_the_example_s_agent_beside_the_rules_that_know_its_trade():
    """It never posts what does not balance, so double entry alone finds no mistake there; LedgerRules, unchanged, finds every one."""
    general, trade = DoubleEntry(must_close=True), LedgerRules()
    for index in range(1, 41):
        demonstration, state = shown(f"train-{index:04d}", SKILL if index % 2 else PERFECT)
        assert general(state).value == 1.0
        assert (trade(state).value == 1.0) == (demonstration.reward == 1.0)
