"""The measures one by one, against sums done by hand, and where they have to refuse."""

import math
import random

import numpy as np
import pytest

from counterplay.core.beta import wilson
from counterplay.core.nouns import LoggedScore, Outcome, Source, SubTrajectory, Trace
from counterplay.verifiers.evaluation.asking import Asker, consistency
from counterplay.verifiers.evaluation.discrimination import auroc, discrimination, equal_mass
from counterplay.verifiers.evaluation.evaluate import evaluate
from counterplay.verifiers.evaluation.intervals import mean, resampled, share
from counterplay.verifiers.evaluation.optimisation import best_of, curve
from counterplay.verifiers.evaluation.ranking import length_slope, siblings
from counterplay.verifiers.evaluation.steps import (
    choose_cuts,
    choose_threshold,
    find_first_errors,
    first_below,
    first_errors,
    halves,
    mark_of,
    prefix_accuracy,
    ternary,
)
from counterplay.verifiers.evaluation.truth import Labelled, blind, labelled
from counterplay.verifiers.outcome import outcome
from tests.verifiers.evaluation_helpers import look, says, send, trajectory, written


def names(n):
    return [f"task {i}" for i in range(n)]


# --- intervals ---


def test_wilson_and_the_design_effect():
    assert wilson(0.8, 10) == pytest.approx((0.490163, 0.943318), abs=1e-6)
    alone = share([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], names(10))
    assert (alone.low, alone.high) == pytest.approx(wilson(0.8, 10))
    # 4 tasks of 5 equal items: between = 4 x 2.5^2 = 25 over n p q = 20 x .25 = 5: the design effect is 5, 4 items count
    grouped = share([1] * 10 + [0] * 10, [f"{i // 5}" for i in range(20)])
    assert (grouped.low, grouped.high, grouped.n, grouped.groups) == (*(pytest.approx(end) for end in wilson(0.5, 4)), 20, 4)
    sure = share([1.0] * 30, [f"{i // 10}" for i in range(30)])
    assert (sure.low, sure.high) == (pytest.approx(wilson(1.0, 3)[0]), 1.0), "a sure share counts groups, not items"
    assert share([], []) is None


def test_groups_are_resampled_whole():
    values, groups = [0.0] * 60 + [1.0] * 60, [f"{i // 20}" for i in range(120)]
    found, alone = mean(values, groups), mean(values, names(120))
    assert (found.value, found.groups, found.n) == (0.5, 6, 120)
    assert found.low < 0.2
    assert alone.low > 0.4, "six tasks tell little, whatever their size"
    few = mean(values, [f"{i // 30}" for i in range(120)])
    assert (few.value, few.low, few.high) == (0.5, None, None)
    assert mean(values, groups) == mean(values, groups), "the same data give the same interval"


def test_the_interval_of_a_mean_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for number in range(80):
        found = mean(rng.normal(0.3, 1.0, 60).tolist(), names(60), seed=number)
        covered += found.low <= 0.3 <= found.high
    assert 70 <= covered <= 80


# --- right from wrong ---


def test_auroc_counts_ties_as_halves():
    # right .9 .5, wrong .5 .1: .9 beats both, .5 ties one and beats one: 3.5 of 4
    assert auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False], names(4)).value == pytest.approx(3.5 / 4)
    assert auroc([0.3] * 6, [True, False] * 3, names(6)).value == 0.5
    assert auroc([0.3, 0.4], [True, True], names(2)) is None


def test_auroc_equals_the_count_of_pairs():
    rng = random.Random(3)
    values, truths = [round(rng.random(), 1) for _ in range(60)], [rng.random() < 0.4 for _ in range(60)]
    right, wrong = ([v for v, t in zip(values, truths, strict=True) if t is side] for side in (True, False))
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    assert auroc(values, truths, names(60)).value == pytest.approx(wins / (len(right) * len(wrong)))


def test_a_perfect_auroc_is_not_sure():
    found = auroc([0.9] * 4 + [0.1] * 20, [True] * 4 + [False] * 20, names(24))
    assert found.value == 1.0
    assert (found.low, found.high) == (pytest.approx(wilson(1.0, 4)[0]), 1.0)


