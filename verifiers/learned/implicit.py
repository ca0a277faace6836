"""The implicit process reward model: what a tuned policy prefers to its reference is a reward of every step.

Yuan et al. 2024, "Free Process Rewards without Process Labels"; refreshed each round as in Cui et al. 2025, "PRIME".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import Trajectory
from counterplay.verifiers.learned.loading import backbone_of, folder_version, load_folder
from counterplay.verifiers.learned.scoring import LearnedVerifier, StateNode
from counterplay.verifiers.learned.tree_forward import Segment, TreeForward

if TYPE_CHECKING:
    import torch

_ROWS = 2048  # positions whose logits over the whole vocabulary are held at once


class ImplicitPRM(LearnedVerifier):
    """Two causal models of one tokenizer: r_t = beta * sum over what the model wrote in step t of log pi(y) - log pi_ref(y).

    The value of a state is sigmoid(q_t) with q_t = r_1 + .. + r_t, as trained with cross-entropy on outcomes (`finetune.prm`); `rewards`
    gives the r_t. Tool results and user turns carry no reward. Options as in `LearnedPRM`. Raises UserError where a folder holds no causal
    model or the tokenizers differ.
    """

    name = "implicit-prm"

    def __init__(
        self,
        policy: str | Path,
        reference: str | Path,
        *,
        beta: float = 0.05,
        dtype: str | None = None,
        device: str | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        if not beta > 0:
            raise UserError(f"got beta {beta}", "a positive number")
        folders = [Path(policy), Path(reference)]
        loaded = [load_folder(folder, "AutoModelForCausalLM", dtype, device) for folder in folders]
        if loaded[0][0].get_vocab() != loaded[1][0].get_vocab():
            raise UserError(f"got {policy} and {reference}, whose tokenizers differ", "a policy and the reference it was tuned from")
        self.beta = beta
        self._heads: list[Any] = [model.get_output_embeddings() for _, model in loaded]
        forwards = [TreeForward(backbone_of(model), capacity=cache_tokens) for _, model in loaded]
        version = "-".join([*map(folder_version, folders), f"{beta:g}"])
        super().__init__(loaded[0][0], forwards, version=version, reason=f"implicit {folders[0].name} over {folders[1].name}")

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """For each trajectory the reward r_t of every step, any real number. Raises VerifierError."""
        totals = self._of_steps(trajectories, lambda node: node.total)
        return [tuple(now - before for before, now in zip((0.0, *row), row, strict=False)) for row in totals]

    def _fill(self, nodes: Sequence[StateNode]) -> None:
        """States from the root down, since the value of one is a sum along its path."""
        todo: list[StateNode] = []
        seen: set[int] = set()
        for node in nodes:
            above: list[StateNode] = []
            one: StateNode | None = node
            while one is not None and one.tokens is not None and one.value is None and id(one) not in seen:
                seen.add(id(one))
                above.append(one)
                one = one.parent
            todo += reversed(above)
        ratios = [own - other for own, other in zip(*(self._logprobs(todo, which) for which in (0, 1)), strict=True)]
        for node, ratio in zip(todo, ratios, strict=True):
            node.total = (0.0 if node.parent is None else node.parent.total) + self.beta * ratio
            node.value = 1 / (1 + math.exp(-max(-500.0, min(500.0, node.total))))

    def _logprobs(self, nodes: Sequence[StateNode], which: int) -> list[float]:
        """The summed log-probability of what the model wrote in each step, under one of the two models."""
        import torch

        points: list[tuple[Segment, int]] = []
        targets: list[int] = []
        counts = []
        for node in nodes:
            assert node.tokens is not None
            segment, (start, stop) = node.segments[which], node.tokens.said
            points += [_before(segment, at) for at in range(start, stop)]
            targets += node.tokens.ids[start:stop]
            counts.append(stop - start)
        forward = self.forwards[which]
        states, found = forward.read(points), []
        with torch.inference_mode():
            for at in range(0, len(points), _ROWS):
                logits: torch.Tensor = self._heads[which](states[at : at + _ROWS]).float()
                wanted = torch.tensor(targets[at : at + _ROWS], device=forward.device)
                found.append(logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0])
        per_token = torch.cat(found).tolist() if found else []
        ends = list(accumulate(counts, initial=0))
        return [math.fsum(per_token[start:stop]) for start, stop in pairwise(ends)]

    def _alone(self, state: Trajectory) -> StateNode:
        got = f"a chat template that rewrites earlier messages, on a state of {len(state)} steps"
        raise VerifierError(got, "one that only appends, because the reward adds up over the steps", "Use a trained prm for this model.")


def _before(segment: Segment, at: int) -> tuple[Segment, int]:
    """The point whose hidden state predicts token `at` of a segment."""
    if at > 0 or segment.parent is None:
        return segment, at - 1
    return segment.parent, len(segment.parent.ids) - 1
