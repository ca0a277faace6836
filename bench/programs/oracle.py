"""The most that declared effects allow to be reused, computed the slow way: a reference that shares no code with the rule.

A world is opaque but for what its tools say they touch. Then what a call gives is a term: the call, and for each thing it touches
the sequence of writes that met that thing or a part of it or what holds it, each a term itself. Two calls must agree in every
world that keeps to its declarations exactly if their terms are equal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from bench.programs.worlds import Places, Shape
from counterplay.core.nouns import Message, Trajectory

Path = tuple[str, ...]


class Terms:
    """The terms of one trajectory, call by call. `numbers` gives equal terms equal numbers; share it where terms are compared."""

    def __init__(self, world: type[Shape], numbers: dict[Any, int]) -> None:
        self.world, self.numbers = world, numbers
        self.writes: list[tuple[Places, int]] = []

    def ask(self, name: str, arguments: dict[str, Any]) -> int:
        """The number of the next call's term, and its place among the writes where it is one."""
        kind, places = self.world.touched(name, arguments)
        met = [tuple(number for where, number in self.writes if any(_meet(place, other) for other in where)) for place in places]
        term = self._number((name, json.dumps(arguments, sort_keys=True), frozenset(zip(places, met, strict=True))))
        if kind in ("write", "external"):
            self.writes.append((places, term))
        return term

    def _number(self, term: Any) -> int:
        return self.numbers.setdefault(term, len(self.numbers))


class Oracle:
    """What `logs` allow. A term that they hold has an answer, and no other has."""

    def __init__(self, world: type[Shape], logs: list[Trajectory]) -> None:
        self.world, self.numbers = world, dict[Any, int]()
        self.known: set[int] = set()
        self.results: dict[tuple[str, str], list[str]] = defaultdict(list)
        for log in logs:
            terms = Terms(world, self.numbers)
            for step in log.steps:
                for call, answer in zip(step.action.tool_calls, step.observations, strict=True):
                    arguments = json.loads(call.arguments)
                    self.known.add(terms.ask(call.name, arguments))
                    self.results[call.name, json.dumps(arguments, sort_keys=True)].append(answer.content_text)

    def branch(self) -> Terms:
        return Terms(self.world, self.numbers)

    def allows(self, branch: Terms, action: Message) -> bool:
        """Whether every call of an action, which comes next on this branch, is in the logs on equal grounds. Moves the branch on."""
        terms = [branch.ask(call.name, json.loads(call.arguments)) for call in action.tool_calls]
        return all(term in self.known for term in terms)


def _meet(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
