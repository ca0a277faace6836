"""What training data is made of: rows with their lineage, what did not become a row, and trees with the traces they grew from.

Whatever does not become a row becomes a `Drop` with a reason and a name; nothing disappears silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from counterplay.core.canonical import chain_key, content_key
from counterplay.core.nouns import Grade, Message, ToolSpec, Trace, Trajectory
from counterplay.core.records import SearchRecord
from counterplay.search.tree import Node, SearchTree

_WHOLE = ("full", "stitched")

Kind: TypeAlias = Literal["sft", "dpo", "kto", "reward", "grpo", "prm"]
"""What a row teaches, by the name of the trainer that reads it."""


@dataclass(frozen=True)
class Lineage:
    """Where a row comes from. `fork_step` is the step whose action was chosen (DPO) or at which the search began (SFT).

    `nodes` are state keys: of parent, chosen and rejected (DPO), or of the leaf (SFT). `agent` is who played the logged traces.
    `verifiers` are `name@version` of every score under the row. `logged` says that the row is a recorded trajectory. `users` are whom
    the agent worked for, as pseudonyms (`users_of`). None and empty mean unknown or not applicable.
    """

    task: str | None = None
    traces: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    search: str = ""
    algorithm: str = ""
    fork_step: int | None = None
    nodes: tuple[str, ...] = ()
    verifiers: tuple[str, ...] = ()
    grade: Grade = Grade.EXACT
    logged: bool = False
    agent: str | None = None
    users: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What caps are counted over: the task, else the first trace, else the search."""
        return self.task or next(iter(self.traces), "") or self.search


class Valued(Protocol):
    """What has the columns of a row that are numbers or labels."""

    @property
    def values(self) -> Mapping[str, Any]: ...


class Row:
    """One training example: messages in named columns, values beside them, and where it all comes from.

    `conversations` names the columns that, joined in order, are each one text that a chat template renders and a model reads.
    """

    kind: ClassVar[Kind]
    conversations: ClassVar[tuple[tuple[str, ...], ...]]
    tools: tuple[ToolSpec, ...]
    lineage: Lineage

    @property
    def parts(self) -> Mapping[str, tuple[Message, ...]]:
        """The messages by column."""
        raise NotImplementedError

    @property
    def values(self) -> Mapping[str, Any]:
        """The other columns that are this kind's own; their types are in `kinds.LAYOUTS`."""
        raise NotImplementedError

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """The columns whose messages lie in lists within the list, and how many are in each; none where every message is an item."""
        return {}

    @classmethod
    def arrange(cls, rows: Sequence[Valued]) -> Sequence[int]:
        """The order in which rows of this kind are written into one split, as indices; as they come where the order does not matter.

        Of each row, `values` has its `label` and `probability`; its messages are not at hand.
        """
        return range(len(rows))

    @cached_property
    def name(self) -> str:
        """Unique as far as hashing goes: unit, step, and the content of all messages."""
        step = "" if self.lineage.fork_step is None else f"/step-{self.lineage.fork_step}"
        wires = (message.wire for messages in self.parts.values() for message in messages)
        return f"{self.lineage.unit or 'row'}{step}/{content_key(*wires)[:8]}"


@dataclass(frozen=True)
class SFTRow(Row):
    """A whole trajectory. `trained` aligns with `messages`: True where a model sampled the message from a prompt that is known whole.

    `score` is what let it in: the verifier's score or the reward; None where only success was logged. `weight` multiplies the loss of
    the row, 1 on average over a dataset (`finetune.weights`); `step_weights`, aligned with `messages`, that of each message, 1 on average
    over all that are trained. Empty means all alike.
    """

    kind = "sft"
    conversations = (("messages",),)
    messages: tuple[Message, ...]
    trained: tuple[bool, ...]
    tools: tuple[ToolSpec, ...] = ()
    score: float | None = None
    lineage: Lineage = field(default_factory=Lineage)
    weight: float = 1.0
    step_weights: tuple[float, ...] = ()

    @property
    def parts(self) -> Mapping[str, tuple[Message, ...]]:
        return {"messages": self.messages}

    @property
    def values(self) -> Mapping[str, Any]:
        weights = {"weight": self.weight, "step_weights": list(self.step_weights)}
        return {"trained": list(self.trained), "score": self.score, **weights}


