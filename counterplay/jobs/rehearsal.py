"""A search rehearsed: the real search over one trace, with stand-ins that go by the logs in place of model, world and verifier.

So an estimate knows what searches do: that equal draws are one branch, that a branch goes on to the end of a run, that a budget binds and
that what is good enough stops a search. It does not know the model: how often it decides differently is what its logs show, figures
aside, how often it is right what `search/sharing.py` expects of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from counterplay.core.journal import MemoryJournal
from counterplay.core.nouns import Message, Outcome, Source, Step, Trace, Trajectory
from counterplay.jobs.habits import Habits, Move, Rehearsing, Tokens, answers_of, moves_of, seen_in, uniform
from counterplay.jobs.stops import bound_in
from counterplay.searching import TraceSearch

if TYPE_CHECKING:
    from counterplay.core.budget import Budget
    from counterplay.core.nouns import State
    from counterplay.core.records import SearchRecord
    from counterplay.jobs.reserving import Reserves
    from counterplay.parts import Asked
    from counterplay.plan import Plan


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What the search of one trace would use, by kind of budget, its tokens also by input and output; `waves` are model calls that wait
    for one another; `stopped` is the kind of its budget that ended it, empty where none did.
    """

    used: Mapping[str, float]
    waves: int
    stopped: str = ""


class World:
    """Answers as tools did in the logs. A run of a task is about as long as the log of it: `length` steps, or one more where it had
    something else to do instead of ending.

    `recorded`: what the log did not do there can't be answered, and ends the branch.
    """

    fingerprint = "rehearsal"

    def __init__(self, habits: Habits, faults: Faults, length: int, *, recorded: bool) -> None:
        self.habits, self.faults, self.length, self.recorded = habits, faults, length, recorded

    async def step(self, state: State, action: Message) -> Step:
        if self.recorded:
            return Step(action, error="the log has no answer")
        call = action.tool_calls[0]
        names, _, words = call.name.rpartition(" ")
        meant = bool((call.args or {}).get("ends"))
        move, at = Move(names, words, meant), len(state) + 1
        ends = at > self.length or (at == self.length and meant)
        answer = self.habits.answered(seen_in(state), move, Random(f"{state.key}/{action.wire}"))
        seen = (Message.tool(answer, ""),)
        reward = self.faults.value(state.extend(Step(action, seen)), finished=True) if ends else None
        return Step(action, seen, terminated=ends, reward=reward)


class Faults:
    """Where runs go wrong: at every step with one probability, such that a whole run is right with p ~ Beta(1 + W, 1 + N - W) of the task,
    drawn once for a trace. A log that failed does so somewhere for certain.

    On unfinished runs the value halves with every fault; at its end a run is right or wrong.
    """

    def __init__(self, run: Trace, rate: tuple[float, float], seed: int) -> None:
        self._seed = f"{seed}/{run.id}"
        rng = Random(self._seed)
        length = max(1, len(run.trajectory))
        self._step = 1 - rng.betavariate(1 + rate[0], 1 + rate[1]) ** (1 / length)
        self._logged = run.trajectory.prefix_keys
        self._at: frozenset[int] = frozenset()
        if run.outcome.succeeded is False:
            others = (at for at in range(length) if rng.random() < self._step)
            self._at = frozenset([rng.randrange(length), *others])

    def value(self, state: State, *, finished: bool) -> float:
        faults = 0
        for at, key in enumerate(state.prefix_keys[1:]):
            logged = at + 1 < len(self._logged) and key == self._logged[at + 1]
            faults += at in self._at if logged else uniform(self._seed, key) < self._step
        return float(not faults) if finished else 0.5**faults


class Desk:
    """A desk where nothing is kept."""

    def __init__(self, runs: Sequence[Trace]) -> None:
        self._runs = runs

    def journal(self, scope: str) -> MemoryJournal:  # noqa: ARG002  the protocol's shape
        return MemoryJournal()

    def held(self, trace: str) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def search(self, search_id: str) -> SearchRecord:
        raise KeyError(search_id)

    def siblings(self, trace: Trace) -> Sequence[Trace]:
        return [run for run in self._runs if run.id != trace.id]

    def put(self, record: SearchRecord) -> None:
        """Let go of it."""

    def watch(self, search_id: str, config: Mapping[str, Any], **provenance: Any) -> None:
        """Nobody looks on."""


def stand_in(trace: Trace) -> Trace:
    """The run of a trace in the words of a rehearsal: the names of its tools."""
    found, right = trace.trajectory.steps, trace.outcome.succeeded
    steps = []
    for move, answer in zip(moves_of(found), answers_of(found), strict=True):
        reward = float(right or False) if move.ends else None
        steps.append(Step(move.action, (Message.tool(answer, ""),), terminated=move.ends, reward=reward))
    outcome = Outcome(float(right or False), right)
    return Trace(trace.id, Trajectory((), (Message.user(trace.id),), tuple(steps)), Source("rehearsal"), task=trace.task, outcome=outcome)


async def rehearse(
    trace: Trace,
    asked: Asked,
    plan: Plan,
    habits: Habits,
    budget: Callable[[], Budget],
    *,
    rate: tuple[float, float],
    process: bool,
    reserves: Reserves | None = None,
) -> Rehearsed:
    """What the search of `trace` is expected to use. `rate` counts successes and failures of its task, `process` says that there is a
    verifier with opinions on unfinished runs, `reserves` what is set aside for a proposal (None: as much as the largest one so far took).
    Raises UserError where the search can't be run.
    """
    run = stand_in(trace)
    faults = Faults(run, rate, asked.seed)
    greedy = asked.temperature == 0
    price = asked.price if asked.policy.startswith(("openai:", "batch:")) else None
    policy = Rehearsing(habits, Tokens(trace, asked.max_tokens), price, greedy=greedy, seed=asked.seed, reserves=reserves)

    def opinion(trajectory: Trajectory) -> float | None:
        return faults.value(trajectory, finished=trajectory.finished) if process or trajectory.finished else None

    search = TraceSearch(replace(asked, policy="rehearsal"), plan, policy, opinion)
    recorded = asked.environment == "recorded" and not asked.simulator
    done = await search.run(run, lambda _: World(habits, faults, len(run.trajectory), recorded=recorded), budget, Desk([run]))
    used = {kind: amount for kind, amount in asdict(done.record.used).items() if amount and kind != "seconds"}
    tokens = {kind: done.record.config["usage"][kind] for kind in ("input_tokens", "output_tokens")}
    return Rehearsed({**used, **tokens}, policy.waves, bound_in(done.record.stopped))
