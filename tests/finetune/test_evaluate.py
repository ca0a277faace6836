"""Intervals, paired differences, and words that claim no more than they show."""

import json

import numpy as np
import pytest

from counterplay.core.beta import wilson
from counterplay.core.errors import UserError
from counterplay.finetune.evaluate import Results, compare, evaluate, pass_at_k, summarise, table
from counterplay.finetune.intervals import difference_interval, rate_interval


def played(name, outcomes, **fields):
    return Results(name, {f"t{i:03}": outcome for i, outcome in enumerate(outcomes)}, **fields)


def test_wilson_against_published_values():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_a_clear_lift_is_called_better_and_regressions_are_listed():
    a, b = played("logged", [0.0] * 60 + [1.0] * 40), played("tuned", [1.0] * 58 + [0.0] * 2 + [1.0] * 37 + [0.0] * 3)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.55)
    assert found.interval[0] < 0.55 < found.interval[1]
    assert found.verdict == "better"
    assert found.regressions == ("t097", "t098", "t099")
    assert len(found.gains) == 58
    assert "tuned is better than logged: +55.0 points" in found.sentence()
    assert compare(b, a).verdict == "worse"


def test_the_difference_is_paired():
    """The same rates, but one policy gains on every task a little: only pairing shows it."""
    rng = np.random.default_rng(0)
    base = rng.random(40) * 0.9
    assert compare(played("a", list(base)), played("b", list(base + 0.02))).verdict == "better"
    assert compare(played("a", list(base)), played("b", list(rng.permutation(base) + 0.02))).verdict == "no evidence of lift"


def test_noise_is_no_evidence_and_neither_is_a_handful_of_tasks():
    rng = np.random.default_rng(1)
    a, b = (played(n, list(rng.integers(0, 2, 100).astype(float))) for n in "ab")
    assert compare(a, b).verdict == "no evidence of lift"
    assert "no evidence of lift of b over a" in compare(a, b).sentence()
    few = compare(played("a", [0.0] * 3), played("b", [1.0] * 3))
    assert few.interval[0] < 0 < few.interval[1]
    assert few.verdict == "no evidence of lift"
    same = compare(played("a", [1.0] * 9), played("b", [1.0] * 9))
    assert (same.difference, same.p_value, same.verdict) == (0.0, 1.0, "no evidence of lift")


@pytest.mark.parametrize("attempts", [1, 3])
def test_where_nothing_changed_a_lift_is_claimed_in_one_of_twenty_at_most(attempts):
    rng, claimed = np.random.default_rng(4), 0
    for i in range(300):
        rates = rng.beta(1.0, 1.0, 40)
        a, b = (played(n, [tuple(row) for row in (rng.random((attempts, 40)) < rates).T.astype(float)]) for n in "ab")
        claimed += compare(a, b, seed=i, resamples=400).verdict != "no evidence of lift"
    assert claimed / 300 <= 0.075  # 5 % and two standard errors


def test_a_real_lift_is_found():
    rng, found = np.random.default_rng(5), 0
    for i in range(40):
        rates = rng.beta(1.0, 1.0, 150)
        a, b = (played(n, list((rng.random(150) < np.minimum(1, rates + d)).astype(float))) for n, d in (("a", 0), ("b", 0.25)))
        found += compare(a, b, seed=i, resamples=400).verdict == "better"
    assert found >= 35


def test_attempts_give_pass_at_k_and_what_a_success_takes():
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    found = summarise(played("a", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0)], steps={"t000": 4, "t001": 6}, cost_usd=2.0))
    assert found.rate == pytest.approx(2 / 3)
    assert found.pass_at == pytest.approx({1: 2 / 3, 2: 5 / 6, 3: 1.0})
    assert found.interval == rate_interval([1 / 3, 1.0])
    for k, values in {1: [1 / 3, 1], 2: [2 / 3, 1], 3: [1, 1]}.items():
        assert found.pass_intervals[k] == pytest.approx(rate_interval(values))
    assert (found.attempts, found.successes) == (3, 4)
    assert (found.mean_steps, found.cost_per_success_usd, found.steps_per_success) == (5.0, 0.5, 30 / 4)
    assert summarise(played("a", [0.0], steps={"t000": 4})).steps_per_success is None
    assert summarise(played("a", [0.0], cost_usd=2.0)).cost_per_success_usd is None


