"""P(X > Y) against values worked by hand, the closed form for whole numbers, and Monte Carlo."""

import math
from random import Random

import pytest

from counterplay.finetune.beta import beta_greater, incomplete_beta, probability_better


def closed_form(a, b, c, d):
    """P(X > Y), X ~ Beta(a, b), Y ~ Beta(c, d), for whole a."""

    def log_beta(p, q):
        return math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)

    return sum(math.exp(log_beta(c + i, d + b) - math.log(b + i) - log_beta(1 + i, b) - log_beta(c, d)) for i in range(a))


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ((0, 0), (0, 0), 1 / 2),
        ((1, 1), (0, 0), 2 / 3),  # E[X] of Beta(2, 1)
        ((1, 1), (0, 1), 5 / 6),
        ((4, 4), (0, 4), 1 - 1 / 252),
        ((2, 4), (2, 4), 1 / 2),
    ],
)
def test_values_by_hand(good, bad, expected):
    assert probability_better(*good, *bad) == pytest.approx(expected, abs=1e-9)
    assert probability_better(*bad, *good) == pytest.approx(1 - expected, abs=1e-9)


def test_whole_numbers_agree_with_the_closed_form():
    rng = Random(1)
    for _ in range(60):
        visits, other = rng.choice([1, 3, 10, 100, 1000]), rng.choice([1, 3, 10, 100, 1000])
        a, c = 1 + rng.randint(0, visits), 1 + rng.randint(0, other)
        b, d = 2 + visits - a, 2 + other - c
        assert beta_greater(a, b, c, d) == pytest.approx(closed_form(a, b, c, d), abs=1e-9)


def test_fractions_agree_with_monte_carlo():
    rng = Random(2)
    a, b, c, d = 1 + 2.7, 1 + 1.3, 1 + 1.1, 1 + 4.9
    drawn = sum(rng.betavariate(a, b) > rng.betavariate(c, d) for _ in range(40_000)) / 40_000
    assert beta_greater(a, b, c, d) == pytest.approx(drawn, abs=0.01)


def test_sums_that_leave_their_range_by_rounding_are_put_back():
    assert probability_better(4.0000001, 4, -0.0000001, 4) == probability_better(4, 4, 0, 4)


def test_incomplete_beta_of_the_uniform_and_at_the_ends():
    assert incomplete_beta(1, 1, 0.3) == pytest.approx(0.3)
    assert (incomplete_beta(2, 5, 0.0), incomplete_beta(2, 5, 1.0)) == (0.0, 1.0)
    assert incomplete_beta(2, 1, 0.5) == pytest.approx(0.25)
