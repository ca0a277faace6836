"""A process reward model: a transformers model with a token-classification head, its score read at each step's last token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from counterplay.core.errors import UserError
from counterplay.core.nouns import Trajectory
from counterplay.verifiers.learned.loading import backbone_of, folder_version, load_folder
from counterplay.verifiers.learned.scoring import LearnedVerifier, StateNode
from counterplay.verifiers.learned.tree_forward import TreeForward

Kind = Literal["prm", "ppm", "orm"]
SETTINGS = "counterplay"
"""The field of `config.json` that says what was trained: `kind` (prm, ppm or orm)."""


class LearnedPRM(LearnedVerifier):
    """The model in `folder` as a verifier: V(s_t) = sigmoid(head at the last token of step t), in [0, 1].

    A head with two labels gives the probability of the second. `kind` is what the folder says of itself: `orm` (an outcome model) has an
    opinion on finished trajectories alone, `prm` and `ppm` (pairwise) on every prefix with a step. `dtype` is a torch name, None as saved;
    `device` None is CUDA where there is one. `cache_tokens` bounds the tokens whose keys and values are kept, None: what fits into 1 GiB.

    Raises UserError where the folder holds no such model.
    """

    name = "prm"

    def __init__(self, folder: str | Path, *, dtype: str | None = None, device: str | None = None, cache_tokens: int | None = None) -> None:
        path = Path(folder)
        tokenizer, model = load_folder(path, "AutoModelForTokenClassification", dtype, device)
        if getattr(model, "score", None) is None and getattr(model, "classifier", None) is None:
            raise UserError(f"got model {path} of type {type(model).__name__}", "a decoder with a token-classification head")
        if model.config.num_labels not in {1, 2}:
            raise UserError(f"got model {path} with {model.config.num_labels} labels", "1 (a score) or 2 (wrong, right)")
        self.kind: Kind = (getattr(model.config, SETTINGS, None) or {}).get("kind", "prm")
        self.name = self.kind
        self._head: Any = getattr(model, "score", None) or model.classifier
        forward = TreeForward(backbone_of(model), capacity=cache_tokens)
        super().__init__(tokenizer, [forward], version=folder_version(path), reason=f"{self.kind} {path.name}")

    def _has_opinion(self, trajectory: Trajectory) -> bool:
        return bool(trajectory.steps) and (self.kind != "orm" or trajectory.finished)

    def _fill(self, nodes: Sequence[StateNode]) -> None:
        import torch

        points = [(node.segments[0], node.tokens.end) for node in nodes if node.tokens is not None]
        states = self.forwards[0].read(points)
        with torch.inference_mode():
            logits = self._head(states).float()
            values = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, 1]
        for node, value in zip(nodes, values.tolist(), strict=True):
            node.value = value
