"""The key/value cache of one batch, and the attention that reads it.

A batch is packed: its tokens are one row of the model's input, without padding, so that linear layers compute nothing
twice. Keys and values lie in two parts: a prefix that all rows share is held and attended to once, what is a row's own is
left-padded to a common width. Each part is attended to by itself and the two are merged by their log-sum-exp, which is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ATTENTION = "counterplay_packed"
"""The name under which the attention is registered with transformers."""

MASKED = -1e30


class Scratch:
    """Two blocks of memory used in turn, grown when needed: fresh pages for every batch would cost as much as the copy into them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        import torch

        self._blocks = [torch.zeros(0, dtype=dtype, device=device) for _ in range(2)]
        self._turn = 0

    def take(self, *shape: int) -> torch.Tensor:
        """A tensor with finite content. It is valid until the next but one `take`."""
        import torch

        count = 1
        for length in shape:
            count *= length
        self._turn ^= 1
        if self._blocks[self._turn].numel() < count:
            self._blocks[self._turn] = torch.zeros(count + count // 4, dtype=self._blocks[0].dtype, device=self._blocks[0].device)
        return self._blocks[self._turn][:count].view(shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the packed tokens of one forward pass map to rows and columns.

    `writes` are flat positions (row * capacity + column) of the new keys, None where every row gets exactly the next column.
    `gather` and `scatter` pad queries to (rows, width) and back, None where they are already aligned. `bias` is added to the
    attention scores over a row's own keys, shape (rows, width * group, columns). `slots` are pool positions to keep the keys
    in, None to keep nothing.
    """

    rows: int
    width: int
    columns: int
    bias: torch.Tensor
    writes: torch.Tensor | None = None
    gather: torch.Tensor | None = None
    scatter: torch.Tensor | None = None
    slots: torch.Tensor | None = None


class BatchCache:
    """What transformers calls a cache: `update` takes the new keys and values of a layer.

    `shared` has shape (layers, 2, heads, prefix, size), `own` (layers, 2, heads, rows, capacity, size), `pool` is the tensor of a
    `KVPool`.
    """

    is_compileable = False

    def __init__(self, shared: torch.Tensor, own: torch.Tensor, pool: torch.Tensor) -> None:
        self.shared, self.own, self.pool = shared, own, pool
        self.layout: Layout | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  the interface of transformers
        return 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[LayerView, torch.Tensor]:
        """Write keys and values, shape (1, heads, tokens, size), where the layout says. `packed_attention` gets the layer for keys."""
        layout = self.layout
        assert layout is not None
        for own, pool, new in zip(self.own[layer_idx], self.pool[layer_idx], (keys[0], values[0]), strict=True):
            if layout.writes is None:
                own[:, :, layout.columns - 1] = new
            else:
                own.view(own.shape[0], -1, own.shape[-1]).index_copy_(1, layout.writes, new)
            if layout.slots is not None:
                pool.index_copy_(1, layout.slots, new)
        return LayerView(self.shared[layer_idx], self.own[layer_idx], layout), values


@dataclass(frozen=True, slots=True)
class LayerView:
    shared: torch.Tensor
    own: torch.Tensor
    layout: Layout


def packed_attention(  # noqa: PLR0917  transformers' calling convention
    module: Any,  # noqa: ARG001
    query: torch.Tensor,
    key: LayerView,
    value: torch.Tensor,  # noqa: ARG001  transformers passes it; the layer view holds the values
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed queries, shape (1, query heads, tokens, size), in transformers' calling convention."""
    import torch

    layout = key.layout
    heads, size = key.own.shape[1], query.shape[-1]
    scale = size**-0.5 if scaling is None else scaling
    group, tokens = query.shape[1] // heads, query.shape[2]
    grouped = query[0].view(heads, group, tokens, size)
    padded = grouped if layout.gather is None else grouped.index_select(2, layout.gather)
    rows = padded.view(heads, group, layout.rows, layout.width, size).transpose(1, 2).reshape(heads, layout.rows, -1, size)
    keys, values = key.own[:, :, :, : layout.columns]
    bias = layout.bias.expand(heads, *layout.bias.shape)
    out, weight = _attend(rows, keys, values, bias, scale)
    out, weight = _unpad(out, layout, group), _unpad(weight.unsqueeze(-1), layout, group)
    if key.shared.shape[2]:
        flat = grouped.reshape(1, heads, group * tokens, size)
        common, common_weight = _attend(flat, key.shared[0][None], key.shared[1][None], None, scale)
        share = torch.sigmoid(common_weight.view(heads, group, tokens, 1) - weight)
        out = torch.lerp(out, common.view(heads, group, tokens, size), share.to(out.dtype))
    return out.reshape(1, heads * group, tokens, size).transpose(1, 2), None


def _unpad(rows: torch.Tensor, layout: Layout, group: int) -> torch.Tensor:
    """(heads, rows, group * width, size) -> (heads, group, tokens, size)."""
    heads, size = rows.shape[0], rows.shape[-1]
    flat = rows.reshape(heads, layout.rows, group, layout.width, size).transpose(1, 2).reshape(heads, group, -1, size)
    return flat if layout.scatter is None else flat.index_select(2, layout.scatter)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum-exp of its scores. On CPU torch's own fused kernel, elsewhere plain matrix products."""
    import torch

    if query.device.type == "cpu":
        out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001  the only kernel that gives out the sum
            query, keys, values, 0.0, False, attn_mask=bias, scale=scale
        )
        return out, weight
    return plain_attention(query, keys, values, bias, scale)


def plain_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by matrix products, in float32, and the log-sum-exp of its scores."""
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    if bias is not None:
        scores = scores + bias
    weight = scores.logsumexp(-1)
    return (scores - weight.unsqueeze(-1)).exp().to(values.dtype) @ values, weight
