"""The search follows from what the environment can do: chosen, kept or refused with the reason."""

from __future__ import annotations

import pytest

from counterplay.choosing import FORWARD, JournaledLines, choose, fit, opened, weighs_prefixes
from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.journal import JournaledEnvironment, JournaledPolicy, MemoryJournal
from counterplay.core.nouns import Proposal
from counterplay.plan import Plan
from counterplay.replay.capabilities import Capabilities, capabilities
from counterplay.replay.live import LiveEnvironment
from counterplay.search.independent import independent
from counterplay.search.lookahead import lookahead
from counterplay.search.render import to_dict
from tests.replay.shelf import Shelf, act, results, walk
from tests.replay.shelf_async import AsyncShelf, OneWayShelf

ANYTHING = Capabilities("snapshot", "it has snapshots")
FORWARD_ONLY = Capabilities("none", "it drives a lorry", reenacts=False)
HERE_ONLY = Capabilities("copy", "it was begun live", reenacts=False)


@pytest.fixture(autouse=True)
def _fresh_counts() -> None:
    Shelf.executed.clear()
    AsyncShelf.open_now = 0


@pytest.mark.parametrize("restorable", ["snapshot", "copy", "re-execute", "recorded"])
def test_where_states_can_be_restored_nothing_is_changed(restorable):
    found = Capabilities(restorable, "")
    assert choose(found).algorithm == "fork_best_of_n"
    assert choose(found, process=True).algorithm == "repair"
    assert choose(found, options={"pivots": [3]}, process=True).algorithm == "fork_best_of_n"
    assert choose(found, options={"gate": 0.9}).algorithm == "repair"
    for name in ("mcts", "beam", "fork_best_of_n", "lookahead"):
        chosen = choose(found, name, {"seed": 3}, fork="4")
        assert (chosen.algorithm, chosen.options, chosen.fork, chosen.why) == (name, {"seed": 3}, None, "")


def test_where_nothing_can_be_restored_a_search_that_only_goes_forward_is_chosen():
    lines = choose(FORWARD_ONLY, options={"n": 5, "num_pivots": 3})
    assert (lines.algorithm, lines.options, lines.fork) == ("independent", {"n": 5}, "start")
    assert lines.why == "independent from the start: it drives a lorry"
    ahead = choose(FORWARD_ONLY, options={"n": 5, "num_actions": 6}, process=True)
    assert (ahead.algorithm, ahead.options, ahead.fork) == ("lookahead", {"num_actions": 6}, "start")
    begun = choose(HERE_ONLY, options={"n": 5}, process=True)
    assert (begun.algorithm, begun.fork) == ("best_of_n", "start")


@pytest.mark.parametrize("name", ["best_of_n", "beam", "mcts", "fork_best_of_n", "repair"])
def test_a_search_that_goes_back_is_refused_with_the_reason_and_what_would_work(name):
    with pytest.raises(UserError, match=rf"got search {name}, which .*: it drives a lorry; wanted lookahead from the start"):
        choose(FORWARD_ONLY, name, process=True)
    with pytest.raises(UserError, match="wanted independent from the start"):
        choose(FORWARD_ONLY, name)


def test_forward_searches_and_starts_are_kept_and_logged_states_refused():
    for name in FORWARD:
        assert (choose(FORWARD_ONLY, name).algorithm, choose(FORWARD_ONLY, name, fork="start").fork) == (name, "start")
    assert choose(FORWARD_ONLY, "receding_horizon", {"world_model": object()}).algorithm == "receding_horizon"
    with pytest.raises(UserError, match="receding_horizon"):
        choose(FORWARD_ONLY, "receding_horizon")
    for found in (FORWARD_ONLY, HERE_ONLY):
        with pytest.raises(UserError, match="got fork 7, but no logged state can be reached"):
            choose(found, "rollout", fork="7")
        with pytest.raises(UserError, match="fork_best_of_n"):
            choose(found, "fork_best_of_n")
    assert choose(HERE_ONLY, "mcts").algorithm == "mcts"


def test_a_plan_is_fitted():
    plan, why = fit(Plan(options={"n": 4}), FORWARD_ONLY, named=False, forked=False, process=False)
    assert (plan.algorithm, plan.options, plan.fork) == ("independent", {"n": 4}, "start")
    assert why
    assert fit(plan, ANYTHING, named=True, forked=True, process=False) == (plan, "")
    assert fit(Plan("mcts", fork="pivot"), ANYTHING, named=True, forked=False, process=True)[0] == Plan("mcts", fork="pivot")
    with pytest.raises(UserError, match="mcts"):
        fit(Plan("mcts"), FORWARD_ONLY, named=True, forked=False, process=False)
    with pytest.raises(UserError, match="fork value_drop"):
        fit(Plan(), FORWARD_ONLY, named=False, forked=True, process=False)


