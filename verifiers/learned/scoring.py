"""What learned verifiers have in common: steps become segments of tokens, known values are not computed again, batches share prefixes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from counterplay.core.errors import VerifierError
from counterplay.core.nouns import Score, Trajectory
from counterplay.verifiers.learned.rendering import StepRenderer, StepTokens
from counterplay.verifiers.learned.tree_forward import Segment, TreeForward

_KEPT_STATES = 2**17


@dataclass(slots=True, eq=False)
class StateNode:
    """A state: the segment of its last step for every model that reads it; `tokens` is None for a bare prompt.

    `value` is what was found for it, in [0, 1], None before that; `total` is what a kind of verifier adds up along the path.
    """

    segments: tuple[Segment, ...]
    parent: StateNode | None = None
    tokens: StepTokens | None = None
    value: float | None = None
    total: float = 0.0


class LearnedVerifier:
    """The frame of a verifier that reads tokens; a kind of model says in `_fill` how states get their values.

    Equal questions get equal answers. Whatever else is in a batch, values differ by rounding alone (about 1e-6 in float32).
    """

    name = "learned"

    def __init__(self, tokenizer: Any, forwards: Sequence[TreeForward], *, version: str, reason: str) -> None:
        self.version, self.reason = version, reason
        self.fingerprint = f"{self.name}@{version}"
        self.renderer = StepRenderer(tokenizer)
        self.forwards = tuple(forwards)
        self._states: OrderedDict[str, StateNode] = OrderedDict()
        self._lock = Lock()

    @property
    def forwarded_tokens(self) -> int:
        """Tokens that went through the model (through all of them, where there are several) since it was loaded."""
        return sum(forward.forwarded_tokens for forward in self.forwards)

    def __call__(self, trajectory: Trajectory, /) -> Score | None:
        """The value of the state that `trajectory` is; None for a bare prompt. Raises VerifierError where it can't be read."""
        (opinion,) = self.batch([trajectory])
        if isinstance(opinion, Exception):
            raise opinion
        return opinion

    def batch(self, trajectories: Sequence[Trajectory]) -> list[Score | Exception | None]:
        """Opinions in the order of the trajectories, an exception in place of one that failed. What they share is computed once."""
        asked = [at for at, trajectory in enumerate(trajectories) if self._has_opinion(trajectory)]
        opinions: list[Score | Exception | None] = [None] * len(trajectories)
        for at, found in zip(asked, self._valued([trajectories[at] for at in asked], _value, every_step=False), strict=True):
            opinions[at] = found if isinstance(found, Exception) else Score(found[-1], self.reason, self.name, self.version)
        return opinions

    def steps(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """For each trajectory, the value after each of its steps: one pass a trajectory, less what they share. Raises VerifierError."""
        return self._of_steps(trajectories, _value)

    def forget(self) -> None:
        """Let go of every state and value."""
        with self._lock:
            self._states.clear()
            for forward in self.forwards:
                forward.clear()

    def _has_opinion(self, trajectory: Trajectory) -> bool:
        return bool(trajectory.steps)

    def _fill(self, nodes: Sequence[StateNode]) -> None:
        """Set the value of each of these states. Raises VerifierError where that can't be done for one of them."""
        raise NotImplementedError

    def _of_steps(self, trajectories: Sequence[Trajectory], read: Callable[[StateNode], float]) -> list[tuple[float, ...]]:
        rows = []
        for found in self._valued(trajectories, read, every_step=True):
            if isinstance(found, Exception):
                raise found
            rows.append(found)
        return rows

    def _valued(
        self, trajectories: Sequence[Trajectory], read: Callable[[StateNode], float], *, every_step: bool
    ) -> list[tuple[float, ...] | Exception]:
        with self._lock:
            paths = [self._nodes(trajectory, every_step=every_step) for trajectory in trajectories]
            errors = self._filled([[] if isinstance(path, Exception) else path for path in paths])
            while len(self._states) > _KEPT_STATES:
                self._states.popitem(last=False)
        found: list[tuple[float, ...] | Exception] = []
        for path, error in zip(paths, errors, strict=True):
            if isinstance(path, Exception):
                found.append(path)
            else:
                found.append(tuple(map(read, path)) if error is None else error)
        return found

    def _filled(self, paths: Sequence[Sequence[StateNode]]) -> list[Exception | None]:
        """Values for every state of these paths; the error of each path that can't have them."""
        nodes = {id(node): node for path in paths for node in path if node.value is None}
        if not nodes:
            return [None] * len(paths)
        try:
            self._fill(list(nodes.values()))
        except VerifierError as error:
            return [error] if len(paths) == 1 else [failed for path in paths for failed in self._filled([path])]
        return [None] * len(paths)

    def _nodes(self, trajectory: Trajectory, *, every_step: bool) -> Sequence[StateNode] | Exception:
        """The states after every step, or after the last alone."""
        try:
            path = self._appended(trajectory) if self.renderer.appends else None
            if path is not None:
                return path if every_step else path[-1:]
            lengths = range(1, len(trajectory) + 1) if every_step else [len(trajectory)]
            return [self._alone(trajectory.prefix(length)) for length in lengths]
        except VerifierError as error:
            return error

    def _appended(self, trajectory: Trajectory) -> Sequence[StateNode] | None:
        """Step by step; None where the template turns out to do more than append."""
        keys = trajectory.prefix_keys
        node = self._states.get(keys[0])
        if node is None:
            ids = self.renderer.prompt(trajectory)
            node = self._states[keys[0]] = StateNode(tuple(Segment(ids) for _ in self.forwards))
        self._states.move_to_end(keys[0])
        path, new = [node], []
        for key, step in zip(keys[1:], trajectory.steps, strict=True):
            known = self._states.get(key)
            if known is None or known.parent is not node:
                tokens = self.renderer.step(step)
                known = self._states[key] = StateNode(tuple(Segment(tokens.ids, above) for above in node.segments), node, tokens)
                new.append(step)
            self._states.move_to_end(key)
            node = known
            path.append(node)
        if new and not self.renderer.check(trajectory, [token for part in path for token in part.segments[0].ids], new):
            self._states.clear()
            return None
        return path[1:]

    def _alone(self, state: Trajectory) -> StateNode:
        """A state under a template that rewrites what came before: a path of one segment."""
        known = self._states.get(state.key)
        if known is None:
            ids = tuple(self.renderer.whole(state))
            tokens = StepTokens(ids, self.renderer.last(ids), (0, 0))
            known = self._states[state.key] = StateNode(tuple(Segment(ids) for _ in self.forwards), None, tokens)
        return known


def _value(node: StateNode) -> float:
    assert node.value is not None
    return node.value
