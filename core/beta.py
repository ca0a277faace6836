"""How sure one may be of a share: P(X > Y) for two Beta variables (does an action's value exceed its sibling's?), Wilson's interval."""

from __future__ import annotations

import math
from functools import lru_cache

_Z95 = 1.959963984540054
_DROP = 42.0  # exp(-42) = 6e-19: the density's tails beyond it do not count in double precision


def probability_better(wins: float, visits: float, other_wins: float, other_visits: float) -> float:
    """P(Q > Q_other) with Q ~ Beta(1 + W, 1 + N - W): W = `wins` = value_sum, N = `visits`, W in [0, N].

    Both priors are uniform, so two actions without visits give 0.5. Sums that leave [0, N] by rounding are put back.
    """
    won, other_won = min(max(wins, 0.0), visits), min(max(other_wins, 0.0), other_visits)
    return beta_greater(1.0 + won, 1.0 + visits - won, 1.0 + other_won, 1.0 + other_visits - other_won)


@lru_cache(maxsize=65536)
def beta_greater(a: float, b: float, c: float, d: float) -> float:
    """P(X > Y) for independent X ~ Beta(a, b), Y ~ Beta(c, d), all parameters >= 1; absolute error below 1e-9.

    The integral of f_X(x) F_Y(x) is taken over t = logit x by the trapezoid rule, which converges exponentially for such
    smooth, fast-decaying integrands. X is the narrower of the two, so that F_Y is smooth on the scale of the nodes.
    """
    if (a, b) == (c, d):
        return 0.5
    if _spread(a, b) > _spread(c, d):
        return 1.0 - beta_greater(c, d, a, b)
    step = min(0.25, _spread(a, b) / 4)
    mode, log_beta = math.log(a / b), math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    first = math.floor((-_DROP / a - 10 * _spread(a, b)) / step)
    last = math.ceil((_DROP / b + 10 * _spread(a, b)) / step)
    total = weight = 0.0
    for k in range(first, last + 1):
        t = mode + k * step
        x = 1 / (1 + math.exp(-t))
        density = math.exp(-a * math.log1p(math.exp(-t)) - b * math.log1p(math.exp(t)) - log_beta)
        weight += density
        total += density * incomplete_beta(c, d, x)
    return min(max(total / weight, 0.0), 1.0)


def _spread(a: float, b: float) -> float:
    """About the standard deviation of logit X."""
    return math.sqrt(1 / a + 1 / b)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) = P(Beta(a, b) <= x), by Lentz's continued fraction."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - math.exp(log_front) * _fraction(b, a, 1 - x) / b
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1.0 / _nonzero(1 + term * d), _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share `rate` of `n` independent trials; `n` may be an effective size."""
    square = _Z95**2
    middle, half = rate + square / (2 * n), _Z95 * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n))
    low, high = (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)
    return (0.0 if rate == 0 else max(0.0, low)), (1.0 if rate == 1 else min(1.0, high))