async def test_a_verifier_weighs_prefixes_where_it_has_an_opinion_on_them():
    trajectory = await walk(LiveEnvironment(Shelf), await LiveEnvironment(Shelf).initial(), *[act("total")] * 3, act("finish"))
    assert await weighs_prefixes(lambda t: 0.5, trajectory)
    assert not await weighs_prefixes(lambda t: t.steps[-1].reward if t.finished else None, trajectory)
    assert not await weighs_prefixes(lambda t: 0.5 if t.finished else None, trajectory)


class Drawn:
    """Puts or looks, by draw, and finishes at the fourth step."""

    fingerprint = "drawn"

    async def propose(self, state, n):
        if len(state) == 3:
            return [Proposal(act("finish"))] * n
        return [Proposal(act(("put", {"name": "a", "n": i % 2 + 1}))) for i in range(n)]


def earned(trajectory):
    return trajectory.steps[-1].reward if trajectory.finished else None


async def test_the_searches_chosen_for_a_live_system_play_it_and_restore_nothing():
    async with opened(LiveEnvironment(OneWayShelf)) as environment:
        assert choose(capabilities(environment)).algorithm == "independent"
        root = await environment.initial()
        tree = await independent(root, Drawn(), JournaledLines(environment, MemoryJournal()), earned, Budget(), n=6)
        assert sum(leaf.visits for leaf in tree.finished()) == 6
        assert [leaf.step.error for leaf in tree.finished()] == [None] * len(tree.finished())
        assert Shelf.executed["finish"] == 6
        line = await lookahead(root, Drawn(), environment, lambda t: 0.5 if not t.finished else earned(t), Budget())
        assert line.best().state.steps[-1].terminated
    assert AsyncShelf.open_now == 0


async def test_a_killed_search_of_a_live_system_finds_its_lines_and_executes_nothing_twice():
    class Killed(BaseException):
        pass

    class Dying(MemoryJournal):
        left = 15

        def put(self, key, kind, answer):
            if kind == "step":
                self.left -= 1
                if self.left < 0:
                    raise Killed
            super().put(key, kind, answer)

    async def search(journal):
        async with opened(LiveEnvironment(OneWayShelf)) as environment:
            root = await environment.initial()
            parts = JournaledPolicy(Drawn(), journal), JournaledLines(environment, journal)
            return await independent(root, *parts, earned, Budget(), n=4, concurrency=1)

    whole = await search(MemoryJournal())
    done = MemoryJournal()
    assert to_dict(await search(done)) == to_dict(whole)
    Shelf.executed.clear()
    assert to_dict(await search(done)) == to_dict(whole)
    assert not Shelf.executed
    dying = Dying()
    with pytest.raises(Killed):
        await search(dying)
    before = Shelf.executed.copy()
    resumed = await search(MemoryJournal(dying.entries))
    assert Shelf.executed == before
    ended = [leaf for leaf in resumed.finished() if leaf.step.error is None]
    lost = [leaf for leaf in resumed.finished() if leaf.step.error is not None]
    assert sum(leaf.draws for leaf in ended) == 3
    assert [leaf.draws for leaf in lost] == [1]
    assert "can't be restored" in lost[0].step.error


async def test_equal_steps_of_several_lines_are_steps_of_their_own():
    journal = MemoryJournal()
    async with opened(LiveEnvironment(OneWayShelf)) as environment:
        root = await environment.initial()
        lines = JournaledLines(environment, journal)
        assert [results(await walk(lines, root, act("total"))) for _ in range(3)] == [['{"a": 1, "b": 2}']] * 3
        assert Shelf.executed["total"] == 3
        single = JournaledEnvironment(environment, journal)
        await single.step(root, act("total"))
    assert Shelf.executed["total"] == 3
    again = JournaledLines(LiveEnvironment(OneWayShelf), journal)
    for _ in range(3):
        await again.step(root, act("total"))
    assert Shelf.executed["total"] == 3


async def test_whatever_has_no_way_of_opening_or_closing_is_passed_through():
    class Bare:
        async def step(self, state, action):
            raise NotImplementedError

    async with opened(Bare()) as environment:
        assert isinstance(environment, Bare)