def ended(name, *attempts):
    """Results of one task for each given way in which its attempts ended."""
    outcomes = [tuple(float(end == "success") for end in ends) for ends in attempts]
    return Results(name, {f"t{i:03}": o for i, o in enumerate(outcomes)}, ends={f"t{i:03}": ends for i, ends in enumerate(attempts)})


def test_failures_by_class_before_against_after():
    a = ended("a", ("success", "step limit"), ("step limit", "step limit"), ("no answer", "success"), ("no answer", "no answer"))
    b = ended("b", ("success", "success"), ("step limit", "success"), ("lost", "no answer"), ("no answer", "no answer"))
    shares = {share.failure: share for share in summarise(a).failures}
    assert {name: share.share for name, share in shares.items()} == {"step limit": 3 / 8, "no answer": 3 / 8}
    assert shares["step limit"].interval == rate_interval([0.5, 1.0, 0.0, 0.0])
    found = compare(a, b)
    changes = {change.failure: (change.before, change.after, change.difference) for change in found.failures}
    assert changes == {"step limit": (3 / 8, 1 / 8, -1 / 4), "lost": (0.0, 1 / 8, 1 / 8), "no answer": (3 / 8, 3 / 8, 0.0)}
    assert [change.failure for change in found.failures] == ["step limit", "lost", "no answer"]
    assert found.failures[0].interval == difference_interval([0.5, 1, 0, 0], [0, 0.5, 0, 0])
    assert found.regressions == ("t002",)
    assert found.ends["t002"] == ("of 2: 1 success, 1 no answer", "of 2: 1 lost, 1 no answer")
    assert "t003" not in found.ends
    assert compare(a, played("c", [(1.0, 1.0)] * 4)).failures == ()


def test_the_interval_of_the_difference_is_the_paired_one():
    a, b = played("a", [0.0, 1.0] * 10), played("b", [1.0, 1.0] * 10)
    assert compare(a, b).interval == difference_interval([0.0, 1.0] * 10, [1.0] * 20)
    assert summarise(a).interval == rate_interval([0.0, 1.0] * 10)


def test_the_report_is_json_and_the_table_says_what_was_compared():
    report = evaluate([played("logged", [0.0] * 40), played("control", [0.0, 1.0] * 20), played("tuned", [1.0] * 40)])
    assert [(c.a, c.b) for c in report.comparisons] == [("logged", "control"), ("logged", "tuned"), ("control", "tuned")]
    assert json.loads(json.dumps(report.to_json()))["policies"][2]["rate"] == 1.0
    rows = table(report)
    assert [row["success"] for row in rows] == ["0.0 %", "50.0 %", "100.0 %"]
    assert rows[2]["over control"].startswith("+50.0 [")
    assert rows[0]["over logged"] == ""
    only = evaluate([played("logged", [0.0]), played("control", [0.0]), played("tuned", [1.0])], against=["control"])
    assert [(c.a, c.b) for c in only.comparisons] == [("control", "tuned")]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([], "at least one policy"),
        ([played("a", [1.0]), played("a", [1.0])], "each under its own name"),
        ([played("a", [1.0]), played("b", [1.0, 0.0])], "t001"),
        ([played("a", [])], "no outcomes"),
        ([played("a", [1.5])], "task t000"),
        ([played("a", [()])], "task t000"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, words):
    with pytest.raises(UserError, match=words):
        evaluate(results)


def test_an_unknown_name_to_compare_with_is_refused():
    with pytest.raises(UserError, match="nobody"):
        evaluate([played("a", [1.0])], against=["nobody"])
