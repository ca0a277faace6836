"""A small labelled file, made and worked by hand: every figure of the report equals the sum written beside it.

The scores stand in brackets in the steps. Rows a, b are three and four solutions of one problem, c, d, e one each.

    row  scores of the labelled steps (R right, W wrong)    whole  answer  first error  below .5
    a-1  .9R .2W        (.3 unlabelled)                     .3     wrong   1            1     found
    a-2  .2W            (.8 unlabelled)                     .8     wrong   0            0     found
    a-3  .9R .8R                                            .8     right   none         none  found
    b-1  .9R .8R .3W                                        .3     wrong   2            2     found
    b-2  .2R .9R .8W                                        .8     wrong   2            0     missed
    b-3  .8R .9R .9R                                        .9     right   none         none  found
    b-4  .9R                                                .9     right   none         none  found
    c-1  .8R .3W        (.9 unlabelled)                     .9     right   1            1     found
    d-1  .9R .8W        (.9 unlabelled)                     .9     wrong   1            none  missed
    e-1  .8R .3R .9R                                        .9     right   none         1     false alarm
"""

import asyncio
from functools import cache
from pathlib import Path

import pytest

from counterplay.reading import Reading
from counterplay.verifiers.evaluation.evaluate import evaluate
from counterplay.verifiers.evaluation.page import markdown, page, rows
from counterplay.verifiers.evaluation.steps import halves
from counterplay.verifiers.evaluation.truth import labelled
from tests.verifiers.evaluation_helpers import written

FILE = Path(__file__).parent / "hand_labelled.jsonl"


@cache
def items():
    return tuple(labelled(Reading([FILE], processes=0)))


@pytest.fixture(scope="module")
def found():
    return asyncio.run(evaluate(written, items()))


def test_the_truth_is_read_as_published():
    read = items()
    assert [item.labels for item in read[:3]] == [(1, -1, None), (-1, None), (1, 1)]
    assert [item.first_error for item in read] == [1, 0, -1, 2, 2, -1, -1, 1, 1, -1]
    assert [item.right for item in read] == [False, False, True, False, False, True, True, True, False, True]
    assert [len({item.group for item in read[a:b]}) for a, b in ((0, 3), (3, 7), (7, 10))] == [1, 1, 3]


def test_first_errors(found):
    """6 rows with an error, 4 found; 4 without, 3 found; F1 = 2 (4/6) (3/4) / (4/6 + 3/4) = 12/17, for any threshold in (.3, .8]."""
    first = found.first_errors
    assert all(0.3 < threshold <= 0.8 for threshold in first.thresholds)
    assert (first.erroneous.value, first.erroneous.n) == (pytest.approx(4 / 6), 6)
    assert (first.correct.value, first.correct.n) == (pytest.approx(3 / 4), 4)
    assert first.f1.value == pytest.approx(12 / 17)


def test_whole_trajectories(found):
    """Right: .8 .9 .9 .9 .9. Wrong: .3 .8 .3 .8 .9. Pairs won, ties half: .9 wins 4 + 1/2, four times; .8 wins 2 + 2/2; 21 of 25.

    Brier: .2^2 + 4 x .1^2 + 2 x .3^2 + 2 x .8^2 + .9^2 = 2.35. Calibration: at .3 (2, none right) 2 x .3 - 0 = .6, at .8 (3, one right)
    2.4 - 1 = 1.4, at .9 (5, four right) 4.5 - 4 = .5; together 2.5.
    """
    outcomes = found.outcomes
    assert (outcomes.n, outcomes.base) == (10, 0.5)
    assert outcomes.auroc.value == pytest.approx(21 / 25)
    assert outcomes.brier.value == pytest.approx(2.35 / 10)
    assert outcomes.ece.value == pytest.approx(2.5 / 10)
    assert outcomes.ece_width.value == pytest.approx(2.5 / 10)
    assert [(bar.said, bar.seen.value, bar.seen.n) for bar in outcomes.reliability] == [
        (pytest.approx(0.3), 0.0, 2),
        (pytest.approx(0.8), pytest.approx(1 / 3), 3),
        (pytest.approx(0.9), pytest.approx(4 / 5), 5),
    ]


