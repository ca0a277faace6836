"""One step of a graph: the model node, and what follows it up to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import CounterplayError, PolicyError, UserError
from counterplay.core.nouns import Grade, Message, Proposal, State, Step, ToolCall
from counterplay.replay.agents.ambient import Interruption
from counterplay.replay.graphs.answers import Prepared, ToolAnswers
from counterplay.replay.graphs.binding import Binding, Branch, Home
from counterplay.replay.graphs.messages import assistant_of, given_of, message_key, message_of, pending_calls, tool_message_of, usage_of

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

_MAX_ROUNDS = 50  # between two model calls: more is a graph that goes in a circle


@dataclass
class Play:
    """A branch in the middle of a step. `state` is the one before the step, `before` what was said before it.

    `supplied` are answers that the caller gave for calls of this step.
    """

    branch: Branch
    answers: ToolAnswers
    state: State
    before: Sequence[BaseMessage]
    supplied: Mapping[str, tuple[Message, Grade]] = field(default_factory=dict)
    grades: dict[str, Grade] = field(default_factory=dict)

    @property
    def new(self) -> list[Message]:
        """What was said since, the action first; less where the graph has rewritten it."""
        return [message_of(each) for each in fresh(self.before, self.branch.messages)]

    async def finish(self, action: Message, *, sampled: bool = True) -> Step:
        """Let the tools answer and the graph go on to its next model call. What stops it is in the step, never raised."""
        branch = self.branch
        for rounds in range(_MAX_ROUNDS):
            if not branch.next:
                return await self.replied(self.step(action, sampled=sampled))
            if branch.at_model or (branch.interrupts and (rounds or not branch.at_tools)):
                return self.step(action, sampled=sampled)
            prepared = await self._prepared() if branch.at_tools else Prepared()
            if isinstance(prepared, str):
                return self.step(action, sampled=sampled, reason=prepared)
            self._order(prepared)
            try:
                await branch.run()
            except Interruption as stop:
                return self.step(action, sampled=sampled, reason=str(stop))
            except Exception as failure:  # noqa: BLE001  a graph is user code: its failure is data
                return self.step(action, sampled=sampled, failure=described(failure))
        return self.step(action, sampled=sampled, reason=f"the graph stopped at {branch.next} {_MAX_ROUNDS} times without asking its model")

    async def replied(self, step: Step) -> Step:
        """A step that ended the graph, and the user's next turn where there is one: another run of the graph, up to its model."""
        if not step.terminated or step.action.tool_calls or step.observations:
            return step
        reply = await self.answers.reply(self.state, step.action)
        if reply is None:
            return step
        await self.branch.run({self.branch.binding.messages_key: given_of(reply.observations)})
        grades = reply.grades or (Grade.EXECUTED,) * len(reply.observations)
        return replace(step, observations=reply.observations, grades=grades, terminated=reply.terminated, truncated=reply.truncated)

    async def _prepared(self) -> Prepared | str:
        pending = self._pending()
        asked = [call for call in pending if call.id not in self.supplied]
        given = Prepared({call.id: self.supplied[call.id] for call in pending if call.id in self.supplied})
        if not asked:
            return given
        unknown = {call.name for call in asked} - set(self.branch.binding.tool_names)
        found = await self.answers.prepare(self.state, self.new[0], asked, unknown)
        return found if isinstance(found, str) else Prepared({**found.answers, **given.answers}, found.execute)

    def _pending(self) -> list[ToolCall]:
        """The unanswered calls that the graph sees as such: one whose arguments are no JSON is none to it."""
        last: Any = next((each for each in reversed(self.branch.messages) if each.type == "ai"), None)
        known = {call["id"] for call in getattr(last, "tool_calls", ())}
        return [call for call in pending_calls(self.new) if call.id in known]

    def _order(self, prepared: Prepared) -> None:
        calls = {call.id: {"id": call.id, "name": call.name} for call in self._pending()}
        self.branch.orders.answers = {
            own: tool_message_of(message, calls[own]) for own, (message, _) in prepared.answers.items() if own in calls
        }
        self.grades |= {own: grade for own, (_, grade) in prepared.answers.items()}

    def step(self, action: Message, *, sampled: bool = True, reason: str = "", failure: str = "") -> Step:
        """What came of an action so far. `reason` says why the branch ends here, `failure` how the graph's own code failed."""
        messages = self.new
        reason = reason or self._problem(messages, action)
        return Step(
            action,
            tuple(messages[1:]),
            sampled=sampled,
            terminated=not (reason or failure or self.branch.next),
            truncated=bool(reason),
            error=reason or failure or None,
            grades=tuple(self.grades.get(message.tool_call_id or "", Grade.EXECUTED) for message in messages[1:]),
        )

    def _problem(self, messages: Sequence[Message], action: Message) -> str:
        """Why a trajectory can't say what the graph did; empty where it can."""
        if rewritten(self.before, self.branch.messages):
            return "the graph trimmed or edited what was said before, so that the branch is no longer one growing context"
        if messages and message_key(messages[0]) != message_key(action):
            return f"the graph's own code changed the action into {messages[0].signature}"
        if any(message.role == "assistant" for message in messages[1:]):
            return "another node of the graph spoke for the agent; name all of its model nodes in model_nodes"
        if self.branch.interrupts:
            return f"the graph waits for an answer to {self.branch.interrupts[0].value!r:.200}"
        return ""


