"""Many questions at once: the answers, errors and order of asking one by one, whatever way the verifier can be asked."""

import asyncio

import pytest

from counterplay.core.errors import StoreError, UserError, VerifierError
from counterplay.core.journal import JournaledVerifier, MemoryJournal, ask, ask_all, batch_of
from counterplay.core.nouns import Message, Score, Step, Trajectory
from counterplay.core.protocols import calls_at_once
from counterplay.verifiers.cached import cached
from counterplay.verifiers.combine import mean

LINES = [Trajectory(prompt=(Message.user(f"task {i}"),)) for i in range(10)]


def number(trajectory):
    return int(trajectory.prompt[0].content_text.split()[1])


class Lengths:
    """Scores by number; `batch` is what is under test. Notes what it was asked."""

    name, version = "lengths", "3"

    def __init__(self, bad=(), raising=False):
        self.bad, self.raising = set(bad), raising
        self.singles, self.batches = [], []

    def __call__(self, trajectory):
        self.singles.append(number(trajectory))
        if number(trajectory) in self.bad:
            msg = f"no {number(trajectory)}"
            raise KeyError(msg)
        return None if number(trajectory) == 5 else number(trajectory) / 10

    def batch(self, trajectories):
        self.batches.append([number(t) for t in trajectories])
        if self.raising and self.bad & {number(t) for t in trajectories}:
            msg = "the whole batch"
            raise MemoryError(msg)
        return [KeyError(f"no {i}") if i in self.bad else None if i == 5 else i / 10 for i in map(number, trajectories)]


class Later(Lengths):
    async def batch(self, trajectories):
        await asyncio.sleep(0)
        return tuple(super().batch(trajectories))


class Single(Lengths):
    batch = None


class Slow(Lengths):
    batch = None

    async def __call__(self, trajectory):
        await asyncio.sleep(0.002 * (number(trajectory) % 3))
        return super().__call__(trajectory)


async def expected(verifier):
    answers = []
    for line in LINES:
        try:
            answers.append(await ask(verifier, line))
        except VerifierError as error:
            answers.append(str(error))
    return answers


def told(answers):
    return [str(answer) if isinstance(answer, Exception) else answer for answer in answers]


@pytest.mark.parametrize("kind", [Lengths, Later, Single, Slow])
@pytest.mark.parametrize("raising", [False, True])
async def test_many_at_once_are_answered_as_one_by_one(kind, raising):
    answers = await ask_all(kind(bad={2, 7}, raising=raising), LINES)
    assert told(answers) == await expected(kind(bad={2, 7}, raising=raising))
    assert answers[5] is None
    assert answers[3] == Score(0.3, "", "lengths", "3")
    assert isinstance(answers[2], VerifierError)
    assert isinstance(answers[2].__cause__, KeyError)


async def test_one_call_a_batch_and_none_of_the_single_ones():
    verifier = Lengths(bad={2})
    await ask_all(verifier, LINES)
    assert (verifier.batches, verifier.singles) == ([list(range(10))], [])
    assert await ask_all(verifier, []) == []
    assert len(verifier.batches) == 1


async def test_a_batch_that_raises_is_asked_again_one_by_one():
    verifier = Lengths(bad={2}, raising=True)
    answers = await ask_all(verifier, LINES)
    assert verifier.singles == list(range(10))
    assert [isinstance(a, VerifierError) for a in answers] == [i == 2 for i in range(10)]


@pytest.mark.parametrize("fatal", [StoreError("disk full"), UserError("got no key")])
async def test_what_is_not_a_trajectory_s_fault_is_not_asked_again(fatal):
    class Fatal(Lengths):
        def batch(self, trajectories):
            raise fatal

    verifier = Fatal()
    assert [a.__cause__ for a in await ask_all(verifier, LINES)] == [fatal] * 10
    assert verifier.singles == []


@pytest.mark.parametrize("wrong", [lambda _: [0.5], lambda ts: [0.5] * (len(ts) + 1)])
async def test_a_batch_of_another_length_is_an_error_on_all_and_never_shifted(wrong):
    verifier = Lengths()
    verifier.batch = wrong
    answers = await ask_all(verifier, LINES)
    assert all(isinstance(a, VerifierError) and "opinions on 10 trajectories" in str(a) for a in answers)


@pytest.mark.parametrize("wrong", [1.5, "good", [1], float("nan")])
async def test_what_is_not_a_score_in_a_batch_is_an_error_of_that_one(wrong):
    verifier = Lengths()
    verifier.batch = lambda ts: [wrong if i == 1 else 0.5 for i, _ in enumerate(ts)]
    answers = await ask_all(verifier, LINES)
    assert [i for i, a in enumerate(answers) if isinstance(a, VerifierError)] == [1]


