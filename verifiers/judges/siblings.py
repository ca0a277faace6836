"""Relative judgement of siblings: one question about several attempts that begin alike, what they share sent once.

Corbitt 2025, "RULER: Relative Universal LLM-Elicited Rewards". Candidates come under drawn ids in a drawn order; several orders are
averaged, as models prefer what stands at certain places. Scores are read by id, never by place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Any, Literal

from counterplay.core.canonical import canonical, content_key
from counterplay.core.errors import UserError
from counterplay.core.nouns import Score, Trajectory
from counterplay.verifiers.judges import prompts, reading
from counterplay.verifiers.judges.asking import ask_model, seed_of
from counterplay.verifiers.judges.criteria import OUTCOME, PROGRESS, Criteria
from counterplay.verifiers.judges.judge import Asking, conversation, gathered
from counterplay.verifiers.judges.material import Material, Renderer
from counterplay.verifiers.judges.model import Complete, Messages, Model, as_model
from counterplay.verifiers.judges.reading import Form, UnreadableError, schema_of

Answer = Score | Exception | None
_LETTERS = "bcdfghjkmnpqrstvwxz"


class Siblings(Asking):
    """Scores in [0, 1] that compare trajectories of one batch with one another; no opinion on one that has no sibling there.

    Siblings are those of one `by`: "parent" (all but the last step is shared: the children of a node) or "task" (tools and prompt
    are: attempts at one task). `criteria` None are those of a judge's mode progress, or outcome. `orders` questions are asked about a
    group, every second one in the reverse order of the one before; a candidate's score is their mean, and the reason says how far they
    lie apart. Equal candidates are shown once. Scores of different groups can't be compared. Where a group's answer can't be read, all
    of the group are errors. The order of the batch changes nothing. `max_chars`: half for what is shared, half for the candidates.
    """

    relative = True

    def __init__(
        self,
        model: str | Model | Complete,
        *,
        criteria: Criteria | None = None,
        by: Literal["parent", "task"] = "parent",
        orders: int = 2,
        formal: bool = False,
        max_chars: int = 60_000,
        seed: int = 0,
    ) -> None:
        if by not in ("parent", "task") or orders < 1:
            raise UserError(f"got {by=}, {orders=}", "parent or task, and at least 1")
        self.criteria = criteria or (PROGRESS if by == "parent" else OUTCOME)
        self.by, self.orders, self.seed = by, orders, seed
        settings = canonical([self.criteria.fingerprint, by, orders, seed])
        self.model = as_model(model)
        super().__init__("siblings", self.model, Renderer(max_chars, formal, seed), settings, prompts.SIBLINGS, prompts.CRITERIA)

    def __call__(self, trajectory: Trajectory, /) -> Score | None:  # noqa: ARG002  a comparison needs more than one
        """No opinion: there is nothing to compare with."""
        return None

    async def batch(self, trajectories: Sequence[Trajectory]) -> list[Answer]:
        """Opinions in order; an error for each of a group that could not be judged."""
        groups: dict[str, dict[str, Trajectory]] = {}
        for trajectory in trajectories:
            if trajectory.steps:
                shared = trajectory.prefix_keys[0 if self.by == "task" else -2]
                groups.setdefault(shared, {})[_identity(trajectory)] = trajectory
        contested = [members for members in groups.values() if len(members) > 1]
        answers = await asyncio.gather(*(self._judged(members) for members in contested), return_exceptions=True)
        opinions: dict[str, Answer] = {}
        for members, answer in zip(contested, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            opinions |= dict.fromkeys(members, answer) if isinstance(answer, Exception) else answer
        return [opinions.get(_identity(trajectory)) for trajectory in trajectories]

    async def _judged(self, members: Mapping[str, Trajectory]) -> dict[str, Answer]:
        identities = sorted(members)
        group = [members[identity] for identity in identities]
        shared, own = self.materials(group)
        places: list[int] = []
        asked = []
        for order in range(self.orders):
            draw = Random(content_key("siblings", str(self.seed), str(order), *identities))
            if order % 2:
                places.reverse()
            else:
                places = draw.sample(range(len(group)), len(group))
            names = _ids(draw, len(group))
            shown = dict(zip(names, places, strict=True))
            asked.append(self._asked(identities, self.messages(group, shared, own, shown), shown, order))
        readings: list[list[tuple[float, str]]] = await gathered(asked)
        left_out = "; ".join(dict.fromkeys(material.left_out for material in (shared, *own) if material.left_out))
        return {identity: self._score([answer[i] for answer in readings], len(group), left_out) for i, identity in enumerate(identities)}

    async def _asked(self, identities: Sequence[str], messages: Messages, shown: Mapping[str, int], order: int) -> list[tuple[float, str]]:
        """One question: score and reason of every candidate, in the order of the group."""
        seed = seed_of(self.seed, *identities, str(order))
        found = await ask_model(self.model, messages, _form(tuple(shown)), seed=seed)
        by_place = {place: found[name] for name, place in shown.items()}
        return [by_place[i] for i in range(len(identities))]

    def materials(self, group: Sequence[Trajectory]) -> tuple[Material, list[Material]]:
        """What all of the group share, and what each has of its own."""
        start = shared_steps(group)
        half = self.renderer.max_chars // 2
        shared = replace(self.renderer, max_chars=half).whole(group[0].prefix(start))
        return shared, [self.renderer.continuation(trajectory, start, half // len(group)) for trajectory in group]

    def messages(
        self, group: Sequence[Trajectory], shared: Material, own: Sequence[Material], shown: Mapping[str, int]
    ) -> list[dict[str, Any]]:
        """`shown` maps ids to places in `group`, in the order in which they are shown."""
        parts = [shared.text, "The attempts differ from here on."]
        parts += [f"Candidate {name}:\n{own[place].text}" for name, place in shown.items()]
        asked = [prompts.SIBLINGS, prompts.CRITERIA.format(criteria=self.criteria.text), prompts.form(_form(tuple(shown)).schema)]
        return conversation(self.renderer.tag(group[0]), "\n".join(parts), asked)

    def _score(self, answers: Sequence[tuple[float, str]], size: int, left_out: str) -> Score:
        values = [value for value, _ in answers]
        apart = f", {len(values)} orders {max(values) - min(values):.2f} apart" if len(values) > 1 else ""
        told = [f"against {size - 1} siblings{apart}", answers[0][1], *([f"judged with {left_out}"] if left_out else [])]
        return Score(fmean(values), "; ".join(told), self.name, self.version)


def shared_steps(group: Sequence[Trajectory]) -> int:
    """How many steps all of them share, short of the last of any: its ending is its own."""
    shared = 0
    for keys in zip(*(trajectory.prefix_keys[1:-1] for trajectory in group), strict=False):
        if len(set(keys)) > 1:
            break
        shared += 1
    return shared


def _identity(trajectory: Trajectory) -> str:
    """Content and ending: what a judge is shown."""
    last = trajectory.steps[-1] if trajectory.steps else None
    return trajectory.key if last is None else f"{trajectory.key}{last.terminated}{last.truncated}{last.error}"


def _ids(draw: Random, count: int) -> list[str]:
    """Distinct ids of three consonants, which spell nothing and tell nothing of an order."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(_LETTERS, k=3))] = None
    return list(found)


def _form(names: Sequence[str]) -> Form[dict[str, tuple[float, str]]]:
    fields: dict[str, dict[str, Any]] = {
        "id": {"type": "string", "enum": list(names)},
        "reason": {"type": "string"},
        "score": {"type": "number"},
    }

    def read(found: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
        rows = reading.items(found, "candidates")
        given = [row.get("id") for row in rows]
        if sorted(map(str, given)) != sorted(names):
            raise UnreadableError(f"the ids are {', '.join(map(str, given))[:200]}, not each of {', '.join(names)} once")
        return {str(row["id"]): (reading.number(row, "score"), reading.text(row, "reason")) for row in rows}

    return Form(schema_of({"candidates": {"type": "array", "items": schema_of(fields)}}), read)
