"""Curves of success against model calls: which lines a budget holds, which of them the verifier takes, and what is sure."""

import xml.etree.ElementTree as ET

import pytest

from counterplay.core.errors import UserError
from counterplay.finetune.evaluate import Results
from counterplay.finetune.intervals import difference_interval, rate_interval
from counterplay.finetune.scaling import Line, best_of_lines, best_within, plot, scaling

LINES = [Line(5, 0.2, 1.0), Line(4, 0.9, 0.0), Line(6, None, 1.0), Line(3, 0.9, 1.0), Line(2, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("budget", "wanted"), [(4, (0.0, 0)), (5, (1.0, 5)), (9, (0.0, 9)), (18, (0.0, 18)), (20, (1.0, 20)), (99, (1.0, 20))]
)
def test_the_verifier_chooses_among_the_lines_that_fit(budget, wanted):
    """A wrong line that scores more than a right one is taken; of equals the first; a line without a score last."""
    assert best_within(LINES, budget) == wanted


def test_a_line_that_does_not_fit_ends_it():
    assert best_within([Line(9, 0.1, 0.0), Line(2, 0.9, 1.0)], 5) == (0.0, 0)
    assert best_within([Line(2, None, 1.0)], 5) == (1.0, 2)


def test_curves_and_gaps_have_their_intervals():
    a = {f"t{i}": [Line(4, 0.5, float(i % 4 == 0)), Line(4, 0.6, float(i % 2 == 0))] for i in range(40)}
    b = {f"t{i}": [Line(4, 0.5, float(i % 4 > 0)), Line(3, 0.1, 1.0)] for i in range(40)}
    found = scaling([best_of_lines("a", a, (4, 8)), best_of_lines("b", b, (4, 8))], verifier="rules")
    first, second = found.curves
    assert [(point.budget, point.rate, point.spent) for point in first.points] == [(4, 0.25, 4.0), (8, 0.5, 8.0)]
    assert [(point.budget, point.rate, point.spent) for point in second.points] == [(4, 0.75, 4.0), (8, 0.75, 7.0)]
    assert first.points[1].interval == rate_interval([1.0, 0.0] * 20)
    assert [(gap.a, gap.b, gap.budget, gap.difference) for gap in found.gaps] == [("a", "b", 4, 0.5), ("a", "b", 8, 0.25)]
    assert found.gaps[1].interval == difference_interval([1.0, 0.0] * 20, [0.0, 1.0, 1.0, 1.0] * 10)
    assert found.sentences()[0] == "b over a: sure at budgets 4 (+50.0)"
    assert found.sentences()[1] == "  b has a's success at 8 model calls with 4"


def test_no_gap_is_no_evidence():
    same = {f"t{i}": [Line(4, 0.5, float(i % 2))] for i in range(10)}
    found = scaling([best_of_lines("a", same, (4, 8)), best_of_lines("b", same, (4, 8))])
    assert found.sentences()[0] == "b over a: no evidence of a gap at any budget"


@pytest.mark.parametrize("other", [{4: Results("b", {"t1": 1.0})}, {8: Results("b", {"t0": 1.0})}, {}])
def test_what_cannot_be_compared_is_refused(other):
    with pytest.raises(UserError, match="same ones for every policy"):
        scaling([{4: Results("a", {"t0": 1.0})}, other])


def test_the_plot_is_drawn(tmp_path):
    lines = {f"t{i}": LINES for i in range(5)}
    found = scaling([best_of_lines("before", lines, (5, 9, 20)), best_of_lines("after", lines, (5, 9, 20))], verifier="rules")
    plot(found, tmp_path / "curve.svg")
    drawn = ET.fromstring((tmp_path / "curve.svg").read_text())
    assert drawn.tag.endswith("svg")
    plot(found, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "curve.svg").read_bytes()
    plot(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