@pytest.mark.parametrize("limit", [1, 3, 64])
async def test_no_more_calls_than_allowed_are_in_flight(limit):
    flying, most = 0, 0

    async def verifier(_):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.001)
        flying -= 1
        return 1.0

    token = calls_at_once.set(limit)
    answers = await ask_all(verifier, LINES)
    calls_at_once.reset(token)
    assert most == min(limit, 10)
    assert all(answer.value == 1.0 for answer in answers)


async def test_a_plain_function_makes_no_task():
    before = len(asyncio.all_tasks())
    seen = []

    def verifier(_):
        seen.append(len(asyncio.all_tasks()))
        return 1.0

    await ask_all(verifier, LINES)
    assert set(seen) == {before}


async def test_cancelling_ends_every_call_in_flight():
    ended = []

    async def verifier(trajectory):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number(trajectory))

    asking = asyncio.create_task(ask_all(verifier, LINES))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert sorted(ended) == list(range(10))


async def test_the_journal_passes_on_what_it_does_not_know_each_question_once():
    verifier, journal = Lengths(bad={2}), MemoryJournal()
    journalled = JournaledVerifier(verifier, journal)
    first = await ask_all(journalled, [*LINES[:4], LINES[1]])
    assert verifier.batches == [[0, 1, 2, 3]]
    assert first[1] == first[4]
    await ask_all(journalled, LINES)
    assert verifier.batches[1] == [2, 4, 5, 6, 7, 8, 9], "an error is asked again, an answer is not"
    assert [await journalled(line) for line in LINES[3:]] == (await ask_all(journalled, LINES))[3:]
    assert verifier.singles == []


async def test_endings_that_differ_are_different_questions_in_a_batch():
    def verifier(trajectory):
        return float(trajectory.finished)

    verifier.batch = lambda ts: [float(t.finished) for t in ts]
    step = Step(Message.assistant("done"))
    open_, ended = (Trajectory(steps=(Step(step.action, terminated=flag),)) for flag in (False, True))
    answers = await ask_all(JournaledVerifier(verifier, MemoryJournal()), [open_, ended])
    assert [answer.value for answer in answers] == [0.0, 1.0]


def test_a_journal_has_a_batch_exactly_where_its_verifier_has():
    assert batch_of(JournaledVerifier(Lengths(), MemoryJournal())) is not None
    assert batch_of(JournaledVerifier(Single(), MemoryJournal())) is None
    assert batch_of(JournaledVerifier(number, MemoryJournal())) is None


class Ranks(Lengths):
    """Compares what is in a batch."""

    relative = True

    def batch(self, trajectories):
        self.batches.append([number(t) for t in trajectories])
        order = sorted(map(number, trajectories))
        return [KeyError("no") if number(t) in self.bad else order.index(number(t)) / 10 for t in trajectories]


async def test_a_comparison_is_kept_for_its_own_company_alone():
    journal, ranks = MemoryJournal(), Ranks()
    first = JournaledVerifier(ranks, journal)
    assert [s.value for s in await first.batch(LINES[4:7])] == [0.0, 0.1, 0.2]
    assert [s.value for s in await first.batch(LINES[6:3:-1])] == [0.2, 0.1, 0.0]
    assert ranks.batches == [[4, 5, 6]]
    assert [s.value for s in await first.batch([LINES[2], *LINES[4:7]])] == [0.0, 0.1, 0.2, 0.3]
    assert ranks.batches[1:] == [[2, 4, 5, 6]]
    ranks.bad = {8}
    assert isinstance((await first.batch(LINES[7:9]))[1], VerifierError)
    ranks.bad = set()
    assert [s.value for s in await first.batch(LINES[7:9])] == [0.0, 0.1]
    assert ranks.batches[2:] == [[7, 8]] * 2  # what failed is asked about again with all of its company


async def test_a_comparison_that_fails_is_not_made_up_of_lone_questions_and_not_kept(monkeypatch):
    journal, ranks = MemoryJournal(), Ranks()
    asked = JournaledVerifier(ranks, journal)
    with monkeypatch.context() as down:
        down.setattr(Ranks, "batch", lambda *_: 1 / 0)
        assert all(isinstance(answer, VerifierError) for answer in await asked.batch(LINES[4:7]))
    assert not journal.entries
    assert [s.value for s in await asked.batch(LINES[4:7])] == [0.0, 0.1, 0.2]


def test_what_compares_is_not_cached():
    with pytest.raises(ValueError, match="lengths, which compares"):
        cached(Ranks())
    assert mean(Lengths(), Ranks()).relative
    assert not mean(Lengths()).relative
