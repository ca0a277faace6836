"""The rows of one batch while they are prefilled, branched and decoded: which column holds what, and how long every row is.

Columns of a row's own cache, left to right: its known prefix out of the pool (right-aligned), its fresh prompt tokens
(right-aligned), then one column a generated token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from counterplay.replay.kv_cache import MASKED, BatchCache, Layout, Scratch
from counterplay.replay.kv_pool import WIDTH, KVPool, common_prefix

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_GROWTH = 32  # columns by which the cache grows while it decodes


class Batch:
    """`sequences` are sorted token sequences. `slots` are the pool slots of the known prefix of each, which is never all of it, and
    those for the fresh tokens of all rows in order, None where these are not to be kept.

    `columns` counts the filled columns, `lengths` the tokens of every row, `width` the most fresh tokens a row has.
    """

    def __init__(
        self, pool: KVPool, scratch: Scratch, group: int, sequences: Sequence[bytes], slots: tuple[Sequence[Ints], Ints | None]
    ) -> None:
        import numpy as np
        import torch

        self._pool, self._scratch, self._group = pool, scratch, group
        matched, self._kept = slots
        self._prompts = list(sequences)
        self._known = np.array([len(slots) for slots in matched])
        self.lengths = np.array([len(tokens) // WIDTH for tokens in sequences])
        self._fresh = self.lengths - self._known
        self.width = int(self._fresh.max())
        shared = min(common_prefix(sequences[0], sequences[-1]), int(self._known.min()))
        self._own_known = self._known - shared
        self.columns = int(self._own_known.max())
        layers, _, heads, _, size = pool.tensor.shape
        own = scratch.take(layers, 2, heads, len(sequences), self.columns + self.width + _GROWTH, size)
        if self.columns:
            aligned = np.zeros((len(sequences), self.columns), np.int64)
            for row, found in enumerate(matched):
                aligned[row, self.columns - len(found) + shared :] = found[shared:]
            values = pool.tensor.index_select(3, pool.index(aligned.reshape(-1)))
            own[..., : self.columns, :] = values.view(*own.shape[:4], self.columns, size)
        self.cache = BatchCache(pool.tensor.index_select(3, pool.index(matched[0][:shared])), own, pool.tensor)
        padding = np.zeros((len(sequences), own.shape[4]), bool)
        padding[:, : self.columns] = np.arange(self.columns) < (self.columns - self._own_known)[:, None]
        padding[:, self.columns : self.columns + self.width] = np.arange(self.width) < (self.width - self._fresh)[:, None]
        self._bias = torch.zeros(padding.shape, dtype=own.dtype, device=own.device).masked_fill_(self._tensor(padding), MASKED)
        self._generated: list[Ints] = []
        self._first_generated = 0

    def prefill(self, start: int, end: int) -> tuple[Layout, Ints, Ints, Ints]:
        """How to compute fresh columns `start` to `end`: the layout, token ids, positions, and where in them each row's last token is.

        Before the final piece there is none yet, and position 0 stands in.
        """
        import numpy as np

        pad = self.width - self._fresh
        rows, offsets = np.nonzero(np.arange(start, end)[None] >= pad[:, None])
        fresh_at = rows, offsets + start - pad[rows]
        offset_of = np.cumsum(self._fresh) - self._fresh
        ids = np.concatenate([np.frombuffer(t, np.int32)[k:] for t, k in zip(self._prompts, self._known, strict=True)]).astype(np.int64)
        flat = offset_of[fresh_at[0]] + fresh_at[1]
        aligned = rows * (end - start) + offsets
        gather = np.zeros(len(self._prompts) * (end - start), np.int64)
        gather[aligned] = np.arange(len(rows))
        total = self.columns + end
        ahead = np.arange(total)[None] > self.columns + np.arange(start, end)[:, None]
        bias = self._bias[:, None, :total].masked_fill(self._tensor(ahead)[None], MASKED).repeat(1, self._group, 1)
        layout = Layout(
            rows=len(self._prompts),
            width=end - start,
            columns=total,
            bias=bias,
            writes=self._tensor(rows * self.cache.own.shape[4] + self.columns + start + offsets),
            gather=self._tensor(gather),
            scatter=self._tensor(aligned),
            slots=None if self._kept is None else self._tensor(self._kept[flat]),
        )
        last = np.flatnonzero(offsets + start == self.width - 1) if end == self.width else np.zeros(1, np.int64)
        return layout, ids[flat], self._known[rows] + fresh_at[1], last

    def prefilled(self) -> None:
        """Note that all fresh columns are computed; they become known to the pool."""
        self.columns += self.width
        self._first_generated = self.columns
        at = 0
        for tokens, known, fresh in zip(self._prompts, self._known.tolist(), self._fresh.tolist(), strict=True):
            if self._kept is not None:
                self._pool.tree.insert(tokens, known, self._kept[at : at + fresh].copy())
            at += fresh

    def branch(self, owners: Ints) -> None:
        """Give every sample a row: row i continues prompt `owners[i]`."""
        import numpy as np
        import torch

        if len(self._prompts) == 1:  # what there is becomes shared by all
            self.cache.shared = torch.cat([self.cache.shared, self.cache.own[:, :, :, 0, : self.columns]], dim=3)
            self.columns = self._first_generated = 0
        if not np.array_equal(owners, np.arange(len(self._prompts))):
            self._select(owners, self.columns + _GROWTH)

    def step(self, tokens: Ints) -> tuple[Layout, Ints]:
        """Append one token to every row: the layout and the positions to compute it with."""
        import numpy as np

        if self.columns == self.cache.own.shape[4]:
            self._select(np.arange(len(self.lengths)), 2 * self.columns)
        self._generated.append(tokens)
        positions = self.lengths
        self.columns += 1
        self.lengths = self.lengths + 1
        return Layout(len(tokens), 1, self.columns, self._bias[:, None, : self.columns].expand(-1, self._group, -1)), positions

    def leave(self, gone: Ints, counts: Ints, staying: Ints) -> None:
        """Drop the rows `gone`; their first `counts` generated tokens become known to the pool."""
        import numpy as np

        slots = self._pool.tree.allocate(int(counts.sum()))
        if slots is not None and len(slots):
            own = self.cache.own
            columns = np.concatenate(
                [row * own.shape[4] + self._first_generated + np.arange(n) for row, n in zip(gone, counts, strict=True)]
            )
            values = own.reshape(*own.shape[:3], -1, own.shape[5]).index_select(3, self._tensor(columns))
            self._pool.tensor.index_copy_(3, self._pool.index(slots), values)
            written = np.array(self._generated, np.int32).T
            for row, count, end in zip(gone.tolist(), counts.tolist(), np.cumsum(counts).tolist(), strict=True):
                prompt = self._prompts[row]
                self._pool.tree.insert(prompt + written[row, :count].tobytes(), len(prompt) // WIDTH, slots[end - count : end].copy())
        if len(staying):
            self._select(staying, self.cache.own.shape[4])

    def _select(self, rows: Ints, capacity: int) -> None:
        own, columns = self.cache.own, self.columns
        chosen = self._scratch.take(*own.shape[:3], len(rows), capacity, own.shape[5])
        index = self._tensor(rows)
        chosen[..., :columns, :] = own[..., :columns, :].index_select(3, index)
        self.cache.own = chosen
        bias = self._bias.new_zeros(len(rows), capacity)
        bias[:, :columns] = self._bias[index, :columns]
        self._bias = bias
        self._prompts = [self._prompts[row] for row in rows.tolist()]
        self._generated = [tokens[rows] for tokens in self._generated]
        self.lengths = self.lengths[rows]

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self._pool.tensor.device)
