"""Keys and values of every token prefix a model has seen, each stored once.

A radix tree over token sequences (as in SGLang's RadixAttention) maps a prefix to slots of one preallocated tensor. The
least recently used leaves make room for new tokens; what does not fit is simply not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Slots = NDArray[np.int64]

WIDTH = 4
"""Bytes a token takes in the byte strings that the tree compares."""


@dataclass(slots=True, eq=False)
class _Segment:
    tokens: bytes = b""
    slots: Any = None
    parent: _Segment | None = None
    children: dict[bytes, _Segment] = field(default_factory=dict)
    used_at: int = 0


def common_prefix(left: bytes, right: bytes) -> int:
    """How many leading tokens two encoded sequences share."""
    import numpy as np

    length = min(len(left), len(right)) // WIDTH
    if left[: length * WIDTH] == right[: length * WIDTH]:
        return length
    differs = np.frombuffer(left, np.int32, length) != np.frombuffer(right, np.int32, length)
    return int(differs.argmax())


class PrefixTree:
    """Which slots hold the keys and values of a token prefix. `capacity` is the number of slots."""

    def __init__(self, capacity: int) -> None:
        import numpy as np

        self.capacity = capacity
        self._free = np.arange(capacity, dtype=np.int64)
        self._free_count = capacity
        self._root = _Segment(slots=self._free[:0])
        self._clock = 0

    def __len__(self) -> int:
        """Tokens held."""
        return self.capacity - self._free_count

    def match(self, tokens: bytes) -> Slots:
        """The slots of the longest known prefix of `tokens`, in order."""
        import numpy as np

        parts, _, _ = self._walk(tokens)
        return np.concatenate(parts) if parts else self._root.slots

    def allocate(self, count: int) -> Slots | None:
        """Free slots, least recently used prefixes making room; None where even that is not enough."""
        if count > self.capacity:
            return None
        if count > self._free_count:
            self._evict(count - self._free_count + self.capacity // 16)
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def insert(self, tokens: bytes, start: int, slots: Slots) -> None:
        """Take over `slots`, which hold tokens `start` onwards. Slots of tokens that are already known are freed again."""
        parts, segment, offset = self._walk(tokens)
        known = sum(map(len, parts))
        if known < start or known >= start + len(slots):  # its beginning was evicted meanwhile, or nothing is new
            self.release(slots)
            return
        self.release(slots[: known - start])
        if offset < len(segment.slots):
            segment = self._split(segment, offset)
        tail = tokens[known * WIDTH : (start + len(slots)) * WIDTH]
        segment.children[tail[:WIDTH]] = _Segment(tail, slots[known - start :], segment, used_at=self._clock)

    def _walk(self, tokens: bytes) -> tuple[list[Slots], _Segment, int]:
        self._clock += 1
        segment, at = self._root, 0
        parts: list[Slots] = []
        while True:
            child = segment.children.get(tokens[at : at + WIDTH])
            if child is None:
                return parts, segment, len(segment.slots)
            child.used_at = self._clock
            if not tokens.startswith(child.tokens, at):
                offset = common_prefix(tokens[at : at + len(child.tokens)], child.tokens)
                parts.append(child.slots[:offset])
                return parts, child, offset
            parts.append(child.slots)
            segment, at = child, at + len(child.tokens)

    def _split(self, segment: _Segment, offset: int) -> _Segment:
        """Cut a segment in two and return its upper half."""
        parent = segment.parent
        assert parent is not None
        cut = offset * WIDTH
        upper = _Segment(
            segment.tokens[:cut], segment.slots[:offset], parent, {segment.tokens[cut : cut + WIDTH]: segment}, segment.used_at
        )
        parent.children[segment.tokens[:WIDTH]] = upper
        segment.tokens, segment.slots, segment.parent = segment.tokens[cut:], segment.slots[offset:], upper
        return upper

    def _evict(self, count: int) -> None:
        leaves = [(leaf.used_at, id(leaf), leaf) for leaf in self._leaves()]
        heapify(leaves)
        while leaves and count > 0:
            _, _, leaf = heappop(leaves)
            parent = leaf.parent
            if parent is None:
                continue
            del parent.children[leaf.tokens[:WIDTH]]
            self.release(leaf.slots)
            count -= len(leaf.slots)
            if not parent.children and parent.parent is not None:
                heappush(leaves, (parent.used_at, id(parent), parent))

    def _leaves(self) -> list[_Segment]:
        found, stack = [], [self._root]
        while stack:
            segment = stack.pop()
            stack.extend(segment.children.values())
            if not segment.children and segment.parent is not None:
                found.append(segment)
        return found

    def release(self, slots: Slots) -> None:
        """Give slots back that were allocated and not inserted."""
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)


class KVPool:
    """The tensor behind a `PrefixTree`: keys and values of every layer, shape (layers, 2, key/value heads, slots, head size)."""

    def __init__(self, *, layers: int, heads: int, size: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        import torch

        self.tree = PrefixTree(capacity)
        self.tensor = torch.zeros(
            (layers, 2, heads, capacity, size), dtype=dtype, device=device
        )  # never NaN, not even where padding points

    def index(self, slots: Slots) -> torch.Tensor:
        import torch

        return torch.from_numpy(slots).to(self.tensor.device)
