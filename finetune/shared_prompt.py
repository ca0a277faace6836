"""One forward pass over a prompt that two completions share.

DPOTrainer feeds every pair as two rows, prompt and chosen, prompt and rejected; step-level pairs of long agents are nearly all
prompt. Here the two rows become one, [what they share][rest of chosen][rest of rejected], with positions and an attention
mask under which neither rest sees the other. The hidden states go back into the two rows, so that the trainer notices nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def can_share(model: Any) -> bool:
    """Whether tokens of several texts can lie in one row, each seeing its own: full attention everywhere, that accepts a mask."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return kinds == {"full_attention"} and not windowed and config._attn_implementation in {"sdpa", "eager"}  # noqa: SLF001  no public name


def share_prompts(model: Any) -> bool:
    """Make a causal language model's backbone compute shared prompts once. False, and nothing done, for architectures it can't be done in.

    Batches that are not pairs pass as before.
    """
    if not can_share(model):
        return False
    backbone = model.base_model
    plain = backbone.forward

    def forward(input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        if input_ids is None or attention_mask is None or attention_mask.dim() != 2 or len(input_ids) % 2 or set(options) - {"use_cache"}:
            return plain(input_ids=input_ids, attention_mask=attention_mask, **options)
        packed = pack(input_ids, attention_mask)
        output = plain(input_ids=packed.ids, attention_mask=bias(packed.mask, model.dtype), position_ids=packed.positions, **options)
        hidden = output.last_hidden_state.repeat(2, 1, 1)
        output.last_hidden_state = hidden.gather(1, packed.origin[..., None].expand(-1, -1, hidden.size(-1)))
        return output

    backbone.forward = forward
    return True


@dataclass(frozen=True, slots=True)
class Packed:
    """n pairs as n rows. `mask` (n, T, T) is who sees whom, `origin` (2n, L) where in a packed row each token of the pairs' rows is."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    origin: Tensor


def pack(ids: Tensor, present: Tensor) -> Packed:
    """Rows i and n + i of `ids` (2n, L), padded on the right where `present` is 0, share their first tokens and become one row."""
    import torch

    left, right = ids.chunk(2)
    lengths = present.sum(1)
    left_length, right_length = lengths.chunk(2)
    at = torch.arange(ids.size(1), device=ids.device)
    both = at < torch.minimum(left_length, right_length)[:, None]
    shared = ((left == right) & both).long().cumprod(1).sum(1)
    width = int((left_length + right_length - shared).max())
    slot = torch.arange(width, device=ids.device).expand(len(left), -1)
    in_right = slot >= left_length[:, None]
    source = torch.where(in_right, slot - left_length[:, None] + shared[:, None], slot).clamp(max=ids.size(1) - 1)
    packed = torch.where(in_right, right.gather(1, source), left.gather(1, source))
    own_left = ~in_right & (slot >= shared[:, None])
    mask = (slot[:, :, None] >= slot[:, None, :]) & ~(in_right[:, :, None] & own_left[:, None, :])
    moved = torch.where(at >= shared[:, None], at + (left_length - shared)[:, None], at)
    origin = torch.cat([at.expand_as(left), moved]).clamp(max=width - 1)
    return Packed(packed, source, mask, origin)


def bias(mask: Tensor, dtype: Any) -> Tensor:
    """The additive form of a boolean mask, which every attention implementation takes: (n, 1, T, T)."""
    import torch

    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)[:, None]
