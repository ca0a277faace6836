"""Every token of a tree through a model once.

What trajectories share is one segment of tokens; its keys, values and hidden states are kept in a pool of bounded size. New
segments go through the model packed into one row, under a mask in which each token sees its own path to the root and nothing
else. The least recently used leaves make room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import VerifierError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

POOL_BYTES, POOL_TOKENS = 2**30, 2**18
_CPU_CHUNK, _GPU_CHUNK = 512, 4096  # tokens of one forward pass: enough to keep the processor busy, few enough to mask little away


@dataclass(slots=True, eq=False)
class Segment:
    """Tokens that follow those of `parent`, the first of them at position `start`. `slots` is where the pool keeps them, None: not."""

    ids: Sequence[int]
    parent: Segment | None = None
    slots: Ints | None = None
    children: int = 0
    used_at: int = 0
    start: int = field(init=False)

    def __post_init__(self) -> None:
        self.start = 0 if self.parent is None else self.parent.start + len(self.parent.ids)

    def path(self) -> list[Segment]:
        """From the root to this one."""
        found, segment = [self], self.parent
        while segment is not None:
            found.append(segment)
            segment = segment.parent
        return found[::-1]


class PackedCache:
    """What transformers calls a cache: the keys and values of the tokens before, and, after the pass, those of the new ones too."""

    is_compileable = False

    def __init__(self, past: torch.Tensor) -> None:
        self.past = past
        self.fresh: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  the interface of transformers
        return int(self.past.shape[3])

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002  the interface of transformers
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + length, 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        self.fresh[layer_idx] = keys[0], values[0]
        if not self.past.shape[3]:
            return keys, values
        past = self.past[layer_idx]
        return torch.cat([past[0][None], keys], dim=2), torch.cat([past[1][None], values], dim=2)


class TreeForward:
    """A backbone (a model without its head) and its pool of at most `capacity` tokens, None: what fits into 1 GiB. Not thread-safe.

    `forwarded_tokens` and `forward_passes` count what went through the model. `shares` is False for architectures whose attention
    the packed pass does not reproduce, such as windowed ones; then every path is a pass of its own and nothing is kept.
    """

    def __init__(self, backbone: Any, *, capacity: int | None = None) -> None:
        import numpy as np
        import torch

        config = backbone.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.backbone, self.device = backbone, backbone.device
        self.forwarded_tokens = self.forward_passes = 0
        token_bytes = (2 * config.num_hidden_layers * heads * size + config.hidden_size) * backbone.dtype.itemsize
        self.capacity = capacity or min(POOL_TOKENS, POOL_BYTES // token_bytes)
        self._chunk = _CPU_CHUNK if self.device.type == "cpu" else _GPU_CHUNK
        self._pool = torch.zeros((config.num_hidden_layers, 2, heads, self.capacity, size), dtype=backbone.dtype, device=self.device)
        self._hidden = torch.zeros((self.capacity, config.hidden_size), dtype=backbone.dtype, device=self.device)
        self._free = np.arange(self.capacity, dtype=np.int64)
        self._free_count, self._clock = self.capacity, 0
        self._kept: dict[int, Segment] = {}
        self.shares = _reproduces(self, config)

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are in the pool."""
        return self.capacity - self._free_count

    def read(self, points: Sequence[tuple[Segment, int]]) -> torch.Tensor:
        """The hidden states at these points (a segment, a position in it), shape (points, hidden size).

        What does not fit into the pool together is computed in turns. Raises VerifierError for a path that alone is too long.
        """
        import numpy as np
        import torch

        found = self._hidden.new_zeros((len(points), self._hidden.shape[1]))
        if not self.shares:
            return self._read_alone(points, found)
        for here in self._turns(points):
            self._compute([points[at][0] for at in here])
            slots = np.array([_slots(points[at][0])[points[at][1]] for at in here], np.int64)
            found[torch.tensor(here, device=self.device)] = self._hidden[self._index(slots)]
        return found

    def clear(self) -> None:
        """Let go of everything kept."""
        self._clock += 1
        self._evict(self.capacity)

    def _turns(self, points: Sequence[tuple[Segment, int]]) -> list[list[int]]:
        """The points in parts whose paths fit into the pool together."""
        parts: list[list[int]] = []
        held: set[int] = set()
        total = self.capacity + 1
        for at, (segment, _) in enumerate(points):
            new = _until(segment, held)
            total += sum(len(one.ids) for one in new)
            if total > self.capacity:
                parts.append([])
                held.clear()
                new = segment.path()
                total = sum(len(one.ids) for one in new)
                if total > self.capacity:
                    got = f"a trajectory of {total} tokens"
                    raise VerifierError(got, f"at most {self.capacity}, the size of the pool", "Give the verifier more cache_tokens.")
            held.update(map(id, new))
            parts[-1].append(at)
        return parts

    def _read_alone(self, points: Sequence[tuple[Segment, int]], found: torch.Tensor) -> torch.Tensor:
        """One pass for every path that is not part of another."""
        import torch

        above = {id(one) for segment, _ in points for one in segment.path()[:-1]}
        for leaf in {id(segment): segment for segment, _ in points if id(segment) not in above}.values():
            path = leaf.path()
            on_path = {id(one) for one in path}
            ids = [token for one in path for token in one.ids]
            here = [at for at, (segment, _) in enumerate(points) if id(segment) in on_path]
            hidden = self._forward(torch.tensor([ids], device=self.device)).last_hidden_state[0]
            found[here] = hidden[[points[at][0].start + points[at][1] for at in here]]
        return found

    def _compute(self, ends: Sequence[Segment]) -> None:
        """Bring every segment on these paths into the pool."""
        self._clock += 1
        missing: list[Segment] = []
        for end in ends:
            unmarked, segment = [], end
            while segment.used_at != self._clock:
                segment.used_at = self._clock
                unmarked.append(segment)
                if segment.parent is None:
                    break
                segment = segment.parent
            missing += [one for one in reversed(unmarked) if one.slots is None]
        self._allocate(missing)
        try:
            for chunk in _pieces(missing, self._chunk):
                self._pass(chunk)
        except BaseException:
            for segment in reversed(missing):
                self._release(segment)
            raise

    def _allocate(self, missing: Sequence[Segment]) -> None:
        count = sum(len(segment.ids) for segment in missing)
        if count > self._free_count:
            self._evict(count - self._free_count)
        for segment in missing:
            self._free_count -= len(segment.ids)
            segment.slots = self._free[self._free_count : self._free_count + len(segment.ids)].copy()
            self._kept[id(segment)] = segment
            if segment.parent is not None:
                segment.parent.children += 1

    def _evict(self, count: int) -> None:
        """Free at least `count` slots: leaves that are not of this call, least recently used first, whole branches upwards."""
        leaves = sorted((s for s in self._kept.values() if not s.children and s.used_at < self._clock), key=lambda s: s.used_at)
        for leaf in leaves:
            segment: Segment | None = leaf
            while segment is not None and not segment.children and segment.used_at < self._clock and count > 0:
                count -= len(segment.ids)
                self._release(segment)
                segment = segment.parent

    def _release(self, segment: Segment) -> None:
        slots = _slots(segment)
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)
        segment.slots = None
        del self._kept[id(segment)]
        if segment.parent is not None:
            segment.parent.children -= 1

    def _pass(self, chunk: Sequence[_Piece]) -> None:
        """One forward pass over pieces of segments, whose ancestors are in the pool or stand before them in the chunk."""
        import numpy as np
        import torch

        layout = _Layout.of(chunk)
        past = self._pool.index_select(3, self._index(layout.past))
        cache = PackedCache(past)
        ids = np.concatenate([np.asarray(piece.segment.ids[piece.start : piece.stop], np.int64) for piece in chunk])
        positions = np.concatenate([np.arange(piece.start, piece.stop) + piece.segment.start for piece in chunk])
        slots = np.concatenate([_slots(piece.segment)[piece.start : piece.stop] for piece in chunk])
        mask = None
        if layout.allowed is not None:
            allowed = torch.from_numpy(layout.allowed).to(self.device)
            mask = torch.zeros(allowed.shape, dtype=past.dtype, device=self.device).masked_fill_(~allowed, torch.finfo(past.dtype).min)[
                None, None
            ]
        output = self._forward(self._index(ids)[None], mask, self._index(positions)[None], cache)
        index = self._index(slots)
        for layer, (keys, values) in cache.fresh.items():
            self._pool[layer, 0].index_copy_(1, index, keys)
            self._pool[layer, 1].index_copy_(1, index, values)
        self._hidden.index_copy_(0, index, output.last_hidden_state[0])

    def _forward(self, ids: torch.Tensor, mask: Any = None, positions: Any = None, cache: Any = None) -> Any:
        import torch

        self.forwarded_tokens += ids.shape[1]
        self.forward_passes += 1
        with torch.inference_mode():
            return self.backbone(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cache is not None
            )

    def _index(self, array: Ints) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self.device)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens `start` to `stop` of a segment."""

    segment: Segment
    start: int
    stop: int


def _pieces(segments: Sequence[Segment], size: int) -> list[list[_Piece]]:
    """Segments, parents first, cut into chunks of `size` tokens."""
    chunks: list[list[_Piece]] = [[]]
    room = size
    for segment in segments:
        at = 0
        while at < len(segment.ids):
            if not room:
                chunks.append([])
                room = size
            stop = min(len(segment.ids), at + room)
            chunks[-1].append(_Piece(segment, at, stop))
            room -= stop - at
            at = stop
    return [chunk for chunk in chunks if chunk]


def _until(segment: Segment, held: set[int]) -> list[Segment]:
    """The segment and those above it that are not held."""
    found: list[Segment] = []
    one: Segment | None = segment
    while one is not None and id(one) not in held:
        found.append(one)
        one = one.parent
    return found


def _slots(segment: Segment) -> Ints:
    assert segment.slots is not None
    return segment.slots


@dataclass(frozen=True, slots=True)
class _Layout:
    """`past` are the pool slots of all that the chunk's tokens see and that is not of the chunk. `allowed` (tokens, past + tokens) is who
    sees whom; None where that is plain causal attention without a past.
    """

    past: Ints
    allowed: NDArray[np.bool_] | None

    @classmethod
    def of(cls, chunk: Sequence[_Piece]) -> _Layout:
        import numpy as np

        inside = {id(piece.segment): piece for piece in chunk}
        own = dict(zip(inside, accumulate([0, *(piece.stop - piece.start for piece in chunk)]), strict=False))
        columns: dict[int, tuple[int, int]] = {}
        parts, width = [], 0
        for segment in (s for piece in chunk for s in piece.segment.path()):
            before = inside[id(segment)].start if id(segment) in inside else len(segment.ids)
            if id(segment) not in columns:
                columns[id(segment)] = width, width + before
                parts.append(_slots(segment)[:before])
                width += before
        past = np.concatenate(parts)
        total = sum(piece.stop - piece.start for piece in chunk)
        in_line = all(a.segment is b.segment.parent for a, b in pairwise(chunk))
        if in_line and not width:
            return cls(past, None)
        seen: dict[int, NDArray[np.bool_]] = {}

        def visible(segment: Segment | None) -> NDArray[np.bool_]:
            """The columns that a token after this segment sees."""
            if segment is None:
                return np.zeros(width + total, np.bool_)
            path = segment.path()
            known = next((at for at in range(len(path), 0, -1) if id(path[at - 1]) in seen), 0)
            row = seen[id(path[known - 1])] if known else np.zeros(width + total, np.bool_)
            for one in path[known:]:
                row = row.copy()
                row[slice(*columns[id(one)])] = True
                if id(one) in inside:
                    first = width + own[id(one)]
                    row[first : first + inside[id(one)].stop - inside[id(one)].start] = True
                seen[id(one)] = row
            return row

        allowed = np.zeros((total, width + total), np.bool_)
        for piece in chunk:
            first, count = own[id(piece.segment)], piece.stop - piece.start
            rows = allowed[first : first + count]
            rows[:] = visible(piece.segment.parent)
            rows[:, slice(*columns[id(piece.segment)])] = True
            rows[:, width + first : width + first + count] = np.tri(count, dtype=np.bool_)
        return cls(past, allowed)


def _reproduces(tree: TreeForward, config: Any) -> bool:
    """Whether the packed pass gives what the plain model gives, tried on a small tree."""
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    known = config.vocab_size
    tree.shares = True
    root = Segment([at % known for at in range(1, 6)])
    leaves = [Segment([(7 * at + branch) % known for at in range(1, 5)], root) for branch in range(2)]
    points = [(leaf, 3) for leaf in leaves]
    try:
        packed = tree.read(points)
        tree.shares = False
        plain = tree.read(points)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):  # an architecture with other ideas of a cache or a mask
        return False
    finally:
        tree.clear()
        tree.forwarded_tokens = tree.forward_passes = 0
    difference = float((packed - plain).abs().max() / plain.abs().max().clamp_min(1e-6))
    return difference < (1e-3 if packed.dtype.itemsize == 4 else 0.1)