async def reach_model(branch: Branch) -> bool:
    """Run what stands before the model node, such as middleware; False where the graph ends or waits in place of asking it.

    Raises UserError where tools are to answer first.
    """
    while branch.next and not branch.at_model and not branch.interrupts:
        if branch.at_tools:
            calls = ", ".join(call.name for call in pending_calls([message_of(each) for each in branch.messages]))
            raise UserError(f"got a state in which tools are to answer ({calls})", "one in which the model is next", "go_on() lets them.")
        await branch.run()
    return branch.at_model


async def speak(branch: Branch, say: Message | None = None) -> BaseMessage | None:
    """Run the model node, or let it say `say`; what it said, None where the graph ends without. Raises what the node raises."""
    if not await reach_model(branch):
        return None
    before = branch.messages
    if say is not None:
        branch.orders.say = assistant_of(say)
    await branch.run(after=branch.binding.models)
    return next((each for each in fresh(before, branch.messages) if each.type == "ai"), None)


async def asked(branch: Branch, say: Message | None = None) -> BaseMessage | None:
    """The same, with every failure a PolicyError."""
    try:
        return await speak(branch, say)
    except CounterplayError:
        raise
    except Interruption as stop:
        raise PolicyError(f"the graph's model node can't be run here: {stop}") from None
    except Exception as failure:
        raise PolicyError(f"the graph's model node failed: {described(failure)}") from failure


async def draw(binding: Binding, home: Home, execute: frozenset[str]) -> Proposal | None:
    """One answer of the model node in a copy of its own; None where the graph ends without asking it. Raises PolicyError if it fails."""
    said = await asked(Branch(binding, home, execute))
    return None if said is None else proposal_of(said)


def proposal_of(said: BaseMessage) -> Proposal:
    metadata: Mapping[str, Any] = said.response_metadata or {}
    reason = metadata.get("finish_reason") or metadata.get("stop_reason") or ""
    model = metadata.get("model_name") or metadata.get("model") or ""
    return Proposal(message_of(said), usage=usage_of(said), model=str(model), finish_reason=str(reason))


def described(failure: BaseException) -> str:
    if isinstance(failure, NotImplementedError):
        return f"{failure} (a graph whose middleware has a synchronous side alone is run with blocking=True)"
    return f"{type(failure).__name__}: {failure}"


def fresh(before: Sequence[BaseMessage], after: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What was said since. Where the graph has rewritten what was before, the messages whose ids are new."""
    if not rewritten(before, after):
        return list(after[len(before) :])
    known = {each.id for each in before}
    return [each for each in after if each.id not in known]


def rewritten(before: Sequence[BaseMessage], after: Sequence[BaseMessage]) -> bool:
    """Whether a graph trimmed or edited what was said already."""
    pairs = zip(before, after, strict=False)
    return len(after) < len(before) or any(one is not other and message_of(one) != message_of(other) for one, other in pairs)
