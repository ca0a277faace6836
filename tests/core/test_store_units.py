"""Units of work: each is settled once, by who holds it, whatever is killed, late or tried again. A plain model says what is right."""

import json
import random
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from counterplay.core.errors import StoreError, UserError
from counterplay.core.nouns import Trajectory
from counterplay.core.records import NodeRecord, SearchRecord
from counterplay.core.store import SETTLED, UNIT_STATES, NewUnit, Settled, Store

SECOND = 1_000_000


@pytest.fixture
def store():
    with Store.open(":memory:") as opened:
        opened.put_job("j", "nightly", "{}")
        yield opened


def added(store, *names, job="j", **fields):
    return store.add_units(job, (NewUnit(name, (f"t-{name}",), **fields) for name in names))


def ids(units):
    return [unit.id for unit in units]


def test_a_unit_goes_its_way(store):
    assert store.add_units("j", [NewUnit("a", ("t1", "t2"), {"usd": 0.5}), NewUnit("b", ("t3",))]) == 2
    (unit,) = store.claim("j", "me", 1, lease_s=60, now_us=5 * SECOND)
    assert (unit.id, unit.traces, unit.share, unit.state, unit.attempts, unit.owner) == (
        "a",
        ("t1", "t2"),
        {"usd": 0.5},
        "running",
        1,
        "me",
    )
    assert (unit.lease_until_us, unit.at_us, unit.result, unit.not_before_us) == (65 * SECOND, 5 * SECOND, {}, None)
    assert store.units("j", state="running") == [unit], "what is claimed is what the store holds"
    assert store.settle("j", [Settled("a", result={"nodes": 3, "why": "json:"})], "me") == []
    (done,) = store.units("j", state="done")
    assert (done.result, done.owner, done.lease_until_us, done.attempts) == ({"nodes": 3, "why": "json:"}, None, None, 1)
    assert store.unit_counts("j") == {"pending": 1, "running": 0, "done": 1, "failed": 0, "skipped": 0, "parked": 0}
    assert ids(store.claim("j", "me", 9)) == ["b"]
    assert store.claim("j", "me", 9) == []


def test_units_that_are_there_are_left_as_they_are(store):
    assert added(store, "a", "b", "a") == 2
    store.claim("j", "me", 1)
    assert store.add_units("j", [NewUnit("a", ("other",), {"usd": 9}), NewUnit("c", ())]) == 1
    assert [(unit.id, unit.traces, unit.state) for unit in store.units("j")] == [
        ("a", ("t-a",), "running"),
        ("b", ("t-b",), "pending"),
        ("c", (), "pending"),
    ]


def test_units_are_added_all_or_none(store):
    def broken():
        yield NewUnit("a", ())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.add_units("j", broken())
    assert store.units("j") == []
    with pytest.raises(UserError, match="'running'"):
        store.add_units("j", [NewUnit("a", ()), NewUnit("b", (), state="running")])
    assert added(store, "a") == 1


def test_what_is_skipped_from_the_start_is_never_worked_on(store):
    added(store, "a", state="skipped", reason="the budget was spent on the traces before it")
    assert store.claim("j", "me", 1) == []
    assert store.units("j", state="skipped")[0].reason.startswith("the budget")


def test_only_who_holds_a_unit_settles_it(store):
    added(store, "a", "b")
    store.claim("j", "old", 2, lease_s=60)
    assert ids(store.claim("j", "new", 1, lease_s=60)) == ["a"], "another owner is one that is gone"
    assert store.settle("j", [Settled("a", "failed"), Settled("b"), Settled("never heard of")], "old") == ["a", "never heard of"]
    assert store.settle("j", [Settled("a"), Settled("a", "failed")], "new") == ["a"], "once"
    assert store.settle("j", [Settled("a", "failed")], "new") == ["a"]
    assert [unit.state for unit in store.units("j")] == ["done", "done"]
    with pytest.raises(UserError, match="settled as 'running'"):
        store.settle("j", [Settled("a", "running")], "new")


def test_a_lease_that_ends_gives_the_unit_to_the_next(store):
    added(store, "a", "b")
    store.claim("j", "me", 2, lease_s=10, now_us=0)
    assert store.claim("j", "me", 2, lease_s=10, now_us=10 * SECOND - 1) == []
    again = store.claim("j", "me", 1, lease_s=10, now_us=10 * SECOND)
    assert [(unit.id, unit.attempts) for unit in again] == [("a", 2)]
    assert store.renew("j", ["a", "b", "c"], "me", lease_s=10**6) == ["c"]
    assert store.claim("j", "me", 2, now_us=10**9) == [], "both were renewed"
    assert store.renew("j", ["a"], "other") == ["a"]


