"""Off-policy estimates against the truth of a small Markov decision process, and what they refuse."""

import math
import random

import numpy as np
import pytest

from bench.off_policy import logs, measure, truth, values
from counterplay.core.errors import UserError
from counterplay.finetune.off_policy import Decision, LoggedRun, estimate

METHODS = ("weighted", "doubly robust", "weighted doubly robust")


def test_the_bench_s_truth_is_what_playing_gives():
    assert logs(random.Random(0), tasks=3, runs=2, shift=0.0, model=None)[0].decisions[0].behaviour == pytest.approx(math.log(0.5))
    played = logs(random.Random(1), tasks=4000, runs=1, shift=0.0, model=None)
    assert np.mean([run.decisions[-1].reward for run in played]) == pytest.approx(truth(0.0), abs=0.025)


def test_a_policy_weighed_by_itself_is_the_logged_one():
    found = estimate(logs(random.Random(2), tasks=60, runs=2, shift=0.0, model="exact"))
    assert found.effective == pytest.approx(60)
    assert found.largest == pytest.approx(1 / 60)
    for method in ("weighted", "doubly robust"):
        assert found["weighted"].value == pytest.approx(found.logged)
        assert found["weighted"].lift == pytest.approx(0.0)
        assert abs(found[method].value - truth(0.0)) < 0.15
    assert "no evidence of lift" in found.sentence()


def test_estimates_are_near_the_truth_and_their_intervals_hold_it():
    row = measure(100, tasks=60, runs=2, shift=0.7, model="middling")
    assert row["truth"] - truth(0.0) > 0.1
    for method in METHODS:
        assert abs(row[method]["bias"]) < 0.015, method
        assert 0.88 <= row[method]["coverage"] <= 0.99, method
    assert row["doubly robust"]["sd"] < row["weighted"]["sd"]


def test_a_good_model_makes_up_for_wrong_log_probabilities_and_the_other_way_round():
    """Doubly robust: an exact model with misjudged log-probabilities, and exact ones without a model; only both wrong is wrong."""

    def mean(model, misjudged, method):
        rng = random.Random(f"{model}/{misjudged}")
        runs = [logs(rng, tasks=100, runs=2, shift=0.5, model=model, misjudged=misjudged) for _ in range(25)]
        return np.mean([estimate(one, fewest=2, least_covered=0.0, resamples=2)[method].value for one in runs])

    true = truth(0.5)
    assert abs(mean("exact", 0.25, "doubly robust") - true) < 0.03
    assert abs(mean(None, 0.0, "doubly robust") - true) < 0.03
    assert abs(mean(None, 0.25, "doubly robust") - true) > 0.1
    assert abs(mean("exact", 0.25, "weighted doubly robust") - true) < 0.03


def test_the_model_is_consistent():
    v, q = values(0.5, 0.5)
    from bench.off_policy import readiness

    second = readiness(0.5, 1)
    assert v[2][1] == pytest.approx(second * q[2][1][1] + (1 - second) * q[2][1][0])


def test_a_state_value_alone_leaves_the_estimate_unbiased():
    """Q^(s, a) = V^(s): the correction has mean zero whatever V^ is, because ratios have mean one."""
    rng = random.Random(3)
    found = []
    for _ in range(40):
        runs = logs(rng, tasks=100, runs=2, shift=0.5, model=None)
        guessed = [
            LoggedRun(run.task, tuple(Decision(d.behaviour, d.target, d.reward, 0.1 * t + 0.3) for t, d in enumerate(run.decisions)))
            for run in runs
        ]
        found.append(estimate(guessed, fewest=2, least_covered=0.0, resamples=2)["doubly robust"].value)
    assert abs(np.mean(found) - truth(0.5)) < 0.03


def test_what_the_logs_never_show_is_not_weighed_away():
    """The new policy takes a third action, always wrong, half of the time: shared weights alone would promise twice the truth."""
    rng = random.Random(4)
    runs = [LoggedRun(str(i), (Decision(math.log(0.5), math.log(0.25), float(rng.random() < 0.8)),)) for i in range(200)]
    assert estimate(runs, least_covered=0.0)["weighted"].value > 0.7
    with pytest.raises(UserError, match="can't tell how it ends"):
        estimate(runs)


def test_every_task_counts_the_same():
    sure = [LoggedRun("often", (Decision(0.0, 0.0, 1.0),))] * 9 + [LoggedRun("once", (Decision(0.0, 0.0, 0.0),))]
    found = estimate(sure, fewest=1)
    assert found.logged == pytest.approx(0.5)
    assert found["weighted"].value == pytest.approx(0.5)


def test_runs_of_unequal_length_keep_their_weight_after_their_end():
    """By hand: task a, one decision of ratio 2 that earned 1; task b, two decisions of ratio 1/2 each, the second of which earned 1."""
    half = math.log(0.5)
    runs = [
        LoggedRun("a", (Decision(half, 0.0, 1.0),)),
        LoggedRun("b", (Decision(0.0, half, 0.0), Decision(0.0, half, 1.0))),
    ]
    found = estimate(runs, fewest=1)
    assert found["weighted"].value == pytest.approx(2 / 2.5 + 0.25 / 2.25)
    assert found["doubly robust"].value == pytest.approx((2 + 0.25) / 2)
    assert found.effective == pytest.approx(2.25**2 / (4 + 0.0625))


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([LoggedRun("a", (Decision(0.0, 0.0, 1.0),))], "at least two tasks"),
        ([LoggedRun(str(i), (Decision(0.0, math.nan, 1.0),)) for i in range(40)], "no number"),
        ([LoggedRun(str(i), (Decision(-math.inf, 0.0, 1.0),)) for i in range(40)], "no number"),
        ([LoggedRun(str(i), (Decision(0.0, 0.0, 1.0),)) for i in range(20)], "logs of 20 tasks.*at least 30"),
        ([LoggedRun(str(i), (Decision(0.0, math.log(0.5), 1.0),)) for i in range(40)], "show 50 % of what"),
        ([LoggedRun(str(i), (Decision(0.0, 9.0 * (i == 0), 1.0),)) for i in range(40)], "something else too often"),
        ([LoggedRun(str(i), (Decision(0.0, -math.inf, 1.0),)) for i in range(40)], "worth 0.0 tasks"),
    ],
)
def test_what_says_nothing_is_refused(runs, words):
    with pytest.raises(UserError, match=words):
        estimate(runs)
