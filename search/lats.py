"""LATS: UCT whose values are a verifier's opinion and the agent's own agreement, with lessons from failed lines in later prompts.

Zhou et al. 2024, "Language Agent Tree Search Unifies Reasoning, Acting, and Planning in Language Models".
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from typing import TypeAlias

from counterplay.core.budget import Budget
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, Proposal, State, Trajectory, Usage
from counterplay.core.protocols import Environment, Policy, Verifier
from counterplay.search.engine import Engine, OnWave
from counterplay.search.rollout import advance
from counterplay.search.tree import Node, SearchTree

Reflect: TypeAlias = Callable[[Trajectory], str | Awaitable[str]]


async def lats(
    state: State,
    policy: Policy,
    environment: Environment,
    verifier: Verifier,
    budget: Budget,
    *,
    num_iterations: int = 30,
    num_actions: int = 5,
    c: float = 1.0,
    agreement: float = 0.5,
    num_reflections: int = 3,
    reflect: Reflect | None = None,
    gate: float = 1.0,
    max_steps: int = 15,
    concurrency: int = 64,
    seed: int = 0,
    on_wave: OnWave | None = None,
) -> SearchTree:
    """Repeat: select by UCT, expand `num_actions`, value each child, play the best on to the end, back up, reflect; stop at `gate`.

    UCT: argmax V + c sqrt(ln N_p / N), V = W / N. A child begins with N = 1, W = (1 - lambda) v + lambda SC, lambda = `agreement`: v the
    verifier's opinion, SC the share of the draws that proposed the action; SC alone where there is no opinion. An end is worth v alone,
    and has N = 0 without one. Each child's votes are its own draws. The end of a line is backed up to the root: N += 1, W += v. So N
    and W are no counts of lines.

    A line that ends below `gate` leaves a lesson: what `reflect` says of it, or where that is None the verifier's reason; the latest
    `num_reflections` distinct lessons are put after the prompt that the policy sees, and nowhere else. `reflect` costs no budget, and
    is asked again when a search is resumed; where it fails there is no lesson.
    """
    if num_iterations < 1 or num_actions < 1 or not 0 <= agreement <= 1:
        raise UserError(f"got {num_iterations=}, {num_actions=}, {agreement=}", "at least 1 of each and an agreement in [0, 1]")
    config = {
        "num_iterations": num_iterations,
        "num_actions": num_actions,
        "c": c,
        "agreement": agreement,
        "num_reflections": num_reflections,
        "gate": gate,
        "max_steps": max_steps,
        "seed": seed,
    }
    tree = SearchTree.start(state, "lats", config)
    taught, done = Taught(policy, num_reflections), set[int]()
    engine = Engine(taught, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    iterations = 0
    while iterations < num_iterations:
        leaf = select(tree.root, c, done) if engine.running(tree) else None
        if leaf is None or not engine.admit(1):
            break
        iterations += 1
        before, end = len(tree.nodes), await simulate(engine, tree, leaf, num_actions, agreement)
        backup(end)
        close(end, done)
        engine.after_wave(tree)
        found = max((node.score.value for node in tree.nodes[before:] if node.finished and node.score is not None), default=-1.0)
        if found >= gate:
            return engine.finish(tree, f"a line scored {found:g}")
        if end.finished and iterations < num_iterations:
            await learn(taught, engine, end, reflect)
    return engine.finish(tree, f"{iterations} iterations" if iterations == num_iterations else "nothing is left to play")


@dataclass
class Taught:
    """A policy that sees lessons behind its prompt. The state of the search, and so the tree and its datasets, hold none of them."""

    policy: Policy
    limit: int
    lessons: list[str] = field(default_factory=list)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        return await self.policy.propose(with_lessons(state, self.lessons), n)

    @property
    def estimate(self) -> Callable[[State, int], Usage] | None:
        """The bound of the policy behind it, for the prompt that holds the lessons; None where that policy offers none."""
        part: object = self.policy
        while part is not None and getattr(part, "estimate", None) is None:
            part = getattr(part, "policy", None)
        bound: Callable[[State, int], Usage] | None = getattr(part, "estimate", None)
        return None if bound is None else lambda state, n: bound(with_lessons(state, self.lessons), n)

    def keep(self, lesson: str) -> None:
        if lesson and self.limit:
            self.lessons = [*(known for known in self.lessons if known != lesson), lesson][-self.limit :]


async def learn(taught: Taught, engine: Engine, end: Node, reflect: Reflect | None) -> None:
    """Keep the lesson of a line. A reflection that fails is counted, and teaches nothing."""
    try:
        said = reflect(end.state) if reflect is not None else end.score.reason if end.score else ""
        taught.keep((await said if isawaitable(said) else said).strip())
    except Exception as error:  # noqa: BLE001  the caller's code; the search goes on without its lesson
        failures = engine.failures.setdefault("reflection", {"count": 0, "first": f"{type(error).__name__}: {error}"})
        failures["count"] += 1


def with_lessons(state: State, lessons: Sequence[str]) -> State:
    """The same state with the lessons as one more user message at the end of its prompt; itself where there are none."""
    if not lessons:
        return state
    text = "What went wrong in earlier attempts at this task:\n" + "\n".join(f"- {lesson}" for lesson in lessons)
    return replace(state, prompt=(*state.prompt, Message.user(text)))


def select(root: Node, c: float, done: set[int]) -> Node | None:
    """The leaf that UCT leads to, past what is `done`; None where everything is."""
    node = root
    while node.children and node.index not in done:
        log = math.log(max(node.visits, 1))
        live = [child for child in node.children if not child.finished and child.index not in done]
        node = max(live, key=lambda child: (child.value or 0.0) + c * math.sqrt(log / max(child.visits, 1)))
    return None if node.finished or node.index in done else node


async def simulate(engine: Engine, tree: SearchTree, leaf: Node, num_actions: int, agreement: float) -> Node:
    """Expand from the leaf on, each time from the best new child. Returns the last node of the line."""
    node = leaf
    while not node.finished and engine.running(tree):
        before = len(tree.nodes)
        await advance(engine, tree, [(node, num_actions)])
        children = [child for child in tree.nodes[before:] if child.step is None or child.step.error is None]
        if not children:
            break
        await engine.score(children)
        for child in children:
            if not child.finished or child.score is not None:
                child.backup(value_of(child, agreement), until=child)
        node = max(children, key=lambda child: (child.value_sum, -child.index))
    return node


def value_of(child: Node, agreement: float) -> float:
    """V(s) = (1 - lambda) v(s) + lambda SC(s); the score alone at an end, the votes' share alone without an opinion."""
    if child.score is None:
        return child.prior
    return child.score.value if child.finished else (1 - agreement) * child.score.value + agreement * child.prior


def backup(end: Node) -> None:
    """N += 1, W += r from the end to the root, r its score. A line that came to no end, or that nobody scored, has none to back up."""
    if end.finished and end.score is not None:
        end.backup(end.score.value)


def close(end: Node, done: set[int]) -> None:
    """Nothing is left at the end of a line, nor above it where nothing is left below any child.

    A line that came to no end has none because the policy has no action there, or only actions that fail.
    """
    node: Node | None = end
    while node is not None and all(child.finished or child.index in done for child in node.children):
        done.add(node.index)
        node = node.parent