@dataclass(frozen=True)
class DPORow(Row):
    """Two ways on from one prompt: single actions of one state (step-level), or what was done from there to the end (trajectory-level).

    `trained` aligns with `chosen` and `rejected`: True where a model sampled the message. `probability` is P(Q_chosen > Q_rejected);
    `visits` N and `value_sums` W are of chosen and rejected. `margin` says by how much chosen is better, in the unit of what made the
    pair: mean values, scores, or model calls saved.
    """

    kind: ClassVar[Kind] = "dpo"
    conversations = (("prompt", "chosen"), ("prompt", "rejected"))
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    probability: float = 1.0
    visits: tuple[int, int] = (0, 0)
    value_sums: tuple[float, float] = (0.0, 0.0)
    trained: tuple[tuple[bool, ...], tuple[bool, ...]] = ((True,), (True,))
    lineage: Lineage = field(default_factory=Lineage)
    margin: float = 0.0

    @property
    def parts(self) -> Mapping[str, tuple[Message, ...]]:
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}

    @property
    def values(self) -> Mapping[str, Any]:
        sides: dict[str, Any] = {"probability": self.probability, "margin": self.margin}
        for index, side in enumerate(("chosen", "rejected")):
            sides[f"{side}_trained"] = list(self.trained[index])
            sides[f"{side}_visits"], sides[f"{side}_value_sum"] = self.visits[index], self.value_sums[index]
        return sides


@dataclass(frozen=True, slots=True)
class Drop:
    """Something that did not become a row: why, what it was, and what more is known, such as what it repeats; never a secret."""

    reason: str
    name: str
    detail: str = ""


AnyRow = TypeVar("AnyRow", bound=Row)

Gate: TypeAlias = Callable[[Sequence[Row]], tuple[list[Row], list[Drop]]]
"""What rows pass before they are written: those that may leave, in the order given, and the others by name."""


@dataclass(frozen=True)
class Harvest(Generic[AnyRow]):
    """Rows and what was left out. Harvests of one row type add up."""

    rows: tuple[AnyRow, ...] = ()
    drops: tuple[Drop, ...] = ()

    def __add__(self, other: Harvest[AnyRow]) -> Harvest[AnyRow]:
        return Harvest(self.rows + other.rows, self.drops + other.drops)


@dataclass(frozen=True)
class SourcedTree:
    """A search tree and the logged traces it grew from: one where a trace was forked, several where runs were stitched, or none.

    `drops` are runs that were meant to be in it and can't be.
    """

    tree: SearchTree
    search: str = ""
    task: str | None = None
    fork_step: int = 0
    traces: tuple[Trace, ...] = ()
    drops: tuple[Drop, ...] = ()

    @classmethod
    def of(cls, record: SearchRecord, traces: Iterable[Trace] = ()) -> SourcedTree:
        """Rebuild a stored search. Its traces are the one it names and, where it names none, all of its task, as found in `traces`."""
        mine = tuple(t for t in traces if (t.id == record.trace if record.trace else record.task is not None and t.task == record.task))
        task = record.task if record.task is not None else next((t.task for t in mine if t.task is not None), None)
        return cls(SearchTree.from_record(record), record.id, task, record.fork_step, mine)

    @cached_property
    def lineage(self) -> Lineage:
        sessions = tuple(dict.fromkeys(t.session for t in self.traces if t.session is not None))
        return Lineage(
            self.task,
            tuple(t.id for t in self.traces),
            sessions,
            self.search,
            self.tree.algorithm,
            self.fork_step or len(self.tree.root.state),
            agent=next((t.agent for t in self.traces if t.agent is not None), None),
            users=tuple(dict.fromkeys(user for t in self.traces for user in users_of(t))),
        )

    @property
    def name(self) -> str:
        return self.search or self.lineage.unit or self.tree.root.state.key[:8]

    @cached_property
    def _logged_prompts(self) -> dict[str, bool]:
        """Whether the prompt of the call made in each logged state, by state key, is known whole."""
        known: dict[str, bool] = {}
        for trace in self.traces:
            for key, whole in zip(state_keys(trace.trajectory), whole_prompts(trace), strict=True):
                known[key] = known.get(key, False) or whole
        return known

    def whole(self, state: Trajectory) -> list[bool]:
        """For every prefix of `state`, shortest first: is it known whole? Past the logged part, as whole as where it left the log."""
        verdicts, verdict = [], not self.traces or all(trace.completeness.inputs in _WHOLE for trace in self.traces)
        for key in state_keys(state):
            verdict = self._logged_prompts.get(key, verdict)
            verdicts.append(verdict)
        return verdicts

    @cached_property
    def _logged_outputs(self) -> dict[str, bool]:
        """Whether the answer that led to each logged state, by state key, is known whole."""
        known: dict[str, bool] = {}
        for trace in self.traces:
            for key, whole in zip(state_keys(trace.trajectory)[1:], whole_outputs(trace), strict=True):
                known[key] = known.get(key, False) or whole
        return known

    def cut(self, state: Trajectory) -> str:
        """Why the last action of `state` may not be taught; empty where it may."""
        return "" if self._logged_outputs.get(state.key, True) else "an action is not known whole"

    def trainable(self, state: Trajectory) -> list[bool]:
        """For every step of `state`: are the prompt it was sampled from and its answer known whole?"""
        outputs = (self._logged_outputs.get(key, True) for key in state_keys(state)[1:])
        return [whole and answered for whole, answered in zip(self.whole(state), outputs, strict=False)]


