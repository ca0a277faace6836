"""A cluster of two nodes: the same trees as in one process, also where a node is gone in the middle."""

import asyncio
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from counterplay import Store
from counterplay.core.errors import UserError
from counterplay.jobs import running
from counterplay.jobs.crews import InProcess
from counterplay.jobs.work import WorkerLostError
from counterplay.parts import Asked
from counterplay.plan import Plan
from tests.front.moves import answer, logged
from tests.jobs.batch import digests, loaded, make
from tests.jobs.game import MCTS, asked, draws, driven, modules, paid, runs, trees, worked, works
from tests.jobs.game import told as told_of
from tests.jobs.killing import Server
from tests.replay.loopback import Loopback

ray = pytest.importorskip("ray", reason="needs the extra counterplay[ray]")
pytestmark = pytest.mark.filterwarnings("ignore")  # what Ray warns of is its own

from counterplay.jobs.rayed import _OFF, RayCrew  # noqa: E402  after the check above

MODEL = Path(__file__).parents[2] / "examples" / "ledger" / "model"
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}
QUICK = {f"health_check_{name}": value for name, value in {"period_ms": 500, "timeout_ms": 1000, "failure_threshold": 2}.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("ray")
        modules(folder, patch)
        for name, value in _OFF.items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module")
def cluster(folder):
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK})
    made.add_node(**NODE)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def notes(folder, cluster):
    for file in (folder / "notes").iterdir():
        file.unlink()
    return folder / "notes"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "s.duckdb") as opened:
        opened.ingest(runs())
        yield opened


async def in_process(asked, plan, traces=None):
    with Store.open(":memory:") as store:
        store.ingest(runs() if traces is None else traces)
        return await worked(InProcess(store, asked, plan), works(store, asked, plan))


async def on_ray(cluster, store, asked, plan, **given):
    return await worked(RayCrew(store, asked, plan, address=cluster.address, **given), works(store, asked, plan))


async def test_two_nodes_come_to_the_trees_of_one_process(notes, cluster, store):
    parts = asked(verifiers=("outcome", "game_parts:batched"))
    wanted = await in_process(parts, MCTS)
    here = Counter(draw for draw, _ in draws(notes))
    (notes / "draws").unlink()
    made = await on_ray(cluster, store, parts, MCTS, workers=2)
    assert trees(made) == trees(wanted)
    assert Counter(draw for draw, _ in draws(notes)) == here
    assert len({pid for _, pid in draws(notes)} - {str(os.getpid())}) == 2
    (notes / "draws").unlink()
    again = await worked(InProcess(store, parts, MCTS), works(store, parts, MCTS))
    assert (draws(notes), trees(again)) == ([], trees(made)), "every answer came to the driver's store"


async def test_a_node_that_is_gone_costs_time_alone(notes, cluster, store):
    parts = asked(verifiers=("outcome", "game_parts:batched"))
    wanted = await in_process(parts, MCTS)
    needed = Counter(draw for draw, _ in draws(notes))
    (notes / "draws").unlink()
    (notes / "delay_s").write_text("0.05")
    lost, made = Counter(), {}
    crew = RayCrew(store, parts, MCTS, address=cluster.address, workers=2, actors={"verifier": 2})

    async def kept_at(work):
        while work.unit not in made:
            try:
                made[work.unit] = await crew.submit(work)
            except WorkerLostError:
                lost[work.unit] += 1

    async def remover():
        enough = sum(needed.values()) // 3  # and both workers are at it, each on its node
        while len(made) < len(wanted) and (len(draws(notes)) < enough or len({process for _, process in draws(notes)}) < 2):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (node,) = cluster.worker_nodes
        await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)

    await asyncio.gather(remover(), *(kept_at(work) for work in works(store, parts, MCTS)))
    await crew.close()
    cluster.add_node(**NODE)
    assert trees(made) == trees(wanted)
    assert sum(lost.values()) >= 1
    repeated = Counter(draw for draw, _ in draws(notes)) - needed
    assert sum(repeated.values()) <= 2 * sum(lost.values()), "only what was in flight, a wave of 2 a unit, may be asked again"


async def test_those_beside_a_unit_that_kills_its_actor_or_lets_it_stand_still_are_not_charged_for_it(notes, cluster, store):
    store.ingest([logged("poison", name="poison"), logged("stuck", name="stuck")])
    crew = RayCrew(store, asked(), MCTS, address=cluster.address, workers=1, silent_s=3.0)
    units, progress = await driven(store, crew, asked(), MCTS, attempts=1)
    lost = {name: units.pop(name) for name in ("poison", "stuck")}
    assert {(unit.state, unit.error_class) for unit in lost.values()} == {("parked", "lost")}
    assert "a worker is gone" in lost["poison"].reason
    assert "did not answer for 3 s" in lost["stuck"].reason
    assert {unit.state for unit in units.values()} == {"done"}
    assert paid(store) == told_of([*units.values(), *lost.values()])
    assert progress.live_calls == paid(store)[0]