def test_calibration_bins_keep_ties_together():
    assert len(set(equal_mass(np.asarray([0.5] * 9 + [0.7]), 10).tolist())) == 2
    values, truths = [0.2] * 10 + [0.6] * 10, [True] * 2 + [False] * 8 + [True] * 6 + [False] * 4
    found = discrimination(values, truths, names(20))
    assert (found.ece.value, found.ece_width.value) == (pytest.approx(0.0), pytest.approx(0.0)), "says what it sees"
    assert found.ece_floor > 0.05, "by chance alone a calibrated verifier shows more"
    shuffled = discrimination(values[::-1], truths[::-1], names(20))
    assert shuffled.ece.value == pytest.approx(found.ece.value)
    assert found.ece.low == 0.0 < found.ece.high, "resampling inflates a distance, the interval holds its figure all the same"
    assert discrimination([], [], []) is None


# --- steps ---


def test_first_errors_are_the_first_below():
    assert first_below([0.9, None, 0.4, 0.1], 0.5) == 2
    assert first_below([0.9, None], 0.5) == -1
    assert first_below([0.5], 0.5) == -1, "below, not at"
    assert first_below([None, None], 0.5) is None
    found = first_errors([1, None, -1], [1, 2, -1], names(3))
    assert (found.erroneous.value, found.correct.value) == (0.5, 1.0), "no answer is not the right one"
    assert first_errors([0, 0], [0, 0], names(2)).f1 is None
    perfect = first_errors([0, -1, -1, -1], [0, -1, -1, -1], names(4)).f1
    one, three = wilson(1.0, 1)[0], wilson(1.0, 3)[0]
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(2 * one * three / (one + three)), "four trajectories are no proof"


def test_the_threshold_is_the_best_one():
    said = [[0.9, 0.4], [0.8, 0.9], [0.3, 0.9], [0.7, 0.7]]
    assert choose_threshold(said, [1, -1, 0, -1]) == pytest.approx((0.4 + 0.7) / 2), "all are found between .4 and .7"
    rng = random.Random(5)
    said = [[rng.randint(0, 20) / 20 for _ in range(rng.randint(1, 6))] for _ in range(40)]
    truth = [rng.randint(-1, len(values) - 1) for values in said]

    def f1(threshold):
        return first_errors([first_below(values, threshold) for values in said], truth, names(40)).f1.value

    assert f1(choose_threshold(said, truth)) == pytest.approx(max(f1(i / 20 + 0.01) for i in range(-1, 21)))


def test_a_threshold_is_never_chosen_on_what_it_is_used_on():
    groups, truth = names(8), [0, 0, 0, 0, -1, -1, -1, -1]
    split = halves(groups, [step >= 0 for step in truth])
    assert [sum(side for side, step in zip(split, truth, strict=True) if (step >= 0) is bad) for bad in (True, False)] == [2, 2]
    assert dict(zip(groups, split, strict=True)) == dict(
        zip(groups[::-1], halves(groups[::-1], [s >= 0 for s in truth[::-1]]), strict=True)
    )
    # one half is separated at .5, the other at .05: each is judged by the other's threshold
    said = [[0.4 if side else 0.01] if step >= 0 else [0.6 if side else 0.09] for side, step in zip(split, truth, strict=True)]
    found = find_first_errors(said, truth, groups)
    assert found.thresholds == (pytest.approx(0.5), pytest.approx(0.05))
    assert (found.erroneous.value, found.correct.value) == (0.5, 0.5)
    assert find_first_errors([[0.1], [0.9]], [0, -1], ["a", "a"]) is None


