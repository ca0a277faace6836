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
from counterplay.core.nouns import Message, Proposal, State, Trajectory
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

    UCT: argmax V + c sqrt(ln N_p / N). V(s) = (1 - lambda) v(s) + lambda SC(s), lambda = `agreement`, v the verifier's opinion and SC
    the share of the draws that proposed the action; SC alone where there is no opinion. Each child's votes are its own draws. The end
    of a line is worth its score alone. A line that ends below `gate` leaves a lesson: what `reflect` says of it, or where that is None the
    verifier's reason; the latest `num_reflections` distinct lessons are put after the prompt that the policy sees, and nowhere else.
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
    taught = Taught(policy, num_reflections)
    engine = Engine(taught, environment, verifier, budget, concurrency=concurrency, max_steps=max_steps, on_wave=on_wave)
    for _ in range(num_iterations):
        leaf = select(tree.root, c)
        if leaf is None or not engine.running(tree) or not engine.admit(1):
            break
        end = await simulate(engine, tree, leaf, num_actions, agreement)
        engine.after_wave(tree)
        if end.finished and end.score is not None:
            if end.score.value >= gate:
                return engine.finish(tree, f"a line scored {end.score.value:g}")
            await taught.learn(end, reflect)
    return engine.finish(tree, f"{tree.root.visits} iterations")


@dataclass
class Taught:
    """A policy that sees lessons behind its prompt. The state of the search, and so the tree and its datasets, hold none of them."""

    policy: Policy
    limit: int
    lessons: list[str] = field(default_factory=list)

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        return await self.policy.propose(with_lessons(state, self.lessons), n)

    async def learn(self, end: Node, reflect: Reflect | None) -> None:
        said = reflect(end.state) if reflect is not None else end.score.reason if end.score else ""
        lesson = (await said if isawaitable(said) else said).strip()
        if lesson and self.limit:
            self.lessons = [*(known for known in self.lessons if known != lesson), lesson][-self.limit :]


def with_lessons(state: State, lessons: Sequence[str]) -> State:
    """The same state with the lessons as one more user message at the end of its prompt; itself where there are none."""
    if not lessons:
        return state
    text = "What went wrong in earlier attempts at this task:\n" + "\n".join(f"- {lesson}" for lesson in lessons)
    return replace(state, prompt=(*state.prompt, Message.user(text)))


def select(root: Node, c: float) -> Node | None:
    """The leaf that UCT leads to, past what has ended everywhere below; None where everything is played."""
    node = root
    while node.children:
        live = [child for child in node.children if not exhausted(child)]
        if not live:
            return None
        log = math.log(max(node.visits, 1))
        node = max(live, key=lambda child: (child.value or 0.0) + c * math.sqrt(log / child.visits) if child.visits else math.inf)
    return None if exhausted(node) else node


def exhausted(node: Node) -> bool:
    """Whether every line through the node has ended."""
    return node.finished or (bool(node.children) and all(map(exhausted, node.children)))


async def simulate(engine: Engine, tree: SearchTree, leaf: Node, num_actions: int, agreement: float) -> Node:
    """Expand from the leaf on, each time from the best new child, to the end of the line; backs up every value on the way once."""
    node = leaf
    while not node.finished and engine.running(tree):
        before = len(tree.nodes)
        await advance(engine, tree, [(node, num_actions)])
        children = [child for child in tree.nodes[before:] if child.step is None or child.step.error is None]
        if not children:
            break
        await engine.score(children)
        values = {child.index: value_of(child, agreement) for child in children}
        node = max(children, key=lambda child: (values[child.index], -child.index))
        for child in children:
            if child is not node or node.finished:
                child.backup(values[child.index])
    return node


def value_of(child: Node, agreement: float) -> float:
    """V(s) = (1 - lambda) v(s) + lambda SC(s); the score alone at an end, the draws' share alone without an opinion."""
    if child.score is None:
        return 0.0 if child.finished else child.prior
    return child.score.value if child.finished else (1 - agreement) * child.score.value + agreement * child.prior
