"""A budget is never overshot by what was reserved, and never leaks what was not used."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from counterplay.core.budget import KINDS, Amounts, Budget
from counterplay.core.errors import BudgetExceeded, UserError
from counterplay.core.nouns import Usage

amounts = st.dictionaries(st.sampled_from(["model_calls", "tokens", "usd"]), st.integers(0, 9), max_size=3)


class Spending(RuleBasedStateMachine):
    """Reserve and settle at will, each settlement at most its reservation: use never passes a limit."""

    def __init__(self):
        super().__init__()
        self.limits = {"model_calls": 12, "tokens": 20}
        self.budget = Budget.of(**self.limits)
        self.open = []
        self.used = dict.fromkeys(["model_calls", "tokens", "usd"], 0)

    @rule(wanted=amounts)
    def reserve(self, wanted):
        before = {kind: self.budget.left(kind) for kind in KINDS if kind != "seconds"}
        fits = all(amount <= before[kind] for kind, amount in wanted.items())
        assert (self.budget.lacking(**wanted) is None) == fits
        if fits:
            self.open.append(self.budget.reserve(**wanted))
            return
        with pytest.raises(BudgetExceeded):
            self.budget.reserve(**wanted)
        assert before == {kind: self.budget.left(kind) for kind in before}, "a refusal reserves nothing"

    @rule(data=st.data())
    def settle(self, data):
        if not self.open:
            return
        reservation = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        given_kinds = {kind: data.draw(st.integers(0, amount)) for kind, amount in reservation.amounts.items() if data.draw(st.booleans())}
        reservation.settle(**given_kinds)
        for kind, amount in reservation.amounts.items():
            self.used[kind] += given_kinds.get(kind, amount)

    @invariant()
    def use_is_what_was_settled_and_within_limits(self):
        held = dict.fromkeys(self.used, 0)
        for reservation in self.open:
            for kind, amount in reservation.amounts.items():
                held[kind] += amount
        for kind, used in self.used.items():
            assert getattr(self.budget.used, kind) == used
            if kind in self.limits:
                assert used + held[kind] + self.budget.left(kind) == self.limits[kind]
                assert self.budget.left(kind) >= 0


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=40, deadline=None)


def test_no_limit_is_infinite():
    budget = Budget()
    assert all(budget.left(kind) == float("inf") for kind in KINDS)
    budget.reserve(tokens=1e12).settle()
    assert budget.used.tokens == 1e12


def test_settling_charges_real_usage_and_more_than_reserved_where_it_was_more():
    budget = Budget.of(tokens=100, model_calls=2)
    budget.reserve(model_calls=1, tokens=50).settle(Usage(30, 40, cost_usd=0.5))
    assert (budget.used.model_calls, budget.used.tokens, budget.used.usd) == (1, 70, 0.5)
    assert budget.left("tokens") == 30
    assert budget.lacking(tokens=31) == "tokens"


def test_a_reservation_is_settled_once():
    reservation = Budget().reserve(model_calls=1)
    reservation.settle()
    with pytest.raises(RuntimeError, match="settled once"):
        reservation.settle()


def test_seconds_run_out_for_everything():
    budget = Budget.of(seconds=5)
    budget.reserve(model_calls=1).settle()
    budget._started_s -= 6
    assert budget.left("seconds") < 0
    with pytest.raises(BudgetExceeded, match="seconds left"):
        budget.reserve(model_calls=1)
    assert budget.spent().seconds > 6
    budget.restart_clock()
    assert budget.lacking(model_calls=1) is None


def test_parsing():
    assert Budget.parse("model_calls=400, usd=5,seconds=600").limits == Amounts(model_calls=400, usd=5, seconds=600)
    assert Budget.parse("").limits == Amounts()
    for text in ("calls=4", "usd", "usd=", "usd=x", "usd=-1", "usd=nan", "=3"):
        with pytest.raises(UserError):
            Budget.parse(text)


@given(st.floats(0, 1e9))
def test_a_limit_reads_back(limit):
    assert Budget.parse(f"usd={limit!r}").limits.usd == limit