def test_ternary_steps():
    assert choose_cuts([0.1, 0.2, 0.5, 0.5, 0.8, 0.9], [-1, -1, 0, 0, 1, 1]) == (pytest.approx(0.35), pytest.approx(0.65))
    assert [mark_of(value, (0.35, 0.65)) for value in (0.3, 0.35, 0.65, None)] == [-1, 0, 1, None]
    rng = random.Random(2)
    values, marks = [round(rng.random(), 1) for _ in range(40)], [rng.choice((-1, 0, 1)) for _ in range(40)]

    def hits(cuts):
        return sum(mark_of(value, cuts) == mark for value, mark in zip(values, marks, strict=True))

    edges = [i / 20 + 0.01 for i in range(-1, 21)]
    assert hits(choose_cuts(values, marks)) == max(hits((a, b)) for a in edges for b in edges if a <= b)
    said, labels = [[0.1, 0.5, 0.9]] * 4, [[-1, 0, 1]] * 4
    found = ternary(said, labels, names(4))
    assert (found.accuracy.value, found.prefix.value, found.majority) == (1.0, 1.0, pytest.approx(1 / 3))
    half_said = ternary([[0.1, None, 0.9]] * 4, labels, names(4))
    assert half_said.accuracy.value == pytest.approx(2 / 3), "a step nothing was said on is not right"
    assert half_said.prefix.value == pytest.approx(1 / 3)


def test_prefix_accuracy():
    assert prefix_accuracy("abcd", "abxd") == 0.5
    assert prefix_accuracy("ab", "abcd") == 0.5
    assert prefix_accuracy("abcd", "ab") == 0.5
    assert prefix_accuracy("", "") == 1.0
    assert prefix_accuracy("xbc", "abc") == 0.0


# --- siblings, length ---


def test_one_against_many_is_stricter_than_pairs():
    # one right at .6 against .1 .2 .9: 2 of 3 pairs, not the best, second place
    found = siblings([0.6, 0.1, 0.2, 0.9], [True, False, False, False], ["t"] * 4)
    assert (found.pairs.value, found.one_against_many.value) == (pytest.approx(2 / 3), 0.0)
    assert (found.reciprocal_rank.value, found.chance) == (0.5, 0.25)
    tied = siblings([0.6, 0.6], [True, False], ["t"] * 2)
    assert (tied.pairs.value, tied.one_against_many.value) == (0.5, 0.0)
    assert siblings([0.1, 0.2], [True, False], ["s", "t"]) is None


def test_length_slope_is_within_equal_truth():
    # .1 a doubling in both truths; right ones are longer and better, which is no bias
    lengths, truths = [2, 4, 8, 4, 8, 16], [False] * 3 + [True] * 3
    values = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
    assert length_slope(values, lengths, truths, names(6)).value == pytest.approx(0.1)
    earned = length_slope([0.2] * 3 + [0.8] * 3, lengths, truths, names(6))
    assert earned.value == pytest.approx(0.0, abs=1e-12)
    assert length_slope([0.1, 0.9], [5, 5], [True, True], names(2)) is None
    assert length_slope([], [], [], []) is None


# --- best of N ---


def test_best_of_n_from_a_pool():
    # pairs of (.1: 1), (.2: 0), (.3: 1): the best of a pair is .2 once, .3 twice
    assert best_of([0.1, 0.2, 0.3], [1, 0, 1], 2) == pytest.approx(2 / 3)
    assert best_of([0.1, 0.2, 0.3], [1, 0, 1], 1) == pytest.approx(2 / 3)
    assert best_of([0.5, 0.5, 0.1], [1, 0, 0], 3) == pytest.approx(1 / 2), "ties go by lot"
    assert math.isnan(best_of([0.5], [1], 2))
    copies = best_of([0.1, 0.2], [1, 0], 2, np.asarray([2.0, 1.0]))
    assert copies == pytest.approx(best_of([0.1, 0.1, 0.2], [1, 1, 0], 2))


def test_best_of_n_is_unbiased():
    rng = random.Random(4)
    proxy, gold = [round(rng.random(), 1) for _ in range(12)], [rng.random() for _ in range(12)]
    total = 0.0
    for _ in range(20_000):
        drawn = rng.sample(range(12), 4)
        rng.shuffle(drawn)
        total += gold[max(drawn, key=lambda i: proxy[i])]
    assert best_of(proxy, gold, 4) == pytest.approx(total / 20_000, abs=0.01)