def test_steps(found):
    """Right: nine .9, five .8, one .3, one .2. Wrong: .2 .2 .3 .3 .8 .8. Pairs won: 9 x 6 + 5 x (4 + 2/2) + (2 + 2/2) + 2/2 = 83 of 96.

    Brier: 9 x .01 + 5 x .04 + .49 + .64 (right) + 2 x .04 + 2 x .09 + 2 x .64 (wrong) = 2.96. Calibration: .2 (3, one right) .4, .3 (3, one
    right) .1, .8 (7, five right) .6, .9 (9, all right) .9; together 2.
    """
    assert found.labelled_steps == 22
    assert found.steps.base == pytest.approx(16 / 22)
    assert found.steps.auroc.value == pytest.approx(83 / 96)
    assert found.steps.brier.value == pytest.approx(2.96 / 22)
    assert found.steps.ece.value == pytest.approx(2.0 / 22)


def test_marks(found):
    """Cut at .5, right are a 5/5, b 8/10, c 2/2, d 1/2, e 2/3; all marked +1, a 3/5, b 8/10, c 1/2, d 1/2, e 3/3.

    One half (b, c, e, or c, d, e) is cut at .5, the other, whose cut comes from it, is all +1: 8 + 2 + 2 + 3 + 1 or 2 + 1 + 2 + 3 + 8,
    16 of 22 either way.
    """
    read = items()
    split = halves([item.group for item in read], [-1 in item.labels for item in read])
    assert [row for row, side in zip("aaabbbbcde", split, strict=True) if not side] in (list("bbbbce"), list("cde"))
    marks = found.ternary
    assert marks.accuracy.value == pytest.approx(16 / 22)
    assert marks.majority == pytest.approx(16 / 22)


def test_siblings(found):
    """Task a: .8 against .3 and .8, 1.5 of 2 pairs, not above all, place 2. Task b: .9 and .9 against .3 and .8, all. Others: one side.

    Of the actions of one state only the first of a differ in truth: .9 and .9 against .2.
    """
    tasks = found.task_siblings
    assert (tasks.pairs.value, tasks.pairs.n) == (pytest.approx((0.75 + 1) / 2), 2)
    assert tasks.one_against_many.value == pytest.approx((0 + 1) / 2)
    assert tasks.reciprocal_rank.value == pytest.approx((1 / 2 + 1) / 2)
    assert tasks.chance == pytest.approx(1 / 3)
    assert (found.step_siblings.pairs.value, found.step_siblings.pairs.n, found.step_siblings.chance) == (1.0, 1, 0.5)


def test_selection(found):
    """Pools of two and more: a (.3, .8 wrong, .8 right), b (.3, .8 wrong, .9, .9 right). Of two at random from a: {.3 .8w} 0, {.3 .8r} 1,

    {.8w .8r} 1/2: 1/2; the ceiling 2/3. From b: only {.3 .8w} gives 0: 5/6. At N = 1: 1/3 and 1/2.
    """
    one, two = found.natural.points
    assert (one.n, one.gold, one.ceiling) == (1, pytest.approx((1 / 3 + 1 / 2) / 2), pytest.approx((1 / 3 + 1 / 2) / 2))
    assert (two.n, two.gold, two.ceiling) == (2, pytest.approx((1 / 2 + 5 / 6) / 2), pytest.approx((2 / 3 + 5 / 6) / 2))
    assert found.natural.gain[0] == pytest.approx(0.25)


def test_questions(found):
    """3 + 2 + 2 + 3 + 3 + 3 + 1 + 3 + 3 + 3 steps, no two alike, and each whole is its last step: 26 questions."""
    assert found.answers.questions == 26
    assert (found.answers.abstained.value, found.answers.failed.value) == (0.0, 0.0)


def test_the_report_says_the_same(found):
    shown = {row[0]: row[1] for row in rows([found])}
    assert shown["whole trajectories: AUROC"].startswith("0.840 (")
    assert shown["first errors: F1"].startswith("0.706 (")
    assert shown["siblings of a task: pairs in order"].startswith("87.5 % (")
    assert "| whole trajectories: AUROC | 0.840 (" in markdown([found])
    made = page([found])
    assert "0.840<small> (" in made
    assert not any(mark in made for mark in ("http://", "https://", "<script", "src="))
