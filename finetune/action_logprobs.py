"""The log-probability that a model in a local folder gives to actions that were taken: what off-policy estimates weigh runs by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Trajectory

if TYPE_CHECKING:
    import torch

_BATCH_TOKENS = 16_384
_ROWS = 2048  # positions whose logits over the whole vocabulary are held at once


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The tokens of a trajectory, and for every step the range of them that its action is, end token and all."""

    ids: tuple[int, ...]
    said: tuple[tuple[int, int], ...]


class ActionScorer:
    """Scores actions under the causal model in `folder`, which needs a chat template that only appends.

    `temperature` is the one the policy samples at, above 0: log p is taken of softmax(logits / temperature), and is the policy's own where
    it samples without top_p. Options `dtype` and `device` as in `ImplicitPRM`. Raises UserError where the folder holds no such model.
    """

    def __init__(self, folder: str | Path, *, temperature: float = 1.0, dtype: str | None = None, device: str | None = None) -> None:
        from counterplay.verifiers.learned.loading import backbone_of, load_folder
        from counterplay.verifiers.learned.rendering import StepRenderer

        if not temperature > 0:
            raise UserError(f"got temperature {temperature:g}", "one above 0", "A greedy policy gives every other action probability 0.")
        self.name, self.temperature = Path(folder).name, temperature
        tokenizer, model = load_folder(Path(folder), "AutoModelForCausalLM", dtype, device)
        self._renderer = StepRenderer(tokenizer)
        self._backbone, self._head, self._device = backbone_of(model), model.get_output_embeddings(), model.device

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[tuple[float | None, ...]]:
        """For every trajectory the log-probability of each action, summed over its tokens; None of those put in the agent's mouth.

        Actions are rendered again: where the model wrote the same call in other words (other white space), it is theirs that is meant.
        Raises UserError where the chat template rewrites earlier messages or can't render one.
        """
        rendered = [self._rendered(trajectory) for trajectory in trajectories]
        found: list[tuple[float | None, ...]] = [()] * len(rendered)
        for batch in _batches(rendered):
            for i, scores in zip(batch, self._scored([rendered[i] for i in batch]), strict=True):
                steps = trajectories[i].steps
                found[i] = tuple(score if step.sampled else None for step, score in zip(steps, scores, strict=True))
        return found

    def _rendered(self, trajectory: Trajectory) -> _Rendered:
        try:
            steps = [self._renderer.step(step) for step in trajectory.steps]
            prompt = self._renderer.prompt(trajectory)
        except VerifierError as error:
            raise UserError(f"the chat template of {self.name} failed: {error.got}", "one that renders these messages") from error
        ids = (*prompt, *(token for step in steps for token in step.ids))
        if not self._renderer.check(trajectory, ids, trajectory.steps):
            raise UserError(
                f"got model {self.name}, whose chat template rewrites earlier messages",
                "one that only appends",
                "Play held-out tasks instead.",
            )
        starts = accumulate((len(step.ids) for step in steps), initial=len(prompt))
        return _Rendered(ids, tuple((start + step.said[0], start + step.said[1]) for start, step in zip(starts, steps, strict=False)))

    def _scored(self, batch: Sequence[_Rendered]) -> Iterator[list[float]]:
        """The sums of each trajectory of one forward pass. Padding stands on the right, where no token of a causal model sees it."""
        import torch

        width = max(len(one.ids) for one in batch)
        ids = torch.tensor([[*one.ids, *[0] * (width - len(one.ids))] for one in batch], device=self._device)
        places = [(row, at) for row, one in enumerate(batch) for start, stop in one.said for at in range(start, stop)]
        with torch.inference_mode():
            hidden = self._backbone(input_ids=ids, use_cache=False).last_hidden_state
            rows, at = torch.tensor(places, dtype=torch.long, device=self._device).reshape(-1, 2).T
            tokens = self._gathered(hidden[rows, at - 1], ids[rows, at])
        ends = list(accumulate((stop - start for one in batch for start, stop in one.said), initial=0))
        sums = iter([fsum(tokens[start:stop]) for start, stop in pairwise(ends)])
        for one in batch:
            yield [next(sums) for _ in one.said]

    def _gathered(self, hidden: torch.Tensor, wanted: torch.Tensor) -> list[float]:
        found: list[float] = []
        for at in range(0, len(hidden), _ROWS):
            logits: torch.Tensor = self._head(hidden[at : at + _ROWS]).float() / self.temperature
            found += logits.log_softmax(-1).gather(1, wanted[at : at + _ROWS, None])[:, 0].tolist()
        return found


def _batches(rendered: Sequence[_Rendered]) -> Iterator[list[int]]:
    """Indices in batches of like length."""
    batch: list[int] = []
    for i in sorted(range(len(rendered)), key=lambda i: len(rendered[i].ids)):
        if batch and (len(batch) + 1) * len(rendered[i].ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
