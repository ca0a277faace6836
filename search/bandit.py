"""Which search to use: a bandit over strategies for each class of tasks, and the choice by how much first answers agree.

Liu et al. 2024, "SMART: Self-learning Meta-strategy Agent for Reasoning Tasks" learns which strategy to try first; here that is
Thompson sampling (Thompson 1933) over traces, of reward per cost where strategies cost differently (Xia et al. 2015, "Thompson Sampling
for Budgeted Multi-Armed Bandits"), pure logic with a state that can be kept as JSON. Meng et al. 2024, "Divide and Conquer for Large
Language Models Reasoning": the sure are left alone, the unsure are worked on.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.errors import UserError


@dataclass(frozen=True)
class Strategies:
    """What is known of each strategy in each class of tasks: `record[task_class][strategy]` = (tries N, summed scores W, summed costs C).

    `names` are the strategies, cheapest first: ties go to the earlier. Nothing is changed in place; `after` gives the next state.
    """

    names: tuple[str, ...]
    record: Mapping[str, Mapping[str, tuple[int, float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"got strategies {list(self.names)}", "at least one, each named once")

    def choose(self, task_class: str, *, seed: int = 0) -> str:
        """Thompson sampling: argmax_a q_a / c_a, q_a ~ Beta(1 + W_a, 1 + N_a - W_a), c_a the mean cost. Equal states and seeds agree."""
        generator = random.Random(f"{seed} {task_class}")
        drawn = {}
        for name in self.names:
            tries, won = self.of(task_class, name)
            drawn[name] = generator.betavariate(1 + won, 1 + tries - won) / self.cost(task_class, name)
        return max(self.names, key=drawn.__getitem__)

    def cost(self, task_class: str, strategy: str) -> float:
        """c_a = (c + C_a) / (1 + N_a), with c the mean cost of a try of any strategy in the class; 1 where nothing is known."""
        record = self.record.get(task_class, {})
        tries = sum(n for n, _, _ in record.values())
        common = sum(c for _, _, c in record.values()) / tries if tries else 1.0
        n, _, spent = record.get(strategy, (0, 0.0, 0.0))
        return (common + spent) / (1 + n)

    def after(self, task_class: str, strategy: str, score: float, *, cost: float = 1.0) -> Strategies:
        """The state after one trace. `score` is what its first attempt with this strategy came to, in [0, 1], `cost` what it took, above 0.

        Raises UserError.
        """
        if strategy not in self.names:
            raise UserError(f"got strategy {strategy!r}", f"one of {', '.join(self.names)}")
        if not 0 <= score <= 1:
            raise UserError(f"got score {score}", "a number in [0, 1]")
        if not cost > 0:
            raise UserError(f"got cost {cost}", "a number above 0")
        tries, won, spent = self.record.get(task_class, {}).get(strategy, (0, 0.0, 0.0))
        known = {**self.record.get(task_class, {}), strategy: (tries + 1, won + score, spent + cost)}
        return Strategies(self.names, {**self.record, task_class: known})

    def first(self, task_class: str) -> str:
        """The strategy to attempt first: argmax_a (1 + W_a) / (2 + N_a), the mean of its posterior."""

        def mean(name: str) -> float:
            tries, won = self.of(task_class, name)
            return (1 + won) / (2 + tries)

        return max(self.names, key=mean)

    def of(self, task_class: str, strategy: str) -> tuple[int, float]:
        """(tries N, summed scores W); (0, 0.0) where nothing is known."""
        return self.record.get(task_class, {}).get(strategy, (0, 0.0, 0.0))[:2]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` is its inverse."""
        return {"names": list(self.names), "record": {c: {s: list(sums) for s, sums in known.items()} for c, known in self.record.items()}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Strategies:
        """A record without costs counts 1 a try."""
        record = {
            task_class: {name: (int(n), float(w), float(*(cost or [n]))) for name, (n, w, *cost) in known.items()}
            for task_class, known in fields["record"].items()
        }
        return cls(tuple(fields["names"]), record)


def confidence(answers: Sequence[str]) -> float:
    """CS = votes of the most frequent answer / all answers, in [0, 1]; 0 for no answers."""
    return Counter(answers).most_common(1)[0][1] / len(answers) if answers else 0.0


def by_difficulty(answers: Sequence[str], strategies: Sequence[str], bounds: Sequence[float] = (0.8, 0.5)) -> str:
    """The strategy for a task whose first answers agree this far: strategies[i] for the first i with CS >= bounds[i], else the last.

    `strategies` are in order of cost, one more than the falling `bounds`. Raises UserError otherwise.
    """
    if len(strategies) != len(bounds) + 1 or list(bounds) != sorted(bounds, reverse=True):
        raise UserError(f"got {len(strategies)} strategies and bounds {list(bounds)}", "falling bounds and one strategy more than bounds")
    sure = confidence(answers)
    return next((strategy for strategy, bound in zip(strategies, bounds, strict=False) if sure >= bound), strategies[-1])
