"""Who answers the tools of a re-enacted agent.

In the prefix the recording, and nobody else. On the branch the recording where it still holds, then the environment that the
user gave, then the function itself where the user named its tool; anything else interrupts the agent.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from counterplay.core.canonical import canonical
from counterplay.core.nouns import Grade, Message, State, Step, ToolCall
from counterplay.replay.agents.ambient import ToolAnswer, ToolRequest
from counterplay.replay.agents.differences import Difference
from counterplay.replay.agents.latch import Diverged, Latch, NotInRecording
from counterplay.replay.agents.matching import Matcher
from counterplay.replay.agents.plan import HERE, Plan, Seen, StepIn
from counterplay.replay.agents.tool_log import ToolLog, ToolRun, Where, key_of


class ToolSide:
    """Answers tool calls. `executed` counts the functions that were really run, by tool."""

    def __init__(self, plan: Plan, log: ToolLog, matcher: Matcher, latch: Latch, *, step_in: StepIn | None, seen: list[Seen]) -> None:
        self.plan, self.log, self.matcher, self.latch, self.step_in, self.seen = plan, log, matcher, latch, step_in, seen
        self.executed: Counter[str] = Counter()
        self._executing: dict[int, tuple[ToolRequest, Where | None]] = {}
        self._action_at = 0
        self._logged: Where | None = None
        self._waiting_for_environment = threading.Lock()

    @property
    def branch(self) -> Sequence[ToolRun]:
        """What ran after the fork, in order."""
        return self.log.branch

    def acted(self, logged: Where | None) -> None:
        """The model has answered on the main line: what runs from here on belongs to a new step, which may be the `logged` one again."""
        self._action_at, self._logged = len(self.log.branch), logged

    def known(self, request: ToolRequest, *, forked: bool) -> ToolAnswer | str:
        """The recorded answer, or why there is none that is true. Interrupts where there has to be one."""
        self.log.declare(request)
        if not forked:
            run = self.log.repeat(request, HERE.get())
            if run is not None:
                self.matcher.excuse(run.where)
                return self._replayable(run)
            self._drifted(request, HERE.get())
        elif self._logged is not None:
            run = self.log.repeat(request, self._logged, strictly=True)
            if run is not None:
                self.log.add(replace(run, grade=Grade.EXACT))
                return self._replayable(run)
        reused = self.log.reuse(request)
        if isinstance(reused, str):
            return reused
        self.log.add(reused)
        return self._replayable(reused)

    def elsewhere(self, request: ToolRequest, reason: str, main: State | None) -> ToolAnswer | None:
        """The answer of the environment, asked in the state `main`; None where the function itself may be run.

        `main` is None before the fork, where neither is asked.
        """
        if main is None:
            self._refuse(request, f"{reason}; before the fork nothing is executed")
        if self.step_in is not None:
            with self._waiting_for_environment:
                found = self._in_environment(self.step_in, request, main)
            if isinstance(found, ToolAnswer):
                return found
            reason = f"{reason}; the environment: {found}"
        if request.name not in self.plan.execute_tools:
            self._refuse(request, f"{reason} (give an environment, or name the tool in execute_tools)")
        self._executing[id(request)] = (request, HERE.get())
        return None

    def answered(self, request: ToolRequest, answer: ToolAnswer) -> None:
        """A function was run."""
        self._executing.pop(id(request), None)
        self.executed[request.name] += 1
        self.log.add(ToolRun(*key_of(request), answer, Grade.EXECUTED))

    def grade(self, call: ToolCall) -> Grade:
        """How truly the latest run of a call on the branch was obtained; executed where the agent's own code gave its result."""
        key = (call.name, call.arguments if call.args is None else canonical(call.args))
        return next((run.grade for run in reversed(self.log.branch) if run.key == key), Grade.EXECUTED)

    def _drifted(self, request: ToolRequest, where: Where | None) -> None:
        """Note a call in the prefix that the recorded agent did not make."""
        got = f"{request.name}({key_of(request)[1]})"
        meant = self.log.waiting(request.name, where)
        if meant is None:
            trajectory, step = where or (None, None)
            seen = Seen("extra_call", "nobody", trajectory, step, Difference("", None, got, "a recorded tool call"), request.name)
        else:
            trajectory, step = meant.where or (None, None)
            wanted = f"{meant.name}({meant.arguments})"
            seen = Seen("argument_drift", "nobody", trajectory, step, Difference("arguments", None, got, wanted), request.name)
        self.seen.append(seen)
        if self.plan.on_divergence == "abort":
            self.latch.stop(Diverged(str(seen)))

    def _in_environment(self, step_in: StepIn, request: ToolRequest, main: State) -> ToolAnswer | str:
        name, arguments = key_of(request)
        action = Message.assistant(tool_calls=[ToolCall(f"call_{len(self.log.branch)}", name, arguments)])
        try:
            step = step_in(self._state(main), action)
        except Exception as error:  # noqa: BLE001  the user's environment: its failure ends this branch alone
            return f"{type(error).__name__}: {error}"
        if not step.observations:
            return step.error or "it gave no result"
        run = ToolRun(name, arguments, ToolAnswer(self.log.as_value(name, step.observations[0].content_text)), step.grade)
        self.log.add(run)
        return run.answer

    def _state(self, main: State) -> State:
        """The main line up to its last action, and what has run since as steps of their own: the order of calls is what counts."""
        for at, run in enumerate(self.log.branch[self._action_at :]):
            call = ToolCall(f"call_{self._action_at + at}", run.name, run.arguments)
            main = main.extend(Step(Message.assistant(tool_calls=[call]), (Message.tool(run.text, call.id),)))
        return main

    def _replayable(self, run: ToolRun) -> ToolAnswer:
        if not run.answer.replayable:
            said = f"what {run.name} gave is no JSON data, only its text was recorded: {str(run.answer.value)[:120]}"
            self.latch.stop(NotInRecording(said))
        return run.answer

    def _refuse(self, request: ToolRequest, reason: str) -> NoReturn:
        self.latch.stop(NotInRecording(f"{request.name} was not executed: {reason}"))
