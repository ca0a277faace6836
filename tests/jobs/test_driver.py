"""The driver settles every unit once: what fails for a while is tried again, what kills its worker is parked, and no more than that."""

import asyncio
from collections import Counter

import pytest

from counterplay import Store
from counterplay.core.errors import StoreError
from counterplay.core.nouns import Trajectory
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.core.store import NewUnit
from counterplay.jobs.driver import Driver
from counterplay.jobs.progress import Progress, read_status
from counterplay.jobs.retries import Retries
from counterplay.jobs.work import ERRORS, Work, Worked, WorkerLostError

ROOT = (NodeRecord(0, None, None),)


def record(unit):
    return SearchRecord(f"search-{unit}", "stub", Trajectory(), ROOT, stopped="done")


class Crew:
    """Does what `script` says of a unit: one answer after the other, the last again and again; what it was given is in `given`."""

    def __init__(self, script=None, size=3):
        self.size, self.script, self.given = size, script or {}, []
        self.at_once = self.most = 0

    async def submit(self, work):
        self.given.append(work.unit)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0)
            answers = self.script.get(work.unit, ["done"])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if callable(answer):
                answer = await answer()
            if isinstance(answer, Exception):
                raise answer
            if answer in ERRORS:
                return Worked(work.unit, "failed", f"{answer} 17", answer)
            return Worked(work.unit, answer, records=(record(work.unit),), used={"model_calls": 2.0}, live_calls=1)
        finally:
            self.at_once -= 1

    async def close(self):
        pass


class Loader:
    at_once = 5

    def load(self, units):
        return [Work(unit.id, ()) for unit in units]


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as opened:
        opened.put_job("j", "j", "{}")
        yield opened


def units(store, count=10):
    store.add_units("j", [NewUnit(f"u{i}", (f"u{i}",)) for i in range(count)])
    return store.unit_counts("j")


async def drive(store, crew, *, retries=None, **given):
    progress = Progress(store.path, "j", store.unit_counts("j"))
    driver = Driver(store, "j", Loader(), crew, progress, retries=retries or Retries(3, 0.001), **given)
    return await driver.run(), progress


async def test_every_unit_is_worked_on_once_and_settled_with_its_tree(store):
    units(store, 200)
    crew = Crew()
    ended, progress = await drive(store, crew)
    assert ended == ""
    assert store.unit_counts("j")["done"] == 200
    assert sorted(crew.given) == sorted(f"u{i}" for i in range(200))
    assert crew.most == 3
    assert len(store.searches()) == 200
    assert (progress.live_calls, progress.states["done"], progress.used) == (200, 200, {"model_calls": 400.0})
    assert store.units("j", limit=1)[0].result["searches"] == ["search-u0"]


@pytest.mark.parametrize(("error_class", "asked"), [("unreached", 3), ("closed", 1)])
async def test_a_server_that_is_there_for_nobody_stops_the_job_and_costs_no_unit(store, error_class, asked):
    units(store)
    away = Crew({f"u{i}": [error_class] for i in range(10)}, size=1)
    ended, _ = await drive(store, away)
    assert ended == f"{error_class} 17"
    assert max(Counter(away.given).values()) == asked
    assert store.unit_counts("j")["pending"] == 10
    assert store.units("j", limit=1)[0].reason == f"{error_class} 17"
    ended, _ = await drive(store, Crew({"u0": [error_class, "done"] if error_class == "unreached" else ["done"]}))
    assert ended == ""
    assert store.unit_counts("j")["done"] == 10


async def test_what_goes_wrong_is_tried_again_by_its_class(store):
    script = {
        "u0": ["server", "rate_limit", "done"],
        "u1": ["user"],
        "u2": ["refused"],
        "u3": ["server"],
        "u4": [WorkerLostError("killed"), "done"],
        "u5": [WorkerLostError("killed")],
        "u6": ["skipped"],
    }
    units(store)
    crew = Crew(script)
    ended, _ = await drive(store, crew)
    tried = Counter(crew.given)
    assert [tried[f"u{i}"] for i in range(8)] == [3, 1, 1, 3, 2, 3, 1, 1]
    found = {unit.id: (unit.state, unit.error_class) for unit in store.units("j")}
    assert ended == ""
    assert found["u0"] == found["u4"] == found["u7"] == ("done", "")
    assert found["u1"] == ("failed", "user")
    assert found["u2"] == ("failed", "refused")
    assert found["u3"] == ("parked", "server")
    assert found["u5"] == ("parked", "lost")
    assert found["u6"][0] == "skipped"


async def test_a_try_beside_others_that_may_have_cost_the_worker_is_none(store):
    units(store, 3)
    beside = WorkerLostError("killed", alone=False)
    crew = Crew({"u0": [beside, beside, "done"], "u1": [beside, WorkerLostError("killed")]})
    await drive(store, crew, retries=Retries(1, 60.0))
    found = {unit.id: (unit.state, unit.error_class) for unit in store.units("j")}
    assert found == {"u0": ("done", ""), "u1": ("parked", "lost"), "u2": ("done", "")}


async def test_parked_units_have_all_their_tries_when_they_are_given_another_start(store):
    units(store, 1)
    await drive(store, Crew({"u0": ["server"]}))
    assert store.unit_counts("j")["parked"] == 1
    store.reopen_units("j")
    crew = Crew({"u0": ["server", "server", "done"]})
    await drive(store, crew)
    assert (store.unit_counts("j")["done"], len(crew.given)) == (1, 3)