async def test_an_actor_with_a_part_that_stands_still_is_replaced(notes, cluster, store):
    parts = asked(verifiers=("game_parts:stuck_once",))
    made = await on_ray(cluster, store, parts, MCTS, workers=1, actors={"verifier": 1}, silent_s=3.0)
    assert {one.state for one in made.values()} == {"done"}
    assert (notes / "stuck").exists()


def job(folder, server, **engine):
    file = make(folder, policy="openai:scripted", servers=f'base_urls = ["{server.base_url}"]\nextra_body = {{ seeded = true }}', tasks=1)
    return loaded(file, engine=engine)


def test_a_job_has_the_same_bytes_whoever_works_and_whoever_is_gone(notes, cluster, tmp_path):
    on_two = {"kind": "ray", "address": cluster.address, "processes": 2}
    engines = {"here": {}, "processes": {"processes": 2}, "ray": on_two, "ray, a node gone": on_two}
    made, reports, asked_for = {}, {}, {}
    for name, engine in engines.items():
        with Server(0.02 if "gone" in name else 0.0) as server:
            remover = Thread(target=remove_node, args=(cluster, server)) if "gone" in name else None
            if remover is not None:
                remover.start()
            reports[name] = running.run(job(tmp_path / name, server, **engine))
            if remover is not None:
                remover.join()
            made[name], asked_for[name] = digests(tmp_path / name / "out"), sum(server.asked.values())
    cluster.add_node(**NODE)
    assert len(made["here"]) > 4
    assert all(found == made["here"] for found in made.values())
    calls = {name: report.live_calls for name, report in reports.items()}
    assert {name: report.models["openai:scripted"]["calls"] for name, report in reports.items()} == calls
    assert set(calls.values()) == {asked_for["here"]}, "and each answer is counted once"
    assert asked_for["ray"] == asked_for["processes"] == asked_for["here"] <= asked_for["ray, a node gone"]
    with Store.open(tmp_path / "ray, a node gone" / "s.duckdb", read_only=True) as store:
        assert max(unit.attempts for unit in store.units(reports["ray, a node gone"].job)) > 1


def remove_node(cluster, server):
    """Remove a node once the job on it has come far enough."""
    while sum(server.asked.values()) < 20:
        time.sleep(0.01)
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)


async def test_recordings_and_stitched_tasks_come_to_the_same(notes, cluster, store):
    forked = Plan("fork_best_of_n", {"n": 2}, fork="rare_state")
    for parts, plan in ((asked(environment="recorded"), forked), (Asked(), Plan("stitch"))):
        assert trees(await on_ray(cluster, store, parts, plan, workers=1)) == trees(await in_process(parts, plan))


async def test_a_model_on_a_server_is_asked_by_the_workers_and_kept_trees_are_sent(notes, cluster, store):
    with Loopback(default=answer) as server:
        parts, plan = Asked("openai:m", "moves:World", ("outcome",), base_url=server.base_url), Plan("best_of_n", {"n": 2}, fork="start")
        made = await on_ray(cluster, store, parts, plan, workers=2)
        assert sum(one.tally.get("calls", 0) for one in made.values()) == server.served["calls"]
        assert trees(made) == trees(await in_process(parts, plan))
        asked_for = server.served["calls"]
        store.put_search(made["t0-bbaaaa"].records[0])
        again = await on_ray(cluster, store, parts, plan, workers=1)
        assert [one.held for one in again.values()].count(True) == 1
        assert server.served["calls"] == asked_for


async def test_a_local_model_is_an_actor_that_the_workers_ask(notes, cluster, store):
    from tests.front.conftest import logged as ledger_run

    traces = [replace(logged("t"), trajectory=ledger_run("train-0001"), task="train-0001")]
    parts = Asked(f"transformers:{MODEL}", "counterplay.examples.ledger.world:Ledger", ("outcome",), max_tokens=48)
    plan = Plan("best_of_n", {"n": 2}, fork="2", trace_budget="model_calls=6")
    with Store.open(":memory:") as ledger:
        ledger.ingest(traces)
        crew = RayCrew(ledger, parts, plan, address=cluster.address, workers=1)
        assert {part: len(hosts) for part, hosts in crew.hosts.items()} == {"policy": 1}
        made = await worked(crew, works(ledger, parts, plan))
    wanted = await in_process(parts, plan, traces)
    assert {one.state for one in made.values()} == {"done"}
    assert {unit: [record.id for record in one.records] for unit, one in made.items()} == {
        unit: [record.id for record in one.records] for unit, one in wanted.items()
    }
    assert told(made) == told(wanted)


def told(made):
    """What a model said in every tree."""
    return {unit: [(n.parent, n.step and n.step.action.wire) for r in one.records for n in r.nodes] for unit, one in made.items()}


async def test_what_cannot_begin_is_told(notes, cluster, store):
    wrong = asked(policy="game_parts:nobody")
    with pytest.raises(UserError, match="has no 'nobody'"):
        await on_ray(cluster, store, wrong, MCTS, workers=1)
    with pytest.raises(UserError, match="got actors for 'policies'; wanted policy or verifier"):
        RayCrew(store, asked(), MCTS, actors={"policies": 1})
    with pytest.raises(UserError, match="got actors for the policy game_parts:policy"):
        RayCrew(store, asked(), MCTS, actors={"policy": 1})
