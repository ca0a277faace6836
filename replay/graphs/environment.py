"""A LangGraph agent as an environment and as a policy, so that every search runs over it as it is.

Each branch has a graph state of its own in memory. A state that is not held, because a search was resumed or held too many, is
brought about again from the nearest one: its actions are put into the model's mouth and its own tool results are given to the
tools, so that nothing is called, and what the graph makes of them is compared with what the state says.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

from counterplay.core.canonical import canonical, content_key
from counterplay.core.effects import Effect
from counterplay.core.errors import DivergenceError, UserError
from counterplay.core.nouns import Grade, Message, Proposal, State, Step, Trajectory
from counterplay.core.protocols import Environment, fingerprint_of
from counterplay.replay.agents.ambient import Interruption
from counterplay.replay.graphs.answers import ToolAnswers
from counterplay.replay.graphs.binding import Binding, Branch, GraphOptions, Home, bound, tool_specs
from counterplay.replay.graphs.messages import given_of, keys_of, message_key, pending_calls
from counterplay.replay.graphs.playing import Play, described, draw, speak
from counterplay.replay.graphs.points import GraphPoint
from counterplay.replay.graphs.source import Source
from counterplay.replay.graphs.threads import Thread, aread_thread
from counterplay.replay.recorded import call_answers

if TYPE_CHECKING:
    from counterplay.replay.graphs.points import Read


class GraphStates:
    """States of a graph by what was said in them: those of a logged thread, and those that branches have come to.

    At most `keep_states` of the latter are held, least recently used first out. Without a thread all begin with their prompt, as
    input to the graph; instructions at its beginning are left out, for the graph adds its own. `again` counts the steps that were
    brought about once more.
    """

    def __init__(
        self,
        graph: Any,
        source: Source | None,
        thread_id: str | None,
        *,
        messages_key: str = "messages",
        allow_classes: Iterable[type] = (),
        keep_states: int = 256,
        options: GraphOptions,
    ) -> None:
        self.graph, self.source, self.thread_id, self.options = graph, source, thread_id, options
        self._messages_key, self._allow_classes, self._keep_states = messages_key, tuple(allow_classes), keep_states
        self._kept: OrderedDict[str, Home] = OrderedDict()
        self.again = 0
        self._thread: Thread | None = None
        self._points: dict[str, GraphPoint] = {}
        self._binding = bound(graph, messages_key=messages_key, **options)

    async def thread(self) -> Thread | None:
        """The logged thread, read when it is first asked for; None where there is none."""
        if self._thread is None and self.source is not None:
            if self.thread_id is None:
                raise UserError("got a source of checkpoints without a thread", "thread_id=...")
            read = await aread_thread(self.source, self.thread_id, self._messages_key, self._allow_classes)
            self._thread = Thread.of(read, self.graph, self.options)
            self._points = _by_key(read)
        return self._thread

    async def binding(self) -> Binding:
        thread = await self.thread()
        return self._binding if thread is None else thread.binding

    async def at(self, state: State) -> Home:
        """The graph's state before the model's next call in `state`.

        Raises DivergenceError where the graph makes something else of the state's actions and results than the state says.
        """
        thread, keys = await self.thread(), _step_keys(state)
        for length in range(len(state), -1, -1):
            home = self._kept.get(keys[length])
            if home is None and thread is not None and keys[length] in self._points:
                home = thread.home(self._points[keys[length]].checkpoint_id)
            if home is not None:
                break
        else:
            length, home = 0, await self._seeded(state.prompt)
        for i in range(length, len(state)):
            home = await self._again(home, state, i)
        self.keep(state, home)
        return home

    def keep(self, state: State, home: Home) -> None:
        key = _step_keys(state)[-1]
        self._kept[key] = home
        self._kept.move_to_end(key)
        if len(self._kept) > self._keep_states:
            self._kept.popitem(last=False)

    async def as_logged(self, state: State) -> State:
        """The same state with the thread's own messages where it is the thread's: a log may spell them otherwise."""
        await self.thread()
        keys = _step_keys(state)
        for length in range(len(state), -1, -1):
            point = self._points.get(keys[length])
            if point is not None:
                return Trajectory((), point.state.prompt, (*point.state.steps, *state.steps[length:]))
        return state

    async def _seeded(self, prompt: Sequence[Message]) -> Home:
        """The state in which a graph first asks its model, given the prompt."""
        branch = Branch(await self.binding(), None)
        await branch.run({self._messages_key: given_of(prompt)})
        return branch.home()

    async def _again(self, home: Home, state: State, index: int) -> Home:
        """The state after one more step, whose results are given."""
        self.again += 1
        recorded = state.steps[index]
        supplied = {
            call.id: (answer, Grade.EXACT)
            for call, answer in zip(recorded.action.tool_calls, call_answers(recorded), strict=True)
            if answer is not None
        }
        branch = Branch(await self.binding(), home)
        play = Play(branch, ToolAnswers(), state.prefix(index), branch.messages, supplied)
        if await speak(branch, recorded.action) is None:
            raise DivergenceError("the graph ends without asking its model", "its action", step=index, kind="ended_early")
        step = await play.finish(recorded.action)
        more = recorded.observations[len(step.observations) :]
        if step.terminated and more:  # the user's next turn: another run of the graph
            await branch.run({self._messages_key: given_of(more)})
        _check(recorded, play.new, step, index)
        return branch.home()


class GraphEnvironment:
    """Steps of a LangGraph agent: the action is the model node's answer, and the graph's own code makes the rest of it.

    `graph` is the compiled graph, `source` the database path or checkpointer that holds the thread. A logged action in its logged
    state goes on as logged (exact). Any other is put into the graph at that state; its tools are answered as `fork_graph` says,
    and the step ends before the model's next call: `terminated` where the graph ended; `truncated` with the reason in `error`
    where a tool had no answer, an interrupt waits, or the graph rewrote its messages; `error` alone where its code failed.

    `policy` gives the agent's own model in the same states.
    """

    def __init__(
        self,
        graph: Any,
        source: Source,
        thread_id: str,
        *,
        effects: Mapping[str, Effect] | None = None,
        environment: Environment | None = None,
        execute_tools: Iterable[str] = (),
        recorded: Iterable[Trajectory] = (),
        messages_key: str = "messages",
        allow_classes: Iterable[type] = (),
        keep_states: int = 256,
        **options: Unpack[GraphOptions],
    ) -> None:
        self.states = GraphStates(
            graph, source, thread_id, messages_key=messages_key, allow_classes=allow_classes, keep_states=keep_states, options=options
        )
        self.effects, self.environment, self.execute_tools = dict(effects or {}), environment, frozenset(execute_tools)
        self._recorded, self._answers = tuple(recorded), dict[int, ToolAnswers]()

    async def step(self, state: State, action: Message) -> Step:
        answers, here = await self._tools(), await self.states.as_logged(state)
        logged = await answers.logged(here, action)
        if logged is not None:
            return logged
        binding = await self.states.binding()
        branch = Branch(binding, await self.states.at(state), self.execute_tools)
        play = Play(branch, answers, here, branch.messages)
        try:
            said = await speak(branch, action)
        except Interruption as stop:
            return Step(action, truncated=True, error=str(stop))
        except Exception as failure:  # noqa: BLE001  a graph is user code: its failure is data
            return Step(action, error=described(failure))
        if said is None:
            return Step(action, truncated=True, error="the graph ends here without asking its model")
        step = await play.finish(action)
        if not step.finished:
            self.states.keep(state.extend(step), branch.home())
        return step

    def policy(self) -> GraphPolicy:
        """The graph's own model node, asked in this environment's states."""
        return GraphPolicy(self.states.graph, states=self.states, execute_tools=self.execute_tools)

    async def initial(self) -> State:
        """The state before the model's first call of the thread. Raises UserError where no checkpoint holds it."""
        thread = await self.states.thread()
        assert thread is not None
        return thread.read.forks.at(0).state

    @cached_property
    def fingerprint(self) -> str:
        """Names the thread, the graph's nodes and tools, effects, the environment behind it and the tools that are executed."""
        behind = fingerprint_of(self.environment) if self.environment is not None else ""
        effects = canonical({name: str(effect) for name, effect in self.effects.items()})
        others = [trajectory.key for trajectory in self._recorded]
        executed = canonical(sorted(self.execute_tools))
        return f"langgraph:{content_key(str(self.states.thread_id), _described(self.states), effects, behind, executed, *others)}"

    async def _tools(self) -> ToolAnswers:
        if 0 not in self._answers:
            thread = await self.states.thread()
            assert thread is not None
            self._answers[0] = thread.answers(self.effects, self.environment, self.execute_tools, self._recorded)
        return self._answers[0]