def test_a_unit_that_is_to_be_tried_again_waits_for_its_time(store):
    added(store, "a", "b")
    store.claim("j", "me", 2, lease_s=1000, now_us=0)
    store.settle("j", [Settled("a", "pending", "overloaded", "server", {"tries": 1}, 50 * SECOND)], "me")
    assert store.due_us("j") == 50 * SECOND
    assert store.claim("j", "me", 2, now_us=50 * SECOND - 1) == []
    (unit,) = store.claim("j", "me", 2, lease_s=7, now_us=50 * SECOND)
    assert (unit.attempts, unit.error_class, unit.reason, unit.result, unit.not_before_us) == (
        2,
        "server",
        "overloaded",
        {"tries": 1},
        None,
    )
    assert store.due_us("j") == 57 * SECOND, "the lease that ends next"
    store.settle("j", [Settled("a", "parked", "overloaded", "server"), Settled("b", "failed", "no such model", "user")], "me")
    assert (store.due_us("j"), store.claim("j", "me", 2)) == (None, [])
    assert (store.reopen_units("j", ["parked", "running"]), store.reopen_units("j"), store.reopen_units("j")) == (1, 1, 0)
    assert [(unit.id, unit.attempts) for unit in store.claim("j", "me", 2)] == [("a", 1), ("b", 1)]


def test_units_are_claimed_in_the_order_they_were_added_whatever_they_wait_for(store):
    added(store, *"edcba")
    store.claim("j", "gone", 1)
    store.claim("j", "me", 1, now_us=0)
    store.settle("j", [Settled("e", "pending")], "me")
    assert ids(store.claim("j", "me", 3)) == ["e", "d", "c"]


def test_pages_of_units(store):
    added(store, *map(str, range(5)))
    first = store.units("j", limit=2)
    rest = store.units("j", after=first[-1].number)
    assert ids(first) + ids(rest) == list("01234")
    assert store.units("j", limit=0) == []


def test_jobs(store):
    first = store.job("j")
    assert (first.name, first.spec, first.state, first.ended_us) == ("nightly", "{}", "running", None)
    store.put_job("k", "other", '{"a": "\\ud800"}')
    added(store, "a", job="k")
    added(store, "a")
    store.end_job("j", "done")
    assert [(job.id, job.state, job.ended_us is None) for job in store.jobs()] == [("j", "done", False), ("k", "running", True)]
    again = store.put_job("j", "renamed", "[]")
    assert (again.number, again.name, again.spec, again.state, again.ended_us) == (first.number, "renamed", "[]", "running", None)
    assert again.created_us == first.created_us
    assert ids(store.claim("k", "me", 9)) == ["a"], "units of two jobs may share an id"
    assert store.unit_counts("j")["pending"] == 1
    for asked in (store.job, store.unit_counts, store.units, store.due_us, lambda job: store.claim(job, "me", 1)):
        with pytest.raises(UserError, match=r"no job 'l'; wanted one of the 2 held\. Held: j, k"):
            asked("l")
    with pytest.raises(UserError, match="no job"):
        put_and_end(store)
    assert len(store.jobs()) == 2


def put_and_end(store):
    with store.transaction():
        store.put_job("l", "", "")
        store.end_job("m", "done")


def test_trees_and_what_came_of_a_unit_are_written_as_one(store):
    added(store, "a")
    store.claim("j", "me", 1)
    record = SearchRecord("s", "mcts", Trajectory(), (NodeRecord(0, None, None),))

    def write(*, fails):
        with store.transaction():
            store.put_searches([record])
            store.settle("j", [Settled("a")], "me")
            assert store.searches() == [], "not yet"
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(fails=True)
    assert (store.searches(), store.unit_counts("j")["running"]) == ([], 1)
    write(fails=False)
    assert (len(store.searches()), store.unit_counts("j")["done"]) == (1, 1)


def test_threads_never_claim_the_same_unit(store):
    added(store, *map(str, range(80)))
    claimed = []

    def work():
        while found := store.claim("j", "me", 3):
            claimed.extend(ids(found))
            assert store.settle("j", [Settled(name) for name in ids(found)], "me") == []

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(map(str, range(80)))