def test_a_curve_shows_whether_selection_pays_or_costs():
    rng = random.Random(0)
    groups = [f"{i // 16}" for i in range(640)]
    gold = [float(rng.random() < 0.5) for _ in groups]
    good = curve([g + rng.random() for g in gold], gold, groups)
    assert (good.pays, good.over_optimised, good.pooled, good.pools) == (True, False, False, 40)
    assert [point.n for point in good.points] == [1, 2, 4, 8, 16]
    assert good.points[0].gold == pytest.approx(sum(gold) / 640)
    bad = curve([rng.random() - g for g in gold], gold, groups)
    assert (bad.pays, bad.over_optimised) == (False, True)
    assert bad.points[-1].proxy > bad.points[0].proxy
    blind_ = curve([rng.random() for _ in gold], gold, groups)
    assert not blind_.pays
    assert curve([0.1, 0.2], [1.0, 1.0], ["a", "a"]) is None
    few = curve([0.1, 0.2] * 3, [0.0, 1.0] * 3, list("aabbcc"))
    assert (few.gain, few.pays, few.points[0].low) == ((0.5, None, None), False, None), "three tasks are no ground for an interval"


def test_a_curve_over_single_attempts_is_one_pool():
    rng = random.Random(0)
    gold = [float(i % 2) for i in range(80)]
    found = curve([g + rng.random() for g in gold], gold, names(80))
    assert (found.pooled, found.pools, found.candidates, found.points[-1].n) == (True, 1, 80, 16)
    assert found.points[0].low < found.points[0].gold < found.points[0].high