class GraphPolicy:
    """What a graph's own model node says in a state: its prompt, middleware and model are the agent's real ones.

    Samples are drawn in copies of their own, all at once. Without `source` and `thread_id`, or the `states` of an environment,
    a state is brought about from its prompt, so that channels beside the messages hold what the graph puts there. A tool that a
    model node calls is executed only if `execute_tools` names it. Raises PolicyError where the model fails.
    """

    def __init__(
        self,
        graph: Any,
        source: Source | None = None,
        thread_id: str | None = None,
        *,
        states: GraphStates | None = None,
        execute_tools: Iterable[str] = (),
        messages_key: str = "messages",
        **options: Unpack[GraphOptions],
    ) -> None:
        self.states = states or GraphStates(graph, source, thread_id, messages_key=messages_key, options=options)
        self.execute_tools = frozenset(execute_tools)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        binding, home = await self.states.binding(), await self.states.at(state)
        drawn = await asyncio.gather(*(draw(binding, home, self.execute_tools) for _ in range(n)))
        return [proposal for proposal in drawn if proposal is not None]

    @cached_property
    def fingerprint(self) -> str:
        """Names the thread and the graph's nodes and tools. The model's own settings are in the graph and can't be read."""
        return f"langgraph-policy:{content_key(str(self.states.thread_id), _described(self.states))}"


def _described(states: GraphStates) -> str:
    binding = bound(states.graph, **states.options)
    return canonical([sorted(states.graph.nodes), [spec.wire for spec in tool_specs(binding, {})]])


def _by_key(read: Read) -> dict[str, GraphPoint]:
    """The points at which the model is to be asked, by what was said; of those with equal messages the last one, closest to the call."""
    asked = (point for point in read.forks.points if "__start__" not in point.next and not pending_calls(point.messages))
    return {point.key: point for point in sorted(asked, key=lambda point: (point.latest, point.checkpoint_id))}


def _step_keys(state: State) -> list[str]:
    """A key for every prefix of a state, by what was said."""
    keys = list(keys_of(state.messages))
    lengths = [len(state.prompt)]
    for step in state.steps:
        lengths.append(lengths[-1] + len(step.messages))
    return [keys[length] for length in lengths]


def _check(recorded: Step, said: Sequence[Message], step: Step, index: int) -> None:
    wanted = [message_key(message) for message in recorded.messages]
    got = [message_key(message) for message in said]
    if wanted != got:
        place = next((i for i, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]), min(len(wanted), len(got)))
        found = got[place] if place < len(got) else step.error or "nothing"
        raise DivergenceError(
            f"step {index}: the graph gives {found:.300}", wanted[place] if place < len(wanted) else "nothing more", step=index
        )
