"""The tools pack: does an agent use its tools well, whatever they are for?

Calls that fit no schema or no tool, errors and whether they were recovered from, calls that were repeated and taught nothing, and
more calls than a task needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar

from counterplay.core.effects import EVERYTHING, EXTERNAL, Effect
from counterplay.core.nouns import Score, Step, ToolSpec, Trajectory
from counterplay.verifiers.packs.base import Change, Finding, Fold, Index, Pack, Use, changed, matches, uses_of
from counterplay.verifiers.packs.tool_calls import schema_problem

_LOOP = 3


@dataclass(frozen=True, slots=True)
class _Seen:
    """The last time a call was made: when (calls and user turns so far), with what answer, and how often on end with that answer."""

    at: int
    answer: str
    times: int


@dataclass(frozen=True, slots=True)
class _State:
    tools: Trajectory
    clock: int = 0
    findings: tuple[Finding, ...] = ()
    errors: tuple[tuple[str, Finding], ...] = ()  # not recovered from: the tool and what is found
    seen: Index[_Seen] = Index()  # noqa: RUF009  an Index never changes
    changes: Change | None = None
    used: Index[int] = Index()  # noqa: RUF009


@dataclass(frozen=True, eq=False)
class ToolUse(Pack):
    """A process verifier: `decay` to the power of the weights of what is wrong, so 1 is faultless. No opinion before the first step.

    Weights: `invalid` a call that is no JSON object or breaks its tool's schema, `unknown` a tool that is not there, `failed` an
    error that was never recovered from, `recovered` one after which the same tool was used with success (an error counts as
    recovered until the end shows that it was not), `repeated` a call made before, with the same answer and nothing in between that
    may have changed it (a user's turn, or a write or external call by the tools' declared effects), or for the third time in any
    case; `overuse` each call beyond a limit of `most`.

    `most` holds (tool pattern, number): calls of tools that match are counted together. `may_repeat` names tools that may be asked
    again, such as those that poll. `specs` are the tools of trajectories that name none: without either, names, schemas and effects
    can't be checked, and an unknown effect may change everything.
    """

    name: ClassVar[str] = "tools"
    invalid: float = 1.0
    unknown: float = 1.0
    failed: float = 1.0
    recovered: float = 0.25
    repeated: float = 0.5
    overuse: float = 0.25
    most: tuple[tuple[str, int], ...] = ()
    may_repeat: tuple[str, ...] = ()
    specs: tuple[ToolSpec, ...] = ()
    decay: float = 0.5

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        if not trajectory.steps:
            return None
        return self.verdict(self.findings(trajectory), "every call is sound", self.decay)

    def findings(self, trajectory: Trajectory) -> list[Finding]:
        """All that is wrong, in step order. An error weighs `failed` only once the trajectory has ended without recovery."""
        state = self._fold(trajectory)
        standing = [finding for _, finding in state.errors]
        if trajectory.finished:
            standing = [replace(finding, weight=max(self.failed, self.recovered), kind="failed") for finding in standing]
        return sorted((*state.findings, *standing), key=lambda finding: finding.step)

    @cached_property
    def _fold(self) -> Fold[_State]:
        return Fold(lambda trajectory: _State(self._tools(trajectory)), self._add)

    def _tools(self, trajectory: Trajectory) -> Trajectory:
        return Trajectory(trajectory.tools or self.specs)

    def _add(self, state: _State, step: Step, index: int) -> _State:
        for use in uses_of(step, index):
            state = self._used(state, use)
        if any(message.role == "user" for message in step.observations):
            now = state.clock + 1
            state = replace(state, clock=now, changes=Change(now, EVERYTHING, state.changes))
        return state

    def _used(self, state: _State, use: Use) -> _State:
        now, effect = state.clock + 1, _effect(state.tools, use)
        touched = effect.touches(use.call.args) if effect.resource else EVERYTHING
        before, signature = state.seen.get(use.call.signature), use.call.signature
        times = before.times + 1 if before is not None and before.answer == use.text else 1
        found = [*self._broken(state, use), *self._over(state, use)]
        if before is not None and times > 1 and not matches(use.call.name, self.may_repeat):
            renewed = effect.kind != "pure" and changed(state.changes, before.at, touched)
            if not renewed or times >= _LOOP:
                found.append(Finding(use.step, f"repeated {signature[:120]} and learnt nothing new", self.repeated, "repeated"))
        errors, recovered = self._errors(state, use)
        changes = state.changes
        if effect.kind in ("write", "external"):
            changes = Change(now, touched, changes)
        return replace(
            state,
            clock=now,
            findings=(*state.findings, *found, *recovered),
            errors=errors,
            seen=state.seen.put([(signature, _Seen(now, use.text, times))]),
            changes=changes,
            used=state.used.put((pattern, (state.used.get(pattern) or 0) + 1) for pattern in self._limits(use)),
        )

    def _broken(self, state: _State, use: Use) -> Iterator[Finding]:
        problem = schema_problem(state.tools, use.call)
        if problem:
            unknown = problem.startswith("unknown tool")
            known = ", ".join(tool.name for tool in state.tools.tools[:8])
            text = f"{problem}, there are: {known}" if unknown else problem
            yield Finding(use.step, text, self.unknown if unknown else self.invalid, "unknown" if unknown else "invalid")

    def _over(self, state: _State, use: Use) -> Iterator[Finding]:
        for pattern, limit in self.most:
            if fnmatchcase(use.call.name, pattern) and (state.used.get(pattern) or 0) >= limit:
                text = f"{use.call.name}: call {(state.used.get(pattern) or 0) + 1} of {pattern}, wanted at most {limit}"
                yield Finding(use.step, text, self.overuse, "overuse")

    def _limits(self, use: Use) -> list[str]:
        return [pattern for pattern, _ in self.most if fnmatchcase(use.call.name, pattern)]

    def _errors(self, state: _State, use: Use) -> tuple[tuple[tuple[str, Finding], ...], list[Finding]]:
        """The errors that still stand after a call, and those that it recovered from."""
        tool = use.call.name
        if use.failed:
            told = f"{tool} answered with an error: {use.text[:120]}"
            return (*state.errors, (tool, Finding(use.step, told, self.recovered, "recovered"))), []
        if use.answer is None:
            return state.errors, []
        recovered = [finding for name, finding in state.errors if name == tool]
        return tuple((name, finding) for name, finding in state.errors if name != tool), recovered


def _effect(tools: Trajectory, use: Use) -> Effect:
    tool = tools.tool(use.call.name)
    return EXTERNAL if tool is None else tool.effect
