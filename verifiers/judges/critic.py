"""A critic: where the first wrong step is, what is wrong with it, and what to do in its place.

Sun et al. 2025, "ReARTeR", and Havrilla et al. 2024, "GLoRe": an explanation is worth more than a number, since a refinement can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterplay.core.errors import VerifierError
from counterplay.core.nouns import Trajectory
from counterplay.verifiers.judges import prompts, reading
from counterplay.verifiers.judges.asking import ask_model, seed_of
from counterplay.verifiers.judges.judge import Asking, conversation
from counterplay.verifiers.judges.material import Material, Renderer
from counterplay.verifiers.judges.model import Complete, Model, as_model
from counterplay.verifiers.judges.reading import Form, UnreadableError, schema_of


@dataclass(frozen=True, slots=True)
class Critique:
    """`step` is the index of the first wrong step, None where none is wrong; `problem` says why, `advice` what to do instead.

    `unseen` are the steps that the critic was not shown whole, and so can't speak for.
    """

    step: int | None
    problem: str
    advice: str
    unseen: frozenset[int] = frozenset()

    @property
    def lesson(self) -> str:
        """For the agent's next attempt; empty where nothing is wrong."""
        return "" if self.step is None else f"Step {self.step} was wrong: {self.problem} Instead: {self.advice}"


class Critic(Asking):
    """Asks a model for the first error. Called with a trajectory, it gives the lesson as text: `lats(..., reflect=critic)`.

    Equal to the judge of consensus filtering (Zhang et al. 2025, "The Lessons of Developing Process Reward Models"): keep a sample whose
    Monte Carlo first error is `first_error`. `formal` and `max_chars` are the `Renderer`'s; a step that was not shown whole can't be named.
    """

    def __init__(self, model: str | Model | Complete, *, formal: bool = False, max_chars: int = 60_000, seed: int = 0) -> None:
        self.seed = seed
        self.model = as_model(model)
        super().__init__("critic", self.model, Renderer(max_chars, formal, seed), prompts.CRITIQUE, str(seed))

    async def __call__(self, trajectory: Trajectory, /) -> str:
        return (await self.find(trajectory)).lesson

    async def first_error(self, trajectory: Trajectory) -> int:
        """The index of the first wrong step, -1 where none is. Raises VerifierError where a step before it was not shown whole, too."""
        found = await self.find(trajectory)
        unseen = sorted(step for step in found.unseen if found.step is None or step < found.step)
        if unseen:
            raise VerifierError(
                f"{len(unseen)} steps from step {unseen[0]} on were not shown whole", "all of them", "Give a larger max_chars."
            )
        return -1 if found.step is None else found.step

    async def find(self, trajectory: Trajectory) -> Critique:
        """Raises VerifierError where the answer can't be read, and where it names a step that does not exist or was not shown."""
        material = self.renderer.whole(trajectory)
        form = _form(len(trajectory), material)
        messages = conversation(self.renderer.tag(trajectory), material.text, [prompts.CRITIQUE, prompts.form(form.schema)])
        return await ask_model(self.model, messages, form, seed=seed_of(self.seed, trajectory.key))


def _form(steps: int, material: Material) -> Form[Critique]:
    fields = {"problem": {"type": "string"}, "first_wrong_step": {"type": "integer"}, "advice": {"type": "string"}}

    def read(found: Mapping[str, Any]) -> Critique:
        step = found.get("first_wrong_step")
        if isinstance(step, bool) or not isinstance(step, int) or not -1 <= step < steps:
            raise UnreadableError(f"'first_wrong_step' is {step!r}, not a number from -1 to {steps - 1}")
        if step in material.steps_left_out:
            raise UnreadableError(f"step {step} was not shown whole, so nothing is known of it")
        if step < 0:
            return Critique(None, str(found.get("problem") or ""), str(found.get("advice") or ""), material.steps_left_out)
        return Critique(step, reading.text(found, "problem"), reading.text(found, "advice"), material.steps_left_out)

    return Form(schema_of(fields), read)
