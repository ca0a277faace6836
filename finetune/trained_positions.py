"""The language-model head applied to the positions that carry loss, not to every position.

TRL's fused head does so on GPUs alone; on a CPU with a small model the head is a good part of the work, and most of a
tool-heavy conversation is not trained on.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def head_on_trained_positions(model: Any) -> None:
    """Change a model that has TRL's fused head. Its outputs stay what they were: per token, zero where there is no label."""
    fused = model.forward
    kept: list[Any] = []

    def narrow(_module: Any, _inputs: Any, output: Any) -> None:
        if kept:
            output.last_hidden_state = output.last_hidden_state[:, :-1][kept[-1]][None]

    @wraps(fused)
    def forward(*inputs: Any, fused_lm_head: bool = False, labels: Any = None, **options: Any) -> Any:
        wanted = None if labels is None else labels[:, 1:] != -100
        if not fused_lm_head or wanted is None or "shift_labels" in options or not wanted.any():
            return fused(*inputs, fused_lm_head=fused_lm_head, labels=labels, **options)
        kept.append(wanted)
        try:
            output = fused(*inputs, fused_lm_head=True, shift_labels=labels[:, 1:][wanted][None], **options)
        finally:
            kept.pop()
        for name in _PER_TOKEN:
            values = getattr(output, name)
            if values is not None:
                setattr(output, name, values.new_zeros(wanted.shape).masked_scatter(wanted, values[0]))
        output.label_mask = wanted
        return output

    model.base_model.register_forward_hook(narrow)
    model.forward = forward
