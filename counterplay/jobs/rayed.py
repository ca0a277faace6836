"""`RayCrew`: units worked on by actors of a Ray cluster (`counterplay[ray]`), local models and verifiers by actors that those ask.

The driver alone has the store. A worker is sent what the store knows of a unit, and sends every answer back, in order, while the unit is
under way; it uses none before the driver has journalled it. So neither a node nor a driver that is lost costs more than what was in
flight. An actor whose event loop stands still is ended as if it were lost. Nothing is uploaded: every node has counterplay installed, and
the same modules of the user's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import CounterplayError, StoreError, UserError
from counterplay.core.journal import batch_of
from counterplay.jobs.processes import check_picklable
from counterplay.jobs.ray_worker import PartHost, UnitWorker
from counterplay.jobs.team import SILENT_S, STUCK, Silence, Team, divided
from counterplay.jobs.work import Work, Worked, WorkerLostError, check_plan

if TYPE_CHECKING:
    from counterplay.core.store import Store
    from counterplay.parts import Asked
    from counterplay.plan import Plan

_OBJECT_STORE_BYTES = 256 << 20
_SPARE = 8  # calls of an actor beside its units
_STARTS = 3
_ASKED_AGAIN = 1
_OFF = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayCrew(Team):
    """Worker actors on all nodes, which share the concurrency and the pace of `plan`.

    `address` is the cluster's; None: the one that this process or this machine is in, else one on this machine alone, made now and ended
    by `close`. `workers` is how many, 0: one for each CPU that is left. `actors` says how many hold the "policy" and the "verifier", to be
    asked by the workers; 0: the workers hold it themselves. Where it does not say, one actor holds a model that is run here
    (`transformers:`), with a GPU where the cluster has one, and one a verifier that takes batches. Raises UserError where Ray is not
    installed, the cluster can't be reached, or a job can't be run so.
    """

    def __init__(
        self,
        store: Store,
        asked: Asked,
        plan: Plan,
        *,
        address: str | None = None,
        workers: int = 0,
        actors: Mapping[str, int] | None = None,
        silent_s: float = SILENT_S,
    ) -> None:
        check_plan(asked, plan)
        check_picklable((asked, plan))
        sizes = _sizes(asked, plan, actors or {})
        super().__init__(store, plan, silent_s=silent_s)
        self.ours = _connect(address)
        import ray

        places = _places(ray.nodes())
        plans = divided(plan, workers or max(1, len(places) - sum(sizes.values())), local=asked.local)
        cpus = 1 if len(plans) <= len(places) else 0  # who does not fit takes what room there is
        turns = cycle(places)
        self.hosts = {part: [_host(part, asked, next(turns)) for _ in range(size)] for part, size in sizes.items()}
        self._members = [_Actor(self, asked, each, next(turns), cpus) for each in plans]
        self._watching: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def members(self) -> list[_Actor]:
        return self._members

    def start(self) -> None:
        for member in self._members:
            member.start()
        self._watching = [asyncio.create_task(self._watch(host)) for hosts in self.hosts.values() for host in hosts]

    async def _watch(self, host: Any) -> None:
        """End an actor that holds a part and does not answer, for its successor to be asked."""
        import ray

        while True:
            if await _silent(host, self.silent_s) is not None:
                ray.kill(host, no_restart=False)
            await asyncio.sleep(min(1.0, self.silent_s / 4))

    async def close(self) -> None:
        import ray

        if self._closed:
            return
        self._closed = True
        for task in self._watching:
            task.cancel()
        for member in self._members:
            member.end()
        for hosts in self.hosts.values():
            for host in hosts:
                ray.kill(host)
        if self.ours:
            await asyncio.to_thread(ray.shutdown)


class _Actor:
    """One worker actor after another: where one is lost, the next takes its place, on whatever node there is."""

    def __init__(self, crew: RayCrew, asked: Asked, plan: Plan, place: str, cpus: int) -> None:
        self.crew, self.capacity = crew, plan.concurrency
        self.alone, self.is_up = "", False
        self.failure: CounterplayError | None = None
        self.flying: set[str] = set()
        self._orders = (asked, plan)
        self._place, self._cpus = place, cpus
        self._actor: Any = None
        self._fruitless = 0
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._fell: tuple[Any, int, str] = (None, 0, "")

    def start(self) -> None:
        self._starting = asyncio.create_task(self._start())

    async def work(self, work: Work) -> Worked:
        import ray

        if self.failure is not None:
            raise self.failure
        actor = self._actor
        self.flying.add(work.unit)
        stream = None
        try:
            stream = actor.work.options(num_returns="streaming").remote(work)
            async for sent in stream:
                messages = await sent
                for message in messages:
                    worked = self._heard(*message)
                    if worked is not None:
                        return worked
                actor.taken.remote(work.unit, len(messages))
        except ray.exceptions.RayError as error:
            self._lost(actor)
            raise self._gone(actor, error) from error
        except (asyncio.CancelledError, StoreError):
            if stream is not None and self.is_up:  # else it has been ended with its worker
                ray.cancel(stream)
            raise
        finally:
            self.flying.discard(work.unit)
        raise WorkerLostError(f"the worker of unit {work.unit} said nothing", do="It is tried again.")

    def end(self) -> None:
        import ray

        for task in (self._starting, self._watching):
            if task is not None:
                task.cancel()
        if self._actor is not None:
            ray.kill(self._actor)
        self.is_up = False

    def _heard(self, kind: str, *said: Any) -> Worked | None:
        match kind:
            case "answered":
                scope, key, what, answer = said
                self.crew.store.journal(scope).put(key, what, answer)
            case "grows":
                self.crew.watching.take(said[0])
            case "worked":
                if isinstance(said[0], Exception):
                    raise said[0]
                worked: Worked = said[0]
                return worked
        return None

    async def _start(self) -> None:
        """Bring up an actor; where it does not come up, it is tried anew a few times."""
        import ray

        while not self.is_up and self.failure is None:
            self._fruitless += 1
            try:
                made = ray.remote(UnitWorker)
                where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(self._place, soft=True)
                options = {"num_cpus": self._cpus, "max_restarts": 0, "max_concurrency": self.capacity + _SPARE}
                self._actor = made.options(scheduling_strategy=where, **options).remote(sys.path, *self._orders, self.crew.hosts)
                self.failure = await self._actor.up.remote()
                self.is_up, self._fruitless = self.failure is None, 0
                self._watching = asyncio.create_task(self._watch(self._actor))
            except ray.exceptions.RayError as error:
                if self._fruitless >= _STARTS:
                    got = f"{_STARTS} workers ended one after another before they began: {str(error).splitlines()[0]}"
                    self.failure = UserError(got, "workers that start", "Is counterplay installed on every node?")
            except Exception as error:  # noqa: BLE001  whoever waits for this worker is told
                self.failure = UserError(f"no worker can be made: {type(error).__name__}: {error}", "a Ray cluster that makes actors")
        await self.crew.changed()

    async def _watch(self, actor: Any) -> None:
        """Replace an actor that is gone or does not answer, also where no unit would tell."""
        silence = await _silent(actor, self.crew.silent_s)
        self._lost(actor, "" if silence is None else str(silence))

    def _lost(self, actor: Any, why: str = "") -> None:
        """Replace a worker that is gone, once for all of its units; the next one takes what room there is."""
        import ray

        if actor is self._actor and self.is_up:
            self._fell = (actor, len(self.flying), why)
            self.is_up, self._cpus = False, 0
            ray.kill(actor)
            self.start()

    def _gone(self, actor: Any, error: Exception) -> WorkerLostError:
        """What its units are told of an actor that is lost. It may have been at several, whichever of them hears of it first."""
        fell, units, why = self._fell
        alone = units == 1 and fell is actor
        if why and fell is actor:
            return WorkerLostError(f"a worker {why}", do=STUCK, alone=alone)
        return WorkerLostError(
            f"a worker is gone ({type(error).__name__})", do="It is tried again; what was answered is kept.", alone=alone
        )


async def _silent(actor: Any, limit_s: float) -> Silence | None:
    """Wait until an actor has been silent for so long since it came up; None where it is gone."""
    import ray

    silence = Silence(limit_s)

    async def beats() -> None:
        with suppress(ray.exceptions.RayError):
            while True:
                await actor.alive.remote()
                silence.broken()
                await asyncio.sleep(silence.every_s)

    with suppress(ray.exceptions.RayError):
        await actor.alive.remote()
        tasks = [asyncio.create_task(beats()), asyncio.create_task(silence.too_long())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return None if tasks[0].done() else silence
        finally:
            for task in tasks:
                task.cancel()
    return None


def _sizes(asked: Asked, plan: Plan, given: Mapping[str, int]) -> dict[str, int]:
    """How many actors hold each part. Raises UserError on a part that none can hold."""
    odd = next((part for part in given if part not in ("policy", "verifier")), None)
    if odd is not None:
        raise UserError(f"got actors for {odd!r}", "policy or verifier")
    if plan.algorithm == "stitch":
        return {}
    if given.get("policy") and not asked.local:
        got = f"got actors for the policy {asked.policy}"
        raise UserError(got, "a model that is run here, transformers:FOLDER", "Others are asked by the workers themselves.")
    batches = "verifier" not in given and batch_of(asked.make_verifier()) is not None
    sizes = {"policy": given.get("policy", int(asked.local)), "verifier": given.get("verifier", int(batches))}
    return {part: size for part, size in sizes.items() if size}


def _connect(address: str | None) -> bool:
    """Be in a cluster; whether it was made now. Raises UserError where that can't be."""
    os.environ.update(_OFF)
    try:
        import ray
    except ImportError:
        raise UserError("got engine ray, which is not installed", "counterplay[ray]", "pip install 'counterplay[ray]'") from None
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=address or "auto", **quiet)
    except ConnectionError as error:
        if address is not None:
            raise UserError(
                f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}", "one that runs", "Start it, or leave address out."
            ) from None
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        return True
    return True


def _places(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of the nodes, each as often as it has CPUs, by turns: whoever is put on the first n of them is spread over all."""
    alive = [(node["NodeID"], max(1, int(node["Resources"].get("CPU", 1)))) for node in nodes if node["Alive"]]
    turns = [(turn, at, name) for at, (name, cpus) in enumerate(alive) for turn in range(cpus)]
    return [name for _, _, name in sorted(turns)]


def _host(part: str, asked: Asked, place: str) -> Any:
    """An actor that holds a part. What was asked of one that is lost is asked again of its successor, for nothing has a side effect;
    a question that costs two of them is answered by that error.

    It claims no CPU, so that the successor finds a place wherever there is a node.
    """
    import ray

    gpus = min(1, int(ray.cluster_resources().get("GPU", 0))) if part == "policy" else 0
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place, soft=True)
    options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": _ASKED_AGAIN, "max_concurrency": 1000}
    return ray.remote(PartHost).options(scheduling_strategy=where, **options).remote(sys.path, part, asked)