def test_a_reader_sees_jobs_and_changes_nothing(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as store:
        store.put_job("j", "n", "{}")
        added(store, "a")
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        assert (len(store.jobs()), store.unit_counts("j")["pending"]) == (1, 1)
        with pytest.raises(StoreError, match="read-only"):
            store.claim("j", "me", 1)


@dataclass
class Plain:
    """One unit of the model."""

    state: str = "pending"
    attempts: int = 0
    owner: str | None = None
    lease: int = 0
    due: int = 0
    result: int | None = None


class Units(RuleBasedStateMachine):
    """Two owners, late and lost; a clock of our own. What the store answers is what the model answers."""

    @initialize()
    def open(self):
        self.store = Store.open(":memory:")
        self.store.put_job("j", "n", "{}")
        self.model, self.now = {}, 0

    def teardown(self):
        self.store.close()

    @rule(names=st.lists(st.integers(0, 7), max_size=4), skipped=st.booleans())
    def add(self, names, skipped):
        state = "skipped" if skipped else "pending"
        new = list(dict.fromkeys(name for name in names if str(name) not in self.model))
        assert added(self.store, *map(str, names), state=state) == len(new)
        self.model |= {str(name): Plain(state) for name in new}

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds):
        self.now += seconds * SECOND

    @rule(owner=st.sampled_from("ab"), count=st.integers(1, 3), lease=st.integers(1, 3))
    def claim(self, owner, count, lease):
        def free(unit):
            if unit.state == "pending":
                return unit.due <= self.now
            return unit.state == "running" and (unit.owner != owner or unit.lease <= self.now)

        wanted = [name for name, unit in self.model.items() if free(unit)][:count]
        found = self.store.claim("j", owner, count, lease_s=lease, now_us=self.now)
        assert ids(found) == wanted
        for unit in found:
            plain = self.model[unit.id]
            plain.state, plain.owner, plain.lease, plain.attempts = "running", owner, self.now + lease * SECOND, plain.attempts + 1
            assert unit.attempts == plain.attempts

    @rule(
        owner=st.sampled_from("ab"),
        names=st.lists(st.integers(0, 7), max_size=3),
        state=st.sampled_from([*SETTLED, "pending"]),
        n=st.integers(0, 9),
    )
    def settle(self, owner, names, state, n):
        due = self.now + n * SECOND
        refused = []
        for name in map(str, names):
            unit = self.model.get(name)
            if unit is None or unit.state != "running" or unit.owner != owner:
                refused.append(name)
            else:
                unit.state, unit.owner, unit.result, unit.due = state, None, n, due
        settled = [Settled(str(name), state, result={"n": n}, not_before_us=due) for name in names]
        assert self.store.settle("j", settled, owner) == refused

    @rule(state=st.sampled_from(SETTLED))
    def reopen(self, state):
        chosen = [unit for unit in self.model.values() if unit.state == state]
        assert self.store.reopen_units("j", [state]) == len(chosen)
        for unit in chosen:
            unit.state, unit.attempts, unit.due = "pending", 0, 0

    @invariant()
    def agree(self):
        held = self.store.units("j")
        seen = [(unit.id, unit.state, unit.attempts, unit.owner, unit.result.get("n")) for unit in held]
        assert seen == [(name, unit.state, unit.attempts, unit.owner, unit.result) for name, unit in self.model.items()]
        assert all((unit.lease_until_us is None) == (unit.state != "running") for unit in held)
        assert all(unit.not_before_us is None or unit.state == "pending" for unit in held)
        counts = {state: sum(unit.state == state for unit in self.model.values()) for state in UNIT_STATES}
        assert self.store.unit_counts("j") == counts


TestUnits = Units.TestCase
TestUnits.settings = settings(max_examples=12, stateful_step_count=16, deadline=None, suppress_health_check=list(HealthCheck))


CHILD = """
import sys
from counterplay.core.store import NewUnit, Settled, Store

path, owner = sys.argv[1:]
with Store.open(path) as store:
    store.put_job("j", "n", "{}")
    store.add_units("j", (NewUnit(f"u{i}", (f"t{i}",)) for i in range(1000)))
    print("ready", flush=True)
    while units := store.claim("j", owner, 3):
        for unit in units:
            print(f'["claimed", "{unit.id}", {unit.attempts}]', flush=True)
        assert store.settle("j", [Settled(unit.id, result={"by": owner}) for unit in units], owner) == []
        for unit in units:
            print(f'["settled", "{unit.id}", {unit.attempts}]', flush=True)
"""


def test_kill_9_between_claim_and_settle_loses_nothing_and_doubles_nothing(tmp_path):
    path, rng = tmp_path / "s.duckdb", random.Random(3)
    settled = {}
    for attempt in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, path, f"owner{attempt}"], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        timer = threading.Timer(rng.uniform(0.05, 0.3), child.send_signal, [signal.SIGKILL])
        timer.start()
        said = [json.loads(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        timer.join()
        assert not {name for word, name, _ in said if word == "claimed"} & settled.keys(), "what was settled is not claimed again"
        settled |= {name: attempt for word, name, _ in said if word == "settled"}
        with Store.open(path) as store:
            held = {unit.id: unit for unit in store.units("j")}
            assert len(held) == 1000
            assert all(held[name].state == "done" and held[name].result == {"by": f"owner{by}"} for name, by in settled.items())
            settled |= {name: int(unit.result["by"][5:]) for name, unit in held.items() if unit.state == "done"}
            assert sum(unit.state == "running" for unit in held.values()) <= 3
    with Store.open(path) as store:
        assert store.claim("j", "owner3", 1)[0].number == 1 + len(settled), "the first that was not settled, whoever held it"


def test_tries_are_forgotten_where_a_unit_gets_another_start(store):
    kept = {"live_calls": 7, "tally": {"retries": 2}}
    for name, result in {"a": {"tries": 3, **kept}, "b": {**kept, "tries": 3}, "c": {"tries": 3}}.items():
        added(store, name)
        store.claim("j", "me", 1)
        store.settle("j", [Settled(name, "parked", "overloaded", "server", result)], "me")
    store.reopen_units("j")
    assert [unit.result for unit in store.units("j")] == [kept, kept, {}]
