"""Fidelity: how much of a logged trajectory a world or an environment gives back when it is acted out again.

Every action is executed and every observation compared with the recording by content. It is measured, never assumed, and
a difference is named: which step, which tool, of which kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from counterplay.core.errors import DivergenceError
from counterplay.core.nouns import Step, Trajectory
from counterplay.core.protocols import Environment
from counterplay.replay.acting import act_except, fresh, release, withheld
from counterplay.replay.divergence import Comparable, Divergence, compare, in_call_order, prompt_drift
from counterplay.replay.world import Factory, World


@dataclass(frozen=True, slots=True)
class ObservationCheck:
    """One logged observation: which tool gave it (empty for a user), and whether it came back the same.

    `executed` is False where it was not asked for: an external tool, or a user whose answer the world does not give.
    """

    step: int
    tool: str
    reproduced: bool
    executed: bool = True


@dataclass(frozen=True)
class Fidelity:
    """The result of a check. `divergences` holds every step that differed, in order, with how; empty is full fidelity.

    Step -1 is the prompt: of a world that was made for something else.
    """

    observations: tuple[ObservationCheck, ...] = ()
    divergences: tuple[tuple[int, Divergence], ...] = ()
    recorded_reward: float | None = None
    reward: float | None = None

    @property
    def share(self) -> float | None:
        """Observations that came back exactly, of those executed, in [0, 1]; None where none was executed."""
        return _share(self.observations)

    @property
    def per_tool(self) -> dict[str, float | None]:
        """The same by tool; a user's answers go under the empty name."""
        tools = dict.fromkeys(check.tool for check in self.observations)
        return {tool: _share([check for check in self.observations if check.tool == tool]) for tool in tools}

    @property
    def first(self) -> tuple[int, Divergence] | None:
        """The first step that differed; None where all came back."""
        return self.divergences[0] if self.divergences else None

    @property
    def outcome_reproduced(self) -> bool | None:
        """Whether the reward came back; None where the log has none."""
        return None if self.recorded_reward is None else self.reward == self.recorded_reward


@dataclass(frozen=True)
class FidelityReport:
    """Many checks as one: per tool and in all, first divergences by kind, and outcomes."""

    checks: Sequence[Fidelity] = field(default_factory=tuple)

    @property
    def share(self) -> float | None:
        return _share([check for fidelity in self.checks for check in fidelity.observations])

    @property
    def per_tool(self) -> dict[str, float | None]:
        return Fidelity(tuple(check for fidelity in self.checks for check in fidelity.observations)).per_tool

    @property
    def first_divergences(self) -> dict[str, int]:
        """How many trajectories first went another way by each kind, most frequent first."""
        kinds = [fidelity.first[1].kind for fidelity in self.checks if fidelity.first]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))}

    @property
    def outcomes(self) -> float | None:
        """Share of logged outcomes that came back, in [0, 1]; None where no outcome was logged."""
        known = [fidelity.outcome_reproduced for fidelity in self.checks if fidelity.outcome_reproduced is not None]
        return sum(known) / len(known) if known else None


async def check(
    trajectory: Trajectory,
    against: Factory | Environment,
    *,
    comparable: Comparable | None = None,
    allow_external: Iterable[str] = (),
) -> Fidelity:
    """Act a logged trajectory out again and compare every observation.

    A world factory is executed from the start to the end whatever differs on the way, so each tampered observation is
    named by itself. An environment is asked step by step in the recorded states, so its answers are those a fork would get.
    `comparable` maps texts before they are compared. External tools are left out unless named.
    """
    if isinstance(against, Environment):
        played, unreached = await _ask(trajectory, against)
    else:
        played, unreached = await _act_out(trajectory, against, frozenset(allow_external))
    checks: list[ObservationCheck] = []
    divergences = []
    for i, (recorded, (got, skipped)) in enumerate(zip(trajectory.steps, played, strict=True)):
        difference = compare(recorded, got, comparable=comparable)
        if difference is None and got.terminated and not recorded.finished and i < len(trajectory) - 1:
            difference = Divergence("ended_early", got="the episode is over", wanted="one that goes on")
        if difference is not None:
            divergences.append((i, difference))
        checks.extend(_checks(i, recorded, got, skipped, comparable))
    if unreached is not None and all(step > unreached[0] for step, _ in divergences):
        divergences.insert(0, unreached)
    rewards = [steps[-1].reward if steps else None for steps in (trajectory.steps, [got for got, _ in played])]
    return Fidelity(tuple(checks), tuple(divergences), *rewards)


_Played = tuple[Step, frozenset[int]]
"""A step as it was acted out, and the places of its observations that were not asked for."""


_Unreached = tuple[int, Divergence] | None
"""Why no state, or none after a step, is that of the log."""


async def _act_out(trajectory: Trajectory, factory: Factory, allow_external: frozenset[str]) -> tuple[list[_Played], _Unreached]:
    world = await fresh(factory)
    try:
        drift = prompt_drift(trajectory, world)
        played = [await _execute(world, recorded, allow_external) for recorded in trajectory.steps]
        if played and not played[-1][0].terminated:
            last, skipped = played[-1]
            played[-1] = (replace(last, reward=getattr(world, "reward", None)), skipped)
        return played, None if drift is None else (-1, drift)
    finally:
        await release(world)


async def _execute(world: World, recorded: Step, allow_external: frozenset[str]) -> _Played:
    if not recorded.action.tool_calls and not hasattr(world, "reply"):
        return await act_except(world, recorded, ()), _everything(recorded)
    places = withheld(world, recorded.action, allow_external)
    return await act_except(world, recorded, places), frozenset(places)


async def _ask(trajectory: Trajectory, environment: Environment) -> tuple[list[_Played], _Unreached]:
    """Ask for each recorded step. What the environment declines, and all after a prefix it can't reach, is left out."""
    played: list[_Played] = []
    unreached: _Unreached = None
    for i, recorded in enumerate(trajectory.steps):
        try:
            got = recorded if unreached else await environment.step(trajectory.prefix(i), recorded.action)
        except DivergenceError as error:
            unreached, got = (error.step, Divergence(error.kind, got=error.got, wanted=error.wanted)), recorded
        declined = got.truncated and got.error is not None
        left_out = unreached is not None or declined
        played.append((replace(recorded, reward=None), _everything(recorded)) if left_out else (got, frozenset()))
    return played, unreached


def _everything(step: Step) -> frozenset[int]:
    return frozenset(range(len(step.observations)))


def _checks(index: int, recorded: Step, got: Step, skipped: frozenset[int], comparable: Comparable | None) -> Iterator[ObservationCheck]:
    names = [call.name for call in recorded.action.tool_calls]
    recorded, got = in_call_order(recorded), in_call_order(got)
    for i, message in enumerate(recorded.observations):
        tool = names[i] if i < len(names) else ""
        here = got.observations[i : i + 1]
        same = bool(here) and compare(Step(recorded.action, (message,)), Step(got.action, here), comparable=comparable) is None
        yield ObservationCheck(index, tool, reproduced=same, executed=i not in skipped)


def _share(checks: Sequence[ObservationCheck]) -> float | None:
    executed = [check.reproduced for check in checks if check.executed]
    return sum(executed) / len(executed) if executed else None
