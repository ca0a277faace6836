"""The interceptor of a re-enactment: answers models from the recording up to the fork, and decides who answers them after it.

Before the fork no model is asked. After it the main line is the model's own again, unless it is to end there; a sub-agent that
asks what the recorded one asked is answered by the recording, and asks its model otherwise, where it may.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import NoReturn

from counterplay.core.canonical import content_key
from counterplay.core.nouns import Call, Message, State, Trace, Trajectory
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest, ToolAnswer, ToolRequest
from counterplay.replay.agents.answers import answer as rendered
from counterplay.replay.agents.answers import failed_answer
from counterplay.replay.agents.differences import Difference
from counterplay.replay.agents.latch import BranchEnd, Diverged, Latch, NotInRecording
from counterplay.replay.agents.lines import Line, Lines
from counterplay.replay.agents.matching import TRUE, Match, Matcher
from counterplay.replay.agents.pins import Pin
from counterplay.replay.agents.plan import HERE, AnsweredBy, Plan, Seen, StepIn
from counterplay.replay.agents.rebuilding import rebuilt
from counterplay.replay.agents.recorded_calls import RecordedCall
from counterplay.replay.agents.requests import Answered, Asked, Conversations, Normaliser, Reader, params_of
from counterplay.replay.agents.sides import SideKey, Sides
from counterplay.replay.agents.tool_log import ToolLog, Where, trajectory_of
from counterplay.replay.agents.tool_side import ToolSide


class Replayer:
    """The `Interceptor` of one run of the agent.

    `seen` are the requests before the fork and those answered by the recording after it, `lines` the contexts of the branch,
    `model_calls` the requests that really went to a model; `last` is the last step of the forked context that the recording answered.
    `step_in` is the user's environment, None where there is none; `pins` moves a pinned clock.
    """

    def __init__(
        self,
        trace: Trace,
        plan: Plan,
        *,
        reader: Reader,
        tools: ToolLog,
        latch: Latch,
        step_in: StepIn | None = None,
        sides: Sides | None = None,
        pins: Pin | None = None,
    ) -> None:
        self.trace, self.plan, self.reader, self.latch = trace, plan, reader, latch
        self.pins = pins or Pin()
        self.matcher = Matcher(trace, window=plan.window, comparable=plan.comparable)
        self.normaliser = Normaliser(plan.comparable)
        self.seen: list[Seen] = []
        self.tools = ToolSide(plan, tools, self.matcher, latch, step_in=step_in, seen=self.seen)
        self.lines = Lines(self.normaliser)
        self.forked_at: Where | None = None
        self.last: Where | None = None
        self.model_calls = 0
        self._failures = [failure for failure in trace.metadata.get("retries") or () if isinstance(failure, dict)]
        self._on_log = False
        self._sides = Sides() if sides is None else sides
        self._asked_aside: Counter[str] = Counter()
        self._conversations = Conversations()
        self._made_up: set[str | None] = set()
        self._pending: dict[int, tuple[ModelRequest, Asked, Line, SideKey | None]] = {}
        self._lock = threading.RLock()

    def model(self, request: ModelRequest) -> ModelAnswer | None:
        self.latch.check()
        with self._lock:
            asked = self._read(request)
            return self._before(request, asked) if self.forked_at is None else self._after(request, asked)

    def model_answered(self, request: ModelRequest, answer: ModelAnswer) -> None:
        with self._lock:
            found = self._pending.pop(id(request), None)
            if found is not None:
                _, asked, line, side = found
                self._take_live(request, answer, asked, line)
                if side is not None and answer.error is None:
                    self._sides.keep(side, answer)

    def tool(self, request: ToolRequest) -> ToolAnswer | None:
        self.latch.check()
        with self._lock:
            known = self.tools.known(request, forked=self.forked_at is not None)
            main = self._open_state()
        return known if isinstance(known, ToolAnswer) else self.tools.elsewhere(request, known, main)

    def nested(self, name: str) -> None:
        """Interrupts where an external tool that another tool calls is not named."""
        if name not in self.plan.execute_tools:
            self.latch.stop(NotInRecording(f"{name} was not executed: a tool called it, and it is not named in execute_tools itself"))

    def tool_answered(self, request: ToolRequest, answer: ToolAnswer) -> None:
        with self._lock:
            self.tools.answered(request, answer)

    def _before(self, request: ModelRequest, asked: Asked) -> ModelAnswer | None:
        """Answer a request before the fork, which may be the one to fork at."""
        match = self.matcher.match(asked)
        known = None if match.kind in TRUE else self._again(request, asked) or self._failed(asked, match)
        if known is not None:
            return known
        at_fork = match.call is not None and (match.call.trajectory, match.call.step) == self.plan.fork
        if at_fork:
            match = self._with_missing(match)
        if match.kind in TRUE or (self.plan.on_divergence == "warn" and match.call is not None):
            return self._fork(request, asked, match) if at_fork else self._from_recording(request, asked, match)
        if self.plan.on_divergence == "live":
            return self._fork_off(request, asked, match)
        self._note(match, "nobody")
        return self.latch.stop(Diverged(str(self.seen[-1])))

    def _failed(self, asked: Asked, match: Match) -> ModelAnswer | None:
        """The recorded failure of another model that was asked the same first; None where there was none."""
        if match.call is None or match.difference is None or match.difference.path != "model":
            return None
        for failure in self._failures:
            here = (failure.get("trajectory"), failure.get("step")) == (match.call.trajectory, match.call.step)
            if here and failure.get("model") == asked.params.get("model"):
                self._failures.remove(failure)
                return failed_answer(str(failure.get("error") or ""))
        return None

    def _with_missing(self, match: Match) -> Match:
        """A match at the fork, unless there are recorded calls that should have come before it and have not."""
        assert match.call is not None
        missing = self.matcher.open(before=match.call) if match.kind in TRUE else ()
        if not missing:
            return match
        wanted = f"first that of {', '.join(call.name for call in missing[:3])}"
        return Match("missing_call", match.call, Difference("", None, f"the request of {match.call.name}", wanted), len(missing))

    def _from_recording(self, request: ModelRequest, asked: Asked, match: Match) -> ModelAnswer:
        call = match.call
        assert call is not None
        self._note(match, "recorded")
        self.matcher.take(match, asked)
        others = self.matcher.alike(match)[: max(0, int(request.fields.get("n") or 1) - 1)]
        for other in others:
            self.matcher.take(Match("same", other), asked)
        HERE.set((call.trajectory, call.step))
        self._move_clock(call.call)
        self.last = HERE.get() if call.trajectory == self.main_trajectory else self.last
        return self._answer(request, asked, [call.action, *(other.action for other in others)], call.call)

    def _fork(self, request: ModelRequest, asked: Asked, match: Match) -> ModelAnswer | None:
        call, action = match.call, self.plan.action
        assert call is not None
        line = self._begin(asked, match)
        if action is None and not self.plan.live:
            self._note(match, "nobody")
            self.latch.stop(BranchEnd("the fork is reached"))
        self._note(match, "live" if action is None else "given")
        if action is None:
            return self._live(request, asked, line, None)
        given = Call(call.step, call.trajectory, model=call.call.model, started_at_us=call.call.started_at_us)
        self._acted(line, asked, Answered(action), given)
        return self._answer(request, asked, [action], given)

    def _fork_off(self, request: ModelRequest, asked: Asked, match: Match) -> ModelAnswer | None:
        """Go live at a divergence: the branch begins there."""
        self._note(match, "live")
        return self._live(request, asked, self._begin(asked, match), None)

    def _begin(self, asked: Asked, match: Match) -> Line:
        """Fork here. Where the request is not the recorded one, the state before the fork is what the request shows."""
        call = match.call
        recorded = self.trace.trajectory.prefix(0) if call is None else trajectory_of(self.trace, call.trajectory).prefix(call.step)
        prefix = recorded if match.kind in (*TRUE, "missing_call") else rebuilt(asked, recorded, self.normaliser)
        self.forked_at = (0, len(prefix)) if call is None else (call.trajectory, call.step)
        self._on_log = match.kind in TRUE
        self.matcher.take(match, asked)
        HERE.set(self.forked_at)
        self.pins.let_run()
        return self.lines.fork(prefix, asked)

    def _after(self, request: ModelRequest, asked: Asked) -> ModelAnswer | None:
        """Answer a request after the fork."""
        if self.lines.is_main(asked):
            line = self.lines.place(asked, self.tools.grade)
            self._on_log = self._on_log and self.matcher.is_request(asked, self.main_trajectory, len(line.trajectory))
            if not self.plan.live:
                self.latch.stop(BranchEnd("the branch is as long as was asked for"))
            return self._live(request, asked, line, None)
        return self._aside(request, asked)

    def _aside(self, request: ModelRequest, asked: Asked) -> ModelAnswer | None:
        """Answer a sub-agent: from the recording, as it was answered when this branch was here before, or live."""
        call = self.matcher.recorded(asked)
        if call is not None and not self._downstream(call):
            return self._from_recording(request, asked, Match("same", call))
        known = self._again(request, asked)
        if known is not None:
            return known
        if not self.plan.live_sides:
            self._note(Match("extra_call", None, self.matcher.surplus(asked)), "nobody")
            self._not_recorded("a sub-agent asked a model what is not in the recording, and may not ask it live")
        side = self._side_key(request, asked)
        self._asked_aside[side[0]] = side[1]
        return self._live(request, asked, self.lines.place(asked, self.tools.grade), side)

    def _again(self, request: ModelRequest, asked: Asked) -> ModelAnswer | None:
        """What a sub-agent's model answered live when this branch was here before; None where it was not."""
        side = self._side_key(request, asked)
        known = self._sides.get(side)
        if known is not None:
            self._asked_aside[side[0]] = side[1]
            self._take_live(request, known, asked, self.lines.place(asked, self.tools.grade))
        return known

    def _side_key(self, request: ModelRequest, asked: Asked) -> SideKey:
        """What is asked, and for the how-manieth time; a client's own retry asks nothing new."""
        tools = (tool.wire for tool in asked.tools)
        key = content_key(str(request.stream), *self.normaliser.of(asked.messages), *tools)
        return key, self._asked_aside[key] + (request.attempt == 0)

    def _downstream(self, call: RecordedCall) -> bool:
        """Whether a recorded call is of the forked context, or of one that took it over."""
        at: int | None = call.trajectory
        while at and at != self.main_trajectory:
            at = self.trace.sub_trajectories[at - 1].continues
        return at == self.main_trajectory

    @property
    def main_trajectory(self) -> int:
        fork = self.forked_at or self.plan.fork
        return fork[0] if fork else 0

    def _live(self, request: ModelRequest, asked: Asked, line: Line, side: SideKey | None) -> ModelAnswer | None:
        """Let the request go to the model, unless its server would have to know an answer that it never gave."""
        if request.fields.get("previous_response_id") in self._made_up:
            self._not_recorded("the request goes on from a counterfactual answer, by an id that its server does not know: send whole input")
        self.model_calls += 1
        self._pending[id(request)] = (request, asked, line, side)
        return None

    def _take_live(self, request: ModelRequest, answer: ModelAnswer, asked: Asked, line: Line) -> None:
        try:
            answered = self.reader.answered(request, answer)
        except ValueError:
            return
        if answered.action is not None:
            self._conversations.answered(answered.response_id, asked, answered.action)
            self._acted(line, asked, answered, _call(request, answered, answer))

    def _acted(self, line: Line, asked: Asked, answered: Answered, call: Call) -> None:
        self.lines.answered(line, asked, answered, call)
        if line.main:
            self.tools.acted(self._logged_step(line.trajectory))

    def _logged_step(self, branch: Trajectory) -> Where | None:
        """The recorded step that the last one of the branch repeats; None once the branch has gone another way."""
        recorded, step = trajectory_of(self.trace, self.main_trajectory), len(branch) - 1
        same = step < len(recorded) and recorded.steps[step].action.signature == branch.steps[step].action.signature
        self._on_log = self._on_log and same
        return (self.main_trajectory, step) if self._on_log else None

    def _answer(self, request: ModelRequest, asked: Asked, actions: list[Message], call: Call) -> ModelAnswer:
        answer = rendered(request, actions, call)
        if request.api == "responses":
            response_id = self.reader.answered(request, answer).response_id
            self._conversations.answered(response_id, asked, actions[0])
            if response_id != call.response_id:
                self._made_up.add(response_id)
        return answer

    def _move_clock(self, call: Call) -> None:
        """A pinned clock shows the time at which the recorded answer came."""
        if call.started_at_us is not None:
            self.pins.move_to(call.started_at_us + int((call.latency_s or 0.0) * 1e6))

    def missing(self) -> tuple[Seen, ...]:
        """The recorded calls that were not made and should have been, once the agent has ended: none of them after a fork."""
        left = self.matcher.open() if self.forked_at is None else ()
        return tuple(Seen("missing_call", "nobody", call.trajectory, call.step) for call in left)

    def _open_state(self) -> State | None:
        """The main line before what its last action led to; None before the fork."""
        main = self.lines.main
        if main is None:
            return None
        open_step = len(main.trajectory) > main.forked_at and not main.trajectory.steps[-1].observations
        return main.trajectory.prefix(len(main.trajectory) - 1) if open_step else main.trajectory

    def _read(self, request: ModelRequest) -> Asked:
        if request.api == "other":
            self._not_recorded(f"{request.url or 'a model call'} asks no chat model, and what it answers is not in the recording")
        try:
            return self._conversations.in_full(self.reader.asked(request))
        except ValueError as error:
            self._not_recorded(f"a request to {request.url or request.api} can't be read: {error}")

    def _note(self, match: Match, answered_by: AnsweredBy) -> None:
        trajectory, step = (None, None) if match.call is None else (match.call.trajectory, match.call.step)
        self.seen.append(Seen(match.kind, answered_by, trajectory, step, match.difference))

    def _not_recorded(self, reason: str) -> NoReturn:
        self.latch.stop(NotInRecording(reason))


def _call(request: ModelRequest, answered: Answered, answer: ModelAnswer) -> Call:
    """The provenance of a live call; its step is set where it is put."""
    return Call(
        0,
        model=answered.model,
        params=params_of(request.fields),
        usage=answered.usage,
        latency_s=answer.latency_s,
        first_token_s=answer.first_token_s,
        started_at_us=answer.started_at_us,
        finish_reason=answered.finish_reason,
        response_id=answered.response_id,
        streamed=request.stream,
    )
