"""A checkpoint to go on from: sampled again, answered otherwise, with another tool result, or just on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Grade, Message, Proposal, State, Trajectory
from counterplay.core.protocols import Environment
from counterplay.replay.agents.ambient import Interruption
from counterplay.replay.graphs.answers import ToolAnswers
from counterplay.replay.graphs.binding import Binding, Branch, GraphOptions, Home
from counterplay.replay.graphs.messages import message_of, openai_of, pending_calls
from counterplay.replay.graphs.playing import Play, asked, draw
from counterplay.replay.graphs.points import GraphPoint
from counterplay.replay.graphs.source import Source
from counterplay.replay.graphs.threads import Thread, aread_thread, read_thread, reading

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

_MAX_STEPS = 100


def fork_graph(
    graph: Any,
    source: Source,
    checkpoint: GraphPoint | str,
    *,
    thread_id: str | None = None,
    effects: Mapping[str, Effect] | None = None,
    environment: Environment | None = None,
    execute_tools: Iterable[str] = (),
    recorded: Iterable[Trajectory] = (),
    messages_key: str = "messages",
    allow_classes: Iterable[type] = (),
    **options: Unpack[GraphOptions],
) -> GraphFork:
    """Re-home a checkpoint of `source` (a database path or a checkpointer) in memory, under a copy of `graph`.

    Neither the thread nor the graph is changed, and no model and no tool is called. `checkpoint` is one of `graph_forks`, which
    then is not read again, or its id together with `thread_id`. Later tool calls are answered by the thread's own results and
    those of `recorded` under `effects` (by tool name; without one, MCP annotations count, and all else is external), then by
    `environment`; tools in `execute_tools` are executed. `options` are those of GraphOptions.

    Raises UserError where the checkpoint can't be forked, SourceError where it can't be read.
    """
    thread_id = _thread_id(checkpoint, thread_id)
    read = reading(source, checkpoint) or read_thread(source, thread_id, messages_key, allow_classes)
    thread = Thread.of(read, graph, options)
    return _fork(thread, checkpoint, thread.answers(effects or {}, environment, execute_tools, recorded))


async def afork_graph(
    graph: Any,
    source: Source,
    checkpoint: GraphPoint | str,
    *,
    thread_id: str | None = None,
    effects: Mapping[str, Effect] | None = None,
    environment: Environment | None = None,
    execute_tools: Iterable[str] = (),
    recorded: Iterable[Trajectory] = (),
    messages_key: str = "messages",
    allow_classes: Iterable[type] = (),
    **options: Unpack[GraphOptions],
) -> GraphFork:
    """The same for checkpointers that are read in an event loop."""
    thread_id = _thread_id(checkpoint, thread_id)
    read = reading(source, checkpoint) or await aread_thread(source, thread_id, messages_key, allow_classes)
    thread = Thread.of(read, graph, options)
    return _fork(thread, checkpoint, thread.answers(effects or {}, environment, execute_tools, recorded))


@dataclass(frozen=True)
class GraphFork:
    """A state of a graph in memory, and ways on from it. A fork never changes: each way gives another one.

    `state` is the trajectory up to here, with the grade of each observation; its last step may still wait for its tools. `next`
    names the nodes that run next; it is empty where the graph has ended. `interrupts` are the questions it waits for answers to.
    `stopped` says why a branch can't go on; None that it can, or has ended by itself.
    """

    state: State
    next: tuple[str, ...]
    interrupts: tuple[Any, ...] = ()
    stopped: str | None = None
    binding: Binding = field(repr=False, kw_only=True)
    answers: ToolAnswers = field(repr=False, kw_only=True)
    home: Home = field(repr=False, kw_only=True)
    supplied: Mapping[str, tuple[Message, Grade]] = field(default_factory=dict, repr=False, kw_only=True)

    @property
    def ended(self) -> bool:
        return not self.next and not self.interrupts

    async def sample(self, n: int = 1, *, model: Any = None) -> list[Proposal]:
        """`n` answers of the model node, each drawn in a copy of its own and not followed any further; may hold equal ones.

        `model` is a LangChain chat model to ask in place of the graph's own, for graphs of `create_agent`; None asks the graph's.
        Empty where the graph ends without asking its model. Raises PolicyError where the model fails, UserError where the state
        waits for tools, or a cache of LangChain's would give every draw the same answer.
        """
        from langchain_core.globals import get_llm_cache

        self._check_open()
        if n > 1 and get_llm_cache() is not None:
            raise UserError("LangChain's model cache is on, so that all samples would be the same answer", "set_llm_cache(None)")
        binding = self.binding if model is None else self.binding.asking(model)
        drawn = await asyncio.gather(*(draw(binding, self.home, self.answers.execute_tools) for _ in range(n)))
        return [proposal for proposal in drawn if proposal is not None]

    async def answer(self, message: Message | Mapping[str, Any] | BaseMessage, *, sampled: bool = False) -> GraphFork:
        """The fork after the model has said `message` in place of its own answer. No tool has answered yet, no model was called.

        Where that ends the graph, and the log or the environment knows what the user says to it, the user has said so.

        `sampled` says that a model wrote it, as those of `sample` are. Raises UserError where the state waits for tools.
        """
        self._check_open()
        say = openai_of(message)
        branch = Branch(self.binding, self.home)
        before = branch.messages
        said = await asked(branch, say)
        if said is None:
            raise UserError("the graph ends here without asking its model", "a fork at which the model is next")
        play = Play(branch, self.answers, self.state, before)
        step = await play.replied(play.step(message_of(said), sampled=sampled))
        return self._after(branch, self.state.extend(step))

    def edit(self, tool_call_id: str, content: str) -> GraphFork:
        """This fork with `content` as the result of a call: of the last action's, before or after its tools have answered.

        It is graded simulated, for no tool gave it. Raises UserError where the last action made no such call: what follows a
        result was said in its knowledge, so an earlier one is edited in an earlier fork.
        """
        last = self.state.steps[-1] if self.state.steps else None
        call = next((call for call in (last.action.tool_calls if last else ()) if call.id == tool_call_id), None)
        if last is None or call is None:
            ids = ", ".join(call.id for call in last.action.tool_calls) if last else "none"
            raise UserError(f"got tool call {tool_call_id!r}, which the last action did not make", f"one of: {ids}",
                            "To edit an earlier result, fork the checkpoint that follows it.")  # fmt: skip
        said = Message.tool(content, tool_call_id, call.name)
        place = next((i for i, message in enumerate(last.observations) if message.tool_call_id == tool_call_id), None)
        if place is None:
            return replace(self, supplied={**self.supplied, tool_call_id: (said, Grade.SIMULATED)})
        observations = (*last.observations[:place], said, *last.observations[place + 1 :])
        grades = (*last.grades[:place], Grade.SIMULATED, *last.grades[place + 1 :])
        state = replace(self.state, steps=(*self.state.steps[:-1], replace(last, observations=observations, grades=grades)))
        return replace(self, state=state, home=self.home.edited(self.binding.messages_key, tool_call_id, content))

    async def go_on(self, *, until: Callable[[State], bool] | None = None, max_steps: int = _MAX_STEPS, resume: Any = None) -> GraphFork:
        """Let the graph's own model go on, its tools answered as `fork_graph` says, and give the fork where it stops.

        That is at its end, before the model's next call once `until` says so of the state or `max_steps` steps were taken, at an
        interrupt, and where a tool has no answer (`stopped` says why). `resume` answers the interrupt that this fork waits at.
        Raises PolicyError where the model node fails.
        """
        if self.interrupts and resume is None and not self.supplied:
            raise UserError(f"the graph waits for an answer to {self.interrupts[0].value!r:.200}", "resume=..., the answer")
        if self.stopped or (self.ended and resume is None):
            raise UserError(f"got a fork that can't go on: {self.stopped or 'the graph has ended'}", "one that is not through")
        branch, state = Branch(self.binding, self.home, self.answers.execute_tools), self.state
        if resume is not None:
            state = await self._resumed(branch, state, resume)
        elif _is_open(branch):
            state = await self._finished(branch, state)
        taken = 0
        while (
            not state.finished and branch.next and not branch.interrupts and taken < max_steps and not (until is not None and until(state))
        ):
            longer = await self._step(branch, state)
            if longer is None:
                break
            state, taken = longer, taken + 1
        return self._after(branch, state)

    async def _step(self, branch: Branch, state: State) -> State | None:
        before = branch.messages
        said = await asked(branch)
        if said is None:
            return None
        return state.extend(await Play(branch, self.answers, state, before).finish(message_of(said)))

    async def _finished(self, branch: Branch, state: State) -> State:
        """The state whose last step has got its tools' answers."""
        place = max(i for i, message in enumerate(branch.messages) if message.type == "ai")
        before, last = state.prefix(len(state) - 1), state.steps[-1]
        grades = {message.tool_call_id or "": grade for message, grade in zip(last.observations, last.grades, strict=True)}
        play = Play(branch, self.answers, before, branch.messages[:place], self.supplied, grades)
        return before.extend(await play.finish(last.action, sampled=last.sampled))

    async def _resumed(self, branch: Branch, state: State, resume: Any) -> State:
        from langgraph.types import Command

        opened = _is_open(branch)
        try:
            await branch.run(Command(resume=resume))
        except Interruption as stop:
            raise UserError(
                f"the graph can't go on from its interrupt: {stop}", "an interrupt outside of tools that were not named"
            ) from None
        return await self._finished(branch, state) if opened else state

    def _after(self, branch: Branch, state: State) -> GraphFork:
        stopped = state.steps[-1].error if state.steps and not branch.interrupts else None
        return replace(self, state=state, next=branch.next, interrupts=branch.interrupts, stopped=stopped, home=branch.home(), supplied={})

    def _check_open(self) -> None:
        why = self.stopped or ("the graph has ended" if self.ended else "it waits for an answer" if self.interrupts else "")
        if why:
            raise UserError(f"got a fork that can't be answered: {why}", "one at which the model is next")


def _is_open(branch: Branch) -> bool:
    """Whether the model has spoken and what follows has not all been done."""
    said = [message_of(each) for each in branch.messages]
    return bool(said) and (bool(pending_calls(said)) or (said[-1].role == "assistant" and bool(branch.next) and not branch.at_model))


def _fork(thread: Thread, checkpoint: GraphPoint | str, answers: ToolAnswers) -> GraphFork:
    point = thread.read.forks.find(checkpoint.checkpoint_id if isinstance(checkpoint, GraphPoint) else checkpoint)
    home = thread.home(point.checkpoint_id)
    branch = Branch(thread.binding, home)
    return GraphFork(point.state, branch.next, branch.interrupts, binding=thread.binding, answers=answers, home=home)


def _thread_id(checkpoint: GraphPoint | str, thread_id: str | None) -> str:
    if isinstance(checkpoint, GraphPoint):
        return checkpoint.thread_id
    if thread_id is None:
        raise UserError("got a checkpoint id without its thread", "thread_id=..., or a point of graph_forks")
    return thread_id
