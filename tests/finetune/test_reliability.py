"""Which rewards to believe: R^2 by hand, the paper's filters, and a reward model that only guesses in the middle."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.core.nouns import LoggedScore
from counterplay.finetune.reliability import filtered, logged_samples, r_squared, reliabilities, reliable, reward_bins
from counterplay.finetune.rows import Lineage, SFTRow


def test_r_squared_by_hand():
    # means 1 and 1/2: cov = 0.5 + 0 + 0.5 = 1, spreads 2 and 0.5 + ... = 0.25 * 2 + 0.25
    assert r_squared([(0, 0), (1, 0), (2, 1)]) == pytest.approx(1 / (2 * 2 / 3))
    assert r_squared([(0, 1), (1, 3), (2, 5)]) == pytest.approx(1.0)
    assert r_squared([(0, 5), (1, 3), (2, 1)]) == pytest.approx(1.0)
    assert r_squared([(0, 0), (1, 1), (2, 0)]) == pytest.approx(0.0)
    assert r_squared([(1, 0), (1, 1)]) is None
    assert r_squared([(0, 1), (1, 1)]) is None
    assert r_squared([]) is None


def test_the_filters_of_the_paper():
    rewards = [0.3, 0.9, 0.1, 0.5]
    assert filtered(rewards, "all") == [0, 1, 2, 3]
    assert filtered(rewards, "best") == [1]
    assert filtered(rewards, "best_worst") == [1, 2]
    kept = {tuple(filtered(rewards, "best_random", seed=seed)) for seed in range(30)}
    assert kept == {(0, 1), (1, 2), (1, 3)}
    assert filtered([0.5, 0.5], "best") == [0]
    assert filtered([0.5], "best_worst") == [0]
    assert filtered([], "best") == []


def guesser(count=2000, seed=0):
    """Right above 0.8 and below 0.2; between them the truth has nothing to do with the reward."""
    rng = Random(seed)
    samples = []
    for _ in range(count):
        reward = rng.random()
        chance = 0.95 if reward > 0.8 else 0.05 if reward < 0.2 else 0.5
        samples.append((reward, float(rng.random() < chance)))
    return samples


def test_the_middle_of_a_guesser_is_not_believed():
    found = reliable(guesser())
    assert 0.15 < found.low < 0.25
    assert 0.75 < found.high < 0.85
    assert found.r2 > 0.7
    assert found.r2_all < 0.5
    assert found.share == pytest.approx(0.4)
    assert [found.believes(reward) for reward in (0.05, 0.5, 0.95)] == [True, False, True]


def test_a_reward_that_is_right_everywhere_is_believed_everywhere():
    found = reliable([(i / 100, i / 100) for i in range(100)])
    assert (found.share, found.r2) == (1.0, pytest.approx(1.0))
    assert all(found.believes(i / 100) for i in range(100))


def test_best_and_worst_is_the_best_of_the_papers_filters_for_a_guesser():
    samples = guesser(3000, seed=1)
    found = reliabilities([samples[i : i + 10] for i in range(0, 3000, 10)])
    assert found["best_worst"] == max(value for value in found.values() if value is not None)
    assert found["all"] < found["best_random"] < found["best_worst"]


def test_bins_hold_equal_rewards_together():
    bins = reward_bins([(0.0, 0.0)] * 5 + [(0.5, 1.0), (0.6, 0.0), (1.0, 1.0)], count=4)
    assert [(part.n, part.low, part.high) for part in bins] == [(6, 0.0, 0.5), (2, 0.6, 1.0)]
    assert (bins[1].reward, bins[1].truth) == (0.8, 0.5)


@given(st.lists(st.tuples(st.sampled_from([i / 7 for i in range(8)]), st.sampled_from([0.0, 1.0])), min_size=15, max_size=60))
def test_bins_lose_nothing_and_what_is_kept_is_as_good_as_everything(samples):
    bins = reward_bins(samples, count=5)
    assert sum(part.n for part in bins) == len(samples)
    assert all(a.high < b.low for a, b in pairwise(bins))
    found = reliable(samples, bins=5)
    assert found.share >= 0.4
    assert (found.r2 or 0.0) >= (found.r2_all or 0.0) - 1e-8
    assert sum(found.believes(reward) for reward, _ in samples) == round(found.share * len(samples))


def test_too_few_samples_prove_nothing():
    with pytest.raises(UserError, match="29 samples for 10 bins"):
        reliable([(i, i) for i in range(29)])


def test_rows_whose_score_is_not_believed_are_left_out_by_name():
    rows = [SFTRow((), (), score=score, lineage=Lineage(f"t{score}")) for score in (0.05, 0.5, 0.95, None)]
    kept, drops = reliable(guesser()).gate(rows)
    assert kept == [rows[0], rows[2]]
    assert [(drop.reason, drop.name) for drop in drops] == [
        ("its score is not reliable", rows[1].name),
        ("no score to believe", rows[3].name),
    ]


def test_what_was_said_of_logged_runs_is_held_against_their_outcomes(kit):
    said = (LoggedScore("judge", 0.2, 0.2, step=1), LoggedScore("judge", 0.7, 0.7), LoggedScore("other", 1, 1.0))
    traces = [kit.trace(scores=said), kit.trace(reward=0.0, scores=said), kit.trace("t2", scores=())]
    assert logged_samples(traces, "judge") == {"t1": [(0.7, 1.0), (0.7, 0.0)]}
