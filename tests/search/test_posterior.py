"""The posteriors over one and two errors against their formulas, summed out by brute force."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterplay.core.errors import UserError
from counterplay.search.posterior import (
    MIN_FALL,
    P_BAD,
    P_MID,
    P_OK,
    Belief,
    Probe,
    Tally,
    next_probe,
    one_error,
    prior_of,
    probability_of_two,
    two_errors,
)

PRIOR = [0.3, 0.1, 0.1, 0.1, 0.2, 0.2]
PROBES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.floats(0, 1)), min_size=1, max_size=6)


def probes_of(raw):
    return [Probe(length, lines, share * lines) for length, lines, share in raw]


def likelihood(probes, rate_of):
    return math.prod(rate_of(p.length) ** p.value * (1 - rate_of(p.length)) ** (p.lines - p.value) for p in probes)


@settings(max_examples=40, deadline=None)
@given(PROBES)
def test_one_error_is_the_formula(raw):
    probes = probes_of(raw)
    pairs = [(ok, bad) for ok in P_OK for bad in P_BAD if bad < ok]
    weights = [
        PRIOR[e] * sum(likelihood(probes, lambda t, e=e, r=r: r[0] if t <= e else r[1]) for r in pairs) / len(pairs) for e in range(6)
    ]
    belief = one_error(Tally.of(probes), PRIOR)
    assert belief.posteriors[0] == pytest.approx([weight / sum(weights) for weight in weights])
    assert belief.log_evidence == pytest.approx(math.log(sum(weights)))


@settings(max_examples=15, deadline=None)
@given(PROBES)
def test_two_errors_are_the_formula(raw):
    probes = probes_of(raw)
    triples = [(ok, mid, bad) for ok in P_OK for mid in P_MID for bad in P_BAD if ok >= mid + MIN_FALL and bad <= mid - MIN_FALL]
    weights = {
        (e, f): PRIOR[e] * PRIOR[f] * sum(likelihood(probes, lambda t, e=e, f=f, r=r: r[(t > e) + (t > f)]) for r in triples) / len(triples)
        for e, f in itertools.combinations(range(6), 2)
    }
    total, pairs = sum(weights.values()), sum(PRIOR[e] * PRIOR[f] for e, f in weights)
    belief = two_errors(Tally.of(probes), PRIOR)
    for error in (0, 1):
        wanted = [sum(weight for pair, weight in weights.items() if pair[error] == step) / total for step in range(6)]
        assert belief.posteriors[error] == pytest.approx(wanted, abs=1e-9)
    assert belief.log_evidence == pytest.approx(math.log(total / pairs))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 200), st.floats(0, 1)), max_size=12))
def test_posteriors_are_distributions(raw):
    tally = Tally.of(probes_of(raw))
    for belief in (one_error(tally, [0.1] * 10), two_errors(tally, [0.1] * 10)):
        for posterior in belief.posteriors:
            assert sum(posterior) == pytest.approx(1)
            assert all(0 <= mass <= 1 for mass in posterior)
            assert 0 <= next_probe(posterior, random.Random(0)) < 10
    if not raw:
        assert one_error(tally, [0.1] * 10).posteriors[0] == pytest.approx([0.1] * 10)


def test_by_hand():
    """Success throughout up to length 4, failure from 6 on: the pivotal step is 4 or 5, and equally likely either."""
    posterior = one_error(Tally.of([Probe(0, 8, 8), Probe(4, 8, 8), Probe(6, 8, 0)]), [0.1] * 10).posteriors[0]
    assert posterior[4] == pytest.approx(posterior[5])
    assert posterior[4] > 0.49
    certain = [0, 1, *[0] * 8]
    assert list(one_error(Tally.of([Probe(0, 8, 8), Probe(6, 8, 0)]), certain).posteriors[0]) == certain


def test_the_evidence_tells_one_error_from_two():
    one = [Probe(0, 30, 27), Probe(30, 30, 27), Probe(50, 30, 27), Probe(51, 30, 1), Probe(70, 30, 1)]
    two = [Probe(0, 30, 27), Probe(30, 30, 27), Probe(31, 30, 14), Probe(70, 30, 14), Probe(71, 30, 1)]
    for probes, least, most in ((one, 0.0, 0.05), (two, 0.99, 1.0)):
        tally, prior = Tally.of(probes), [0.01] * 100
        beliefs = one_error(tally, prior), two_errors(tally, prior)
        assert least <= probability_of_two(*beliefs, 0.2) <= most
    assert [max(range(100), key=p.__getitem__) for p in two_errors(Tally.of(two), [0.01] * 100).posteriors] == [30, 70]


def test_two_errors_need_two_steps():
    tally = Tally.of([Probe(0, 8, 8)])
    one, two = one_error(tally, [1.0]), two_errors(tally, [1.0])
    assert two.log_evidence == -math.inf
    assert probability_of_two(one, two, 0.5) == 0.0
    assert probability_of_two(one, one, 0.0) == 0.0
    assert probability_of_two(one, one, 0.3) == pytest.approx(0.3)


def test_a_belief_names_the_error_it_knows_least():
    belief = Belief(0.0, ((0.9, 0.1), (0.6, 0.4)))
    assert (belief.unsure, belief.mass) == (1, 0.6)


def test_probes_are_spread_over_the_middle_of_the_posterior():
    where = {next_probe([0.01] * 100, random.Random(seed)) for seed in range(200)}
    assert min(where) >= 34
    assert max(where) <= 66
    assert len(where) > 20
    # where one step holds nearly all, both its sides are asked about, whichever of them is nearer to the middle
    for posterior in ([0.05, 0.85, 0.1], [0.1, 0.85, 0.05]):
        sides = [next_probe(posterior, random.Random(seed)) for seed in range(100)]
        assert set(sides) == {1, 2}
        assert 30 <= sides.count(1) <= 70
    assert next_probe([0.0, 0.0, 1.0], random.Random(1)) == 2  # nothing is left to play from the end


def test_priors_from_log_odds():
    assert prior_of(None, 4) == [0.25] * 4
    assert prior_of([0.0, math.log(3)], 2) == pytest.approx([0.4, 0.6])
    assert prior_of([1000.0, -1000.0], 2)[0] == pytest.approx(1)
    with pytest.raises(UserError, match="got 1 prior log-odds; wanted one for each of the 2 steps"):
        prior_of([0.0], 2)
