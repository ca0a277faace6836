"""Test-time scaling of real worlds: lines drawn apart, searches by budget, the machinery's failures left out."""

import sys
from types import SimpleNamespace

import pytest

from counterplay.core.errors import PolicyError, UserError
from counterplay.core.nouns import Message, Proposal
from counterplay.core.protocols import first_draw
from counterplay.scaling import Course, markdown, scale, table


class Guesser:
    """Draw i of the first step says digit i + shift; then it repeats itself. Counts what it is asked."""

    def __init__(self, shift=0, fails=()):
        self.shift, self.fails, self.drawn = shift, fails, []

    async def propose(self, state, n):
        if state.prompt[0].content_text in self.fails:
            raise PolicyError("the server answered 500")
        start = first_draw.get()
        if not state.steps:
            self.drawn += range(start, start + n)
        said = [str(start + i + self.shift) if not state.steps else state.steps[0].action.content_text for i in range(n)]
        return [Proposal(Message.assistant(text)) for text in said]


class Lock:
    """Two guesses, of which the second counts: it pays where it is the task's digit."""

    tools = ()

    def __init__(self, task):
        self.prompt, self.task, self.left = (Message.user(task),), task, 2
        self.done, self.reward = False, 0.0

    def reply(self, action):
        self.left -= 1
        self.done = self.left == 0
        self.reward = float(self.done and action.content_text == self.task[-1])
        return [] if self.done else [Message.user("sure?")]

    def call(self, name, arguments):
        raise AssertionError(name)

    def copy(self):
        twin = object.__new__(Lock)
        twin.__dict__.update(self.__dict__)
        return twin


TASKS = ["lock 0", "lock 1", "lock 2", "lock 3"]


@pytest.fixture
def module(monkeypatch):
    held = SimpleNamespace(Lock=Lock, plain=Guesser(), ahead=Guesser(shift=1), flaky=Guesser(fails=TASKS[:1]))
    held.backwards = lambda trajectory: 1.0 - int(trajectory.steps[0].action.content_text) / 10
    monkeypatch.setitem(sys.modules, "scaled", held)
    return held


async def test_lines_are_drawn_once_each_until_the_budget_is_spent(module):
    course = Course.parse("8,2,4", None, [], [])
    found = await scale({"plain": "scaled:plain", "ahead": "scaled:ahead"}, "scaled:Lock", TASKS, course)
    assert sorted(module.plain.drawn) == sorted([0, 1, 2, 3] * 4)
    plain, ahead = found.curves
    assert [(point.budget, point.rate, point.spent) for point in plain.points] == [(2, 0.25, 2.0), (4, 0.5, 4.0), (8, 1.0, 8.0)]
    assert [point.rate for point in ahead.points] == [0.25, 0.5, 0.75]
    assert (found.method, found.verifier) == ("best_of_n", "outcome")
    assert "no evidence of a gap" in str(table(found)[1])
    assert "| 8 | 100.0 %" in markdown(found)


@pytest.mark.parametrize(("search", "options"), [(None, []), ("independent", ["n=B/2"])])
async def test_a_task_that_is_there_twice_counts_once(module, search, options):
    course = Course.parse("4,8", search, options, [])
    once = await scale({"plain": "scaled:plain"}, "scaled:Lock", TASKS, course)
    drawn = sorted(module.plain.drawn)
    module.plain.drawn.clear()
    assert await scale({"plain": "scaled:plain"}, "scaled:Lock", [*TASKS, TASKS[0]], course) == once
    assert sorted(module.plain.drawn) == drawn


async def test_a_verifier_that_is_wrong_makes_more_worse(module):
    """It likes low digits, so with more lines it takes the first guess again and again."""
    course = Course.parse("2,8", None, [], ["scaled:backwards"])
    found = await scale({"plain": "scaled:plain"}, "scaled:Lock", TASKS, course)
    assert [point.rate for point in found.curves[0].points] == [0.25, 0.25]


async def test_a_search_is_run_at_every_budget_with_options_of_it(module):
    course = Course.parse("4,8", "independent", ["n=B/2"], [])
    assert [course.options_at(budget) for budget in (1, 4, 8)] == [{"n": 1}, {"n": 2}, {"n": 4}]
    found = await scale({"plain": "scaled:plain"}, "scaled:Lock", TASKS, course)
    assert [(point.rate, point.spent) for point in found.curves[0].points] == [(0.5, 4.0), (1.0, 8.0)]


async def test_what_the_machinery_broke_is_no_result(module):
    course = Course.parse("2", None, [], [])
    with pytest.raises(PolicyError, match="1 of 4 tasks could not be played"):
        await scale({"flaky": "scaled:flaky"}, "scaled:Lock", TASKS, course)
    found = await scale({"flaky": "scaled:flaky"}, "scaled:Lock", [*TASKS, *(f"lock {i}" for i in range(4, 30))], course)
    assert found.tasks == 29
    searched = Course.parse("2", "independent", ["n=B/2"], [])
    with pytest.raises(PolicyError, match="1 of 4 tasks could not be played; lock 0"):
        await scale({"flaky": "scaled:flaky"}, "scaled:Lock", TASKS, searched)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("x", None, [], []), "numbers of model calls"),
        (("0,4", None, [], []), "numbers of model calls"),
        (("4", "repair", [], []), "forks a logged run"),
        (("4", "nonsense", [], []), "got search"),
        (("4", None, ["n=4"], []), "as many lines"),
        (("4", "independent", ["n"], []), "key=value"),
        (("4", "independent", ["m=4"], []), "got option"),
    ],
)
def test_what_cannot_be_played_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        Course.parse(*given)


async def test_greedy_lines_are_refused(module):
    with pytest.raises(UserError, match="all lines are alike"):
        await scale({"plain": "scaled:plain"}, "scaled:Lock", TASKS, Course((2,)), temperature=0.0)