def users_of(trace: Trace) -> tuple[str, ...]:
    """Whom the agent worked for, as the source says in its metadata, by pseudonym: equal for equal users; empty where it does not say."""
    named = [str(user) for field in ("user_id", "user") if (user := trace.metadata.get(field)) != "" and _names(user)]
    return tuple(f"user-{content_key('user', user)[:16]}" for user in named[:1])


def _names(user: object) -> bool:
    return isinstance(user, (str, int)) and not isinstance(user, bool)


def state_keys(trajectory: Trajectory) -> list[str]:
    """The keys of all prefixes, `prefix(0)` first, hashed in one pass."""
    keys = [chain_key(trajectory.root_key, *(m.wire for m in trajectory.prompt))]
    for step in trajectory.steps:
        keys.append(chain_key(keys[-1], *(m.wire for m in step.messages)))
    return keys


def whole_prompts(trace: Trace, index: int = 0) -> list[bool]:
    """For every prefix of a trace's trajectory (0 is the main one), shortest first: was the prompt sent in it logged whole?

    Calls say so for their step, completeness for steps without a call. A source that cut its texts has no whole prompts.
    """
    by_step = {call.step: call.inputs for call in trace.calls if call.trajectory == index}
    inputs = (by_step.get(step, trace.completeness.inputs) for step in range(_length(trace, index) + 1))
    return [coverage in _WHOLE and not trace.completeness.truncated for coverage in inputs]


def whole_outputs(trace: Trace, index: int = 0) -> list[bool]:
    """For every step of a trace's trajectory: was the answer logged whole? Said as `whole_prompts` says it of prompts."""
    by_step = {call.step: call.completeness.outputs for call in trace.calls if call.trajectory == index}
    return [by_step.get(step, trace.completeness.outputs) in _WHOLE for step in range(_length(trace, index))]


def trainable_steps(trace: Trace, index: int = 0) -> list[bool]:
    """For every step of a trace's trajectory: were both its prompt and its answer logged whole?"""
    return [prompt and answer for prompt, answer in zip(whole_prompts(trace, index), whole_outputs(trace, index), strict=False)]


def _length(trace: Trace, index: int) -> int:
    return len((trace.trajectory, *(sub.trajectory for sub in trace.sub_trajectories))[index])


def trained_flags(trajectory: Trajectory, whole: Sequence[bool], first: int = 0) -> tuple[bool, ...]:
    """For every message of a trajectory: may it be trained on? Sampled actions from step `first` on that are `whole` may."""
    flags = [False] * len(trajectory.prompt)
    for index, step in enumerate(trajectory.steps):
        fit = index >= first and whole[index] and step.sampled and step.error is None and well_formed(step.action)
        flags += [fit, *(False for _ in step.observations)]
    return tuple(flags)


def verifiers_of(node: Node) -> set[str]:
    return {f"{node.score.verifier}@{node.score.version}"} if node.score is not None and node.score.verifier else set()


def too_low(grade: Grade, min_grade: Grade) -> str:
    """Why something of this grade may not leave; empty where it may. What is stale is false, and leaves at no setting."""
    if grade is Grade.STALE:
        return "stale"
    return "" if grade >= min_grade else f"graded below {min_grade.name.lower()}"


def well_formed(action: Message) -> bool:
    """Whether every tool call has a name and arguments that are a JSON object: what a model may be taught to write."""
    return all(call.name and call.args is not None for call in action.tool_calls)
