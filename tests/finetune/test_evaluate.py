"""Intervals, paired differences, and words that claim no more than they show."""

import json

import numpy as np
import pytest

from counterplay.core.beta import wilson
from counterplay.core.errors import UserError
from counterplay.finetune.evaluate import Results, bootstrap, compare, evaluate, pass_at_k, sign_flip_p, summarise, table


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
    assert few.interval == (1.0, 1.0)
    assert few.verdict == "no evidence of lift"
    same = compare(played("a", [1.0] * 9), played("b", [1.0] * 9))
    assert (same.difference, same.p_value, same.verdict) == (0.0, 1.0, "no evidence of lift")


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = sum(low <= 0.3 <= high for low, high in (bootstrap(rng.random(80) < 0.3, seed=i, resamples=1000) for i in range(200)))
    assert 0.88 <= hits / 200 <= 0.99


def test_the_sign_flip_test_against_values_by_hand():
    assert sign_flip_p([1.0] * 5) == pytest.approx(2 / 32, abs=0.01)
    assert sign_flip_p([1.0, -1.0]) == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_interval():
    values = list(np.random.default_rng(3).random(50))
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_attempts_give_pass_at_k_and_resample_over_tasks():
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    found = summarise(played("a", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0)], steps={"t000": 4, "t001": 6}, cost_usd=2.0))
    assert found.rate == pytest.approx(2 / 3)
    assert found.pass_at == pytest.approx({1: 2 / 3, 2: 5 / 6, 3: 1.0})
    assert found.interval == pytest.approx((1 / 3, 1.0))
    assert (found.mean_steps, found.cost_per_success_usd) == (5.0, 0.5)
    assert summarise(played("a", [0.0], cost_usd=2.0)).cost_per_success_usd is None


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