def test_versions_of_one_trajectory_are_not_independent_candidates():
    rng = random.Random(1)
    gold = [float(i // 8 % 2) for i in range(160)]
    proxy, groups = [g + rng.random() for g in gold], [f"{i // 8}" for i in range(160)]
    alone, together = curve(proxy, gold, names(160), together=True), curve(proxy, gold, groups, together=True)
    assert alone.points[0].gold == together.points[0].gold
    widths = [found.points[0].high - found.points[0].low for found in (alone, together)]
    assert widths[1] > 2 * widths[0]


# --- the truth in traces ---


def trace(steps, **more):
    return Trace("t", trajectory(*steps), Source("test"), **more)


def test_outcomes_and_step_labels_are_truth_and_rewards_are_taken_out():
    made = trace([look(), send(terminated=True, reward=1.0)], task="x", outcome=Outcome(1.0, success=True, source="environment"))
    (found,) = labelled([made])
    assert (found.gold, found.right, found.labels, found.group) == (1.0, True, (), "task x")
    assert all(step.reward is None for step in found.trajectory.steps)
    assert found.trajectory.key == made.trajectory.key
    plain = trajectory(look())
    assert blind(plain) is plain
    assert labelled([trace([look()])]) == []


def test_labels_of_a_prefix_hold_on_its_branches():
    main, branch = trajectory(says("a"), says("b")), trajectory(says("a"), says("c"))
    scores = (
        LoggedScore.of("rating", 1, low=-1, step=0),
        LoggedScore.of("rating", 0, low=-1, step=1),
        LoggedScore.of("rating", -1, low=-1, step=1, trajectory=1),
    )
    made = Trace("t", main, Source("test"), sub_trajectories=(SubTrajectory(branch),), scores=scores)
    first, second = labelled([made])
    assert (first.labels, first.first_error) == ((1, 0), -1)
    assert (second.labels, second.first_error) == ((1, -1), 1)
    assert first.group == second.group


def test_labels_by_name_by_value_and_in_metadata():
    scores = (LoggedScore.of("mc_value", 0.125, step=0), LoggedScore.of("mc_value", 0.0, step=1), LoggedScore.of("mine", 1.0, step=1))
    steps = [says("a"), says("b")]
    assert labelled([trace(steps, scores=scores)])[0].labels == (1, -1)
    assert labelled([trace(steps, scores=scores)], labels="mine")[0].labels == (None, 1)
    assert labelled([trace(steps, scores=scores)], labels="mine")[0].first_error is None, "an unjudged step may be wrong"
    assert labelled([trace(steps, metadata={"step_labels": [1, False]})])[0].labels == (1, -1)


# --- asking ---


async def test_every_question_is_put_once_and_errors_are_data():
    asked = []

    def fickle(state):
        asked.append(state.key)
        if len(state) == 2:
            raise ValueError("two is too many")
        return None if len(state) == 3 else 0.5

    asker = Asker(fickle)
    runs = [trajectory(look(), send(), look()), trajectory(look(), send(), send())]
    assert await asker.steps(runs, ["a", "b"]) == [[0.5, None, None], [0.5, None, None]]
    assert len(asked) == len(set(asked)) == 4
    answers = asker.answers
    assert (answers.questions, answers.abstained.value, answers.failed.value) == (4, 0.5, 0.25)
    assert answers.errors == {"ValueError: two is too many": 1}
    assert (answers.tokens, answers.cost_usd) == (None, None)


async def test_tokens_and_cost_are_counted_where_a_part_counts_them():
    from counterplay.core.nouns import Usage

    class Judge:
        name, version = "judge", "1"

        def __init__(self):
            self.usage = Usage(1000, 100, cost_usd=5.0)

        def __call__(self, state):
            self.usage += Usage(10, 2, cost_usd=0.25)
            return 0.5

    class Wrapped:
        name, version = "wrapped", "1"

        def __init__(self):
            self.parts = (Judge(),)

        def __call__(self, state):
            return self.parts[0](state)

    asker = Asker(Wrapped())
    await asker.values([trajectory(look()), trajectory(send())], ["a", "b"])
    assert (asker.answers.tokens, asker.answers.cost_usd) == (24, 0.5)


async def test_a_verifier_of_prefixes_alone_is_asked_before_the_end():
    asker = Asker(lambda state: None if state.finished else 0.25)
    assert await asker.wholes([trajectory(look(), send(terminated=True)), trajectory(send(terminated=True))], ["a", "b"]) == [0.25, None]


class ByPlace:
    """Scores by where a trajectory stands in the batch."""

    name, version = "by_place", "1"

    def __call__(self, state):
        return 0.5

    def batch(self, states):
        return [i / len(states) for i in range(len(states))]


class Steady(ByPlace):
    def batch(self, states):
        return [self(state) for state in states]


class Anchored(ByPlace):
    """Is right about all where the first one it sees is order 0."""

    def batch(self, states):
        first = states[0].steps[0].action.tool_calls[0].args["id"]
        return [self(state) if first == 0 else 0.9 for state in states]


async def test_order_consistency_sees_a_judge_that_scores_by_place():
    runs = [trajectory(look(i), send(i)) for i in range(8)]
    found = await consistency(ByPlace(), runs, ["a"] * 4 + ["b"] * 4)
    assert found.batched
    assert found.same.value < 0.2
    assert found.pairs.value < 0.5
    assert found.moved > 0.2
    steady = await consistency(Steady(), runs, ["a"] * 4 + ["b"] * 4)
    assert (steady.same.value, steady.pairs.value, steady.moved) == (1.0, 1.0, 0.0)
    anchored = await consistency(Anchored(), runs, names(8))
    assert anchored.same.value < 1.0, "only another order shows it"
    draws = iter(range(100))
    restless = await consistency(lambda _: next(draws) / 100, runs, names(8))
    assert (restless.batched, restless.same.value, restless.pairs) == (False, 0.0, None)


# --- all together ---


async def test_what_cannot_be_measured_is_said():
    silent = await evaluate(lambda _: None, [Labelled(trajectory(look()), "a", 1.0), Labelled(trajectory(send()), "b", 0.0)])
    assert silent.outcomes is None
    assert silent.consistency is None
    assert any("no opinion on any trajectory" in note for note in silent.notes)
    mute = await evaluate(lambda _: None, [Labelled(trajectory(look()), f"{i}", None, (i % 2 * 2 - 1,), i % 2 - 1) for i in range(8)])
    assert (mute.steps, mute.first_errors) == (None, None)
    assert any("no opinion on any labelled step" in note for note in mute.notes)
    assert any("no step is labelled" in note for note in silent.notes)
    alike = await evaluate(lambda _: 0.5, [Labelled(trajectory(look()), "a", 1.0)])
    assert any("ended alike" in note for note in alike.notes)
    unprobed = await evaluate(lambda _: 0.5, [Labelled(trajectory(look()), "a", 1.0)], probed=0)
    assert (unprobed.probes, unprobed.attacked, unprobed.consistency) == ((), None, None)


async def test_steps_shared_by_branches_count_once_and_neutral_ones_are_not_wrong():
    items = []
    for i in range(4):
        start, task = says(f"begin {i} [0.9]"), f"{i}"
        items += [
            Labelled(trajectory(start, says("look round [0.5]"), task=task), task, None, (1, 0), -1),
            Labelled(trajectory(start, says("break it [0.1]"), task=task), task, None, (1, -1), 1),
        ]
    found = await evaluate(written, items, probed=0)
    assert (found.labelled_steps, found.steps.n, found.ternary.accuracy.n) == (12, 12, 12)
    assert found.steps.base == pytest.approx(8 / 12)
    assert found.ternary.accuracy.value == 1.0
    assert found.ternary.majority == pytest.approx(1 / 3)


async def test_the_order_of_the_data_does_not_matter():
    items = [
        Labelled(
            trajectory(says(f"a {i} [{0.9 - i / 20}]"), says(f"b [{(i * 7 % 10) / 10}]"), task=f"{i % 5}"),
            f"{i % 5}",
            float(i % 2),
            (1, 1 - 2 * (i % 2)),
        )
        for i in range(20)
    ]
    first, second = await evaluate(written, items, probed=None), await evaluate(written, items[::-1], probed=None)
    assert first.outcomes.auroc.value == pytest.approx(second.outcomes.auroc.value)
    assert first.first_errors == second.first_errors
    assert first.task_siblings.pairs.value == pytest.approx(second.task_siblings.pairs.value)


def test_resampling_too_little_gives_no_interval():
    assert resampled(lambda weights: np.full(len(weights), np.nan), ["a", "b"]) is None


async def test_why_there_is_no_opinion_is_said_where_it_fits():
    endless = [Labelled(trajectory(look(i)), str(i), float(i % 2)) for i in range(6)]
    ended = [Labelled(trajectory(look(i, terminated=True)), str(i), float(i % 2)) for i in range(6)]
    stopped, paid = await evaluate(outcome, endless), await evaluate(outcome, ended)
    shy = await evaluate(lambda _: None, ended)
    assert any("6 of 6 runs have no end in the log" in note for note in stopped.notes)
    assert not any("rewards" in note for note in (*stopped.notes, *shy.notes))
    assert any("rewards, which are taken out before it is asked" in note for note in paid.notes)
    assert not any("no end" in note for note in (*paid.notes, *shy.notes))
    assert any("no opinion on any trajectory with a known outcome" in note for note in shy.notes)


async def test_errors_and_one_score_for_everything_are_said():
    items = [Labelled(trajectory(look(i)), str(i), float(i % 2)) for i in range(6)]

    def broken(state):
        return 1 / 0 if "2" in state.steps[-1].action.tool_calls[0].arguments else 0.25

    partly = await evaluate(broken, items, probed=0)
    assert any(note.startswith("1 of 6 questions failed: ZeroDivisionError") for note in partly.notes)
    assert any("score never varies: all 5 opinions are 0.25" in note for note in partly.notes)
    wholly = await evaluate(lambda _: 1 / 0, items, probed=0)
    assert [note for note in wholly.notes if "no opinion" in note] == []
    varied = await evaluate(lambda s: len(s.steps[-1].action.wire) / 1000 + int(s.key[:2], 16) / 1000, items, probed=0)
    assert not any("failed" in note or "never varies" in note for note in varied.notes)
