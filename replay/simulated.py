"""Simulation: tools answered from what the log makes likely, where nothing truer can be had. Everything here is graded `simulated`.

A simulator imagines the result of one call; `Simulation` makes an environment of it that keeps to the rules: external tools
are never simulated, writes only where asked, users not at all, and what was not imagined ends the branch with the reason.
It stands behind a `RecordedEnvironment` as its `fallback`, or alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from counterplay.core.canonical import canonical, content_key
from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall, ToolSpec, Trajectory
from counterplay.replay.capabilities import Capabilities
from counterplay.replay.nearest import Recollection
from counterplay.replay.recorded import with_call_id


@dataclass(frozen=True, slots=True)
class Imagined:
    """The imagined result of a call; `result` None where there is none, and `reason` says why or where it is from.

    `likeness` in [0, 1] is how near the nearest recorded call was, None where that plays no part.
    """

    result: Message | None
    reason: str = ""
    likeness: float | None = None


class Simulator(Protocol):
    """Imagines results. `fingerprint` names all that they depend on."""

    @property
    def fingerprint(self) -> str: ...

    async def imagine(self, state: State, call: ToolCall) -> Imagined:
        """The result of `call` in `state`, whose last step may be the same action as far as it was answered."""
        ...


class Simulation:
    """A simulator as an environment. `effects` say what may be simulated: what is not in them is external, and never is.

    `simulate_writes` lets writes be simulated too. `fidelity` maps tools to how often the simulator is right, as `holdout` measured
    it; those below `min_fidelity`, and those that were not measured, are not simulated. None of both: no such gate.
    """

    capabilities: ClassVar[Capabilities] = Capabilities("recorded", "a simulation answers for any state it is given")

    def __init__(
        self,
        simulator: Simulator,
        effects: Mapping[str, Effect],
        *,
        simulate_writes: bool = False,
        fidelity: Mapping[str, float] | None = None,
        min_fidelity: float | None = None,
    ) -> None:
        self.simulator, self.effects, self.simulate_writes = simulator, dict(effects), simulate_writes
        self.fidelity, self.min_fidelity = dict(fidelity or {}), min_fidelity

    @property
    def fingerprint(self) -> str:
        rules = [canonical({name: str(effect) for name, effect in self.effects.items()}), str(self.simulate_writes)]
        gate = "" if self.min_fidelity is None else canonical([self.min_fidelity, self.fidelity])
        return f"simulated:{content_key(self.simulator.fingerprint, *rules, gate)}"

    async def step(self, state: State, action: Message) -> Step:
        """Imagine every call of an action, in order; all or nothing."""
        if not action.tool_calls:
            return _unanswered(action, "a user's answer is not simulated")
        refusal = next((reason for call in action.tool_calls if (reason := self.refusal(call.name))), None)
        if refusal:
            return _unanswered(action, refusal)
        observations: list[Message] = []
        for place, call in enumerate(action.tool_calls):
            imagined = await self.simulator.imagine(partly(state, action, place, observations), call)
            if imagined.result is None:
                return _unanswered(action, imagined.reason)
            observations.append(with_call_id(imagined.result, call))
        return Step(action, tuple(observations), grades=(Grade.SIMULATED,) * len(observations))

    async def aclose(self) -> None:
        """Let go of what the simulator holds."""

    def refusal(self, tool: str) -> str | None:
        """Why a tool is not simulated; None where it may be."""
        kind = self.effects.get(tool, EXTERNAL).kind
        if kind == "external":
            undeclared = "" if tool in self.effects else " (its effect is not declared)"
            return f"{tool} is external{undeclared}, and external tools are never simulated"
        if kind == "write" and not self.simulate_writes:
            return f"{tool} is a write, and writes are simulated only where asked (simulate_writes)"
        if self.min_fidelity is None or self.fidelity.get(tool, -1.0) >= self.min_fidelity:
            return None
        known = f"is right {self.fidelity[tool]:.0%} of the time" if tool in self.fidelity else "was not measured"
        return f"the simulation of {tool} {known}, wanted {self.min_fidelity:.0%}"


class NearestRecorded(Simulation):
    """Answers with the result of the nearest recorded call of the same tool, if its likeness reaches `min_likeness`.

    Likeness is the similarity of the arguments (`nearest`), a tenth less where other writes came before: with 0.9 a read with equal
    arguments answers whatever was written since, with 1.0 only under equal writes. A tool whose recorded results are all equal
    gives that one. `effects` is completed by those of the trajectories' tools.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        *,
        effects: Mapping[str, Effect] | None = None,
        tools: Sequence[ToolSpec] = (),
        min_likeness: float = 0.9,
        simulate_writes: bool = False,
        fidelity: Mapping[str, float] | None = None,
        min_fidelity: float | None = None,
    ) -> None:
        logged = tuple(trajectories)
        known = effects_of(logged, tools, effects)
        super().__init__(
            _Nearest(logged, known, min_likeness), known, simulate_writes=simulate_writes, fidelity=fidelity, min_fidelity=min_fidelity
        )


class _Nearest:
    def __init__(self, trajectories: Sequence[Trajectory], effects: Mapping[str, Effect], min_likeness: float) -> None:
        self.min_likeness = min_likeness
        self.fingerprint = f"nearest:{content_key(*(t.key for t in trajectories), str(min_likeness))}"
        self._recollection = Recollection(trajectories, effects)

    async def imagine(self, state: State, call: ToolCall) -> Imagined:
        found = next(iter(self._recollection.nearest(state, call)), None)
        if found is None:
            return Imagined(None, f"{call.name} was never called in the log")
        if found.score < self.min_likeness:
            wanted = f"the nearest recorded call has likeness {found.score:.2f}, wanted {self.min_likeness:.2f}"
            return Imagined(None, f"{call.name}: {wanted}", found.score)
        return Imagined(found.call.result, found.call.form.signature, found.score)


def effects_of(
    trajectories: Iterable[Trajectory], tools: Sequence[ToolSpec] = (), effects: Mapping[str, Effect] | None = None
) -> dict[str, Effect]:
    """The effect of each tool: as `effects` says, else `tools`, else the trajectories, the first of them foremost."""
    logged = {tool.name: tool.effect for trajectory in reversed(tuple(trajectories)) for tool in trajectory.tools}
    return logged | {tool.name: tool.effect for tool in tools} | dict(effects or {})


def partly(state: State, action: Message, place: int, observations: Sequence[Message]) -> State:
    """The state in the middle of an action, before its call number `place`: what came before it is answered."""
    if place == 0:
        return state
    begun = Message.assistant(action.content_text or None, action.tool_calls[:place])
    return replace(state, steps=(*state.steps, Step(begun, tuple(observations[:place]))))


def _unanswered(action: Message, reason: str) -> Step:
    return Step(action, truncated=True, error=f"not simulated: {reason}")