async def test_drivers_that_are_killed_cost_a_unit_none_of_its_tries(store):
    units(store, 1)
    for number in range(9):
        assert store.claim("j", f"gone-{number}", 1)[0].attempts == number + 1
    crew = Crew({"u0": ["server", "server", "done"]})
    await drive(store, crew)
    assert (store.unit_counts("j")["done"], len(crew.given)) == (1, 3)


async def test_stopping_keeps_what_is_finished_and_gives_the_rest_back(store):
    units(store)
    crew = Crew({"u3": [lambda: asyncio.sleep(60)]})
    progress = Progress(store.path, "j", store.unit_counts("j"))
    driver = Driver(store, "j", Loader(), crew, progress)
    running = asyncio.create_task(driver.run())
    while len(crew.given) < 10:  # noqa: ASYNC110  the crew does not say
        await asyncio.sleep(0.01)
    driver.stop("interrupted")
    assert await running == "interrupted"
    counts = store.unit_counts("j")
    assert (counts["done"], counts["pending"], counts["running"]) == (9, 1, 0)
    ended, _ = await drive(store, Crew())
    assert (ended, store.unit_counts("j")["done"]) == ("", 10)


async def test_a_job_ends_where_its_time_is_over(store):
    units(store)
    ended, _ = await drive(store, Crew({"u1": [lambda: asyncio.sleep(60)]}), seconds=0.2)
    assert ended == "its time is over"
    assert store.unit_counts("j")["pending"] >= 1


async def test_a_probe_works_on_so_many_units(store):
    units(store)
    crew = Crew()
    ended, _ = await drive(store, crew, limit=4)
    assert (ended, len(crew.given), store.unit_counts("j")["done"]) == ("", 4, 4)


async def test_leases_of_what_is_under_way_are_renewed(store):
    units(store, 3)
    crew = Crew({"u1": [lambda: asyncio.sleep(2.6, "done")]})
    await drive(store, crew, lease_s=1.8)
    assert Counter(crew.given) == {"u0": 1, "u1": 1, "u2": 1}
    assert [(unit.state, unit.attempts) for unit in store.units("j")] == [("done", 1)] * 3


async def test_a_store_that_fails_ends_the_job(store):
    units(store)
    with pytest.raises(StoreError, match="no room"):
        await drive(store, Crew({"u2": [StoreError("no room")]}))


async def test_a_tree_that_can_not_be_written_leaves_its_unit_unsettled(store, monkeypatch):
    units(store, 2)

    def full(*_):
        raise StoreError("no room")

    monkeypatch.setattr(store, "put_searches", full)
    with pytest.raises(StoreError, match="no room"):
        await drive(store, Crew())
    assert store.unit_counts("j")["done"] == 0
    monkeypatch.undo()
    await drive(store, Crew())
    assert store.unit_counts("j")["done"] == 2


async def test_the_status_is_beside_the_store_while_somebody_works(store):
    units(store)
    seen = []

    async def look():
        await asyncio.sleep(0)
        seen.append(read_status(store.path))
        return "done"

    _, progress = await drive(store, Crew({"u9": [look]}, size=1))
    assert (seen[0].job, seen[0].units) == ("j", 10)
    progress.gone()
    assert read_status(store.path) is None


def test_waits_double_and_differ_by_class():
    retries = Retries(4, 2.0)
    assert [retries.again_s("verifier", tries) for tries in (1, 2, 3, 4)] == [2.0, 4.0, 8.0, None]
    assert retries.again_s("rate_limit", 1) == 16.0
    assert retries.again_s("lost", 1) == 1.0
    assert Retries(99, 100.0).again_s("server", 50) == 900.0
    assert retries.again_s("user", 1) is None
    assert {name: retries.given_up(name) for name in ("user", "refused", "server")} == {
        "user": "failed",
        "refused": "failed",
        "server": "parked",
    }


class Counting(Loader):
    def __init__(self):
        self.given = []

    def load(self, units):
        self.given.append([unit.id for unit in units])
        return super().load(units)


async def test_units_are_loaded_many_together_ahead_of_a_crew_that_takes_them_one_by_one(store):
    wide = NewUnit("wide", tuple(f"w{i}" for i in range(9)))
    few = [NewUnit(f"u{i}", (f"u{i}",)) for i in range(14)]
    store.add_units("j", [*few[:7], wide, *few[7:]])
    loader, crew = Counting(), Crew(size=1)
    await Driver(store, "j", loader, crew, Progress(store.path, "j", store.unit_counts("j"))).run()
    assert crew.given == [*(f"u{i}" for i in range(7)), "wide", *(f"u{i}" for i in range(7, 14))]
    assert [len(units) for units in loader.given] == [5, 2, 1, 5, 2]
    assert loader.given[2] == ["wide"]


async def test_what_was_loaded_and_not_begun_is_given_back(store):
    units(store)
    crew = Crew({"u0": [lambda: asyncio.sleep(60)]}, size=1)
    driver = Driver(store, "j", Loader(), crew, Progress(store.path, "j", store.unit_counts("j")))
    running = asyncio.create_task(driver.run())
    while not crew.given:  # noqa: ASYNC110  the crew does not say
        await asyncio.sleep(0.01)
    driver.stop("interrupted")
    await running
    assert (store.unit_counts("j")["pending"], store.unit_counts("j")["running"]) == (10, 0)


async def test_trees_are_written_with_their_units_or_not_at_all(store, monkeypatch):
    units(store, 2)

    def full(*_):
        raise StoreError("no room")

    monkeypatch.setattr(store, "settle", full)
    with pytest.raises(StoreError, match="no room"):
        await drive(store, Crew())
    assert store.searches() == []
