"""Batched sampling from a causal language model of transformers, with every prefix computed about once.

What a prompt shares with anything seen before comes out of the pool, what the prompts of a batch share with each other is
computed once, and n samples of one prompt branch off one prefill. Every row draws from random numbers of its own, so what
is sampled does not depend on what else is in the batch (up to rounding of the logits, about 1e-6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterplay.replay.kv_batch import Batch
from counterplay.replay.kv_cache import Layout, Scratch
from counterplay.replay.kv_pool import WIDTH, KVPool, common_prefix

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_BIAS_ELEMENTS = 2**24  # a prefill is cut into pieces whose attention bias stays below this
_WORTH_SHARING = 128  # tokens that a prefill of its own for a common prefix must save
_CROWDED = 0.75  # finished rows are cleared out once this fraction of the rows or less is alive


@dataclass(slots=True)
class Draw:
    """One sample of a prompt. `uniforms` holds one random number in [0, 1) for each token that may be generated; the rest is the result."""

    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    stopped: bool = False

    @property
    def full(self) -> bool:
        return self.stopped or len(self.tokens) >= len(self.uniforms)


@dataclass(slots=True)
class Prompt:
    """Token ids as int32 bytes, and the samples wanted. `cached` is set to how many of its tokens had been computed before."""

    tokens: bytes
    draws: list[Draw]
    cached: int = 0

    def __len__(self) -> int:
        return len(self.tokens) // WIDTH


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy. `top_p` keeps the smallest set of tokens that holds this much probability."""

    temperature: float = 1.0
    top_p: float = 1.0
    stops: frozenset[int] = frozenset()


class Decoder:
    """A model and its pool. Not thread-safe: one batch at a time."""

    def __init__(self, model: Any, sampling: Sampling, pool_tokens: int) -> None:
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.model, self.sampling = model, sampling
        self.forwarded_tokens = 0
        self.forward_passes = 0
        self._group = config.num_attention_heads // heads
        self._pool = KVPool(
            layers=config.num_hidden_layers, heads=heads, size=size, capacity=pool_tokens, dtype=model.dtype, device=model.device
        )
        self._scratch = Scratch(model.dtype, model.device)

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are in the pool."""
        return len(self._pool.tree)

    def generate(self, prompts: Sequence[Prompt]) -> None:
        """Fill in every draw of every prompt, as one batch. Equal prompts are prefilled once."""
        import numpy as np
        import torch

        with torch.inference_mode():
            for prompt in prompts:
                prompt.cached = min(len(self._pool.tree.match(prompt.tokens)), len(prompt) - 1)
            unique = sorted({prompt.tokens for prompt in prompts})
            self._warm(unique)
            batch, logits = self._prefill(unique)
            rows = {tokens: row for row, tokens in enumerate(unique)}
            owners = np.array([rows[prompt.tokens] for prompt in prompts for _ in prompt.draws])
            batch.branch(owners)
            self._decode(batch, logits[torch.from_numpy(owners)], [draw for prompt in prompts for draw in prompt.draws])

    def logits(self, tokens: bytes) -> torch.Tensor:
        """The logits after a prompt, shape (vocabulary,)."""
        import torch

        with torch.inference_mode():
            return self._prefill([tokens])[1][0]

    def _warm(self, sequences: list[bytes]) -> None:
        """Compute what several of the (sorted) sequences share and nobody has computed yet, once for all of them."""
        if len(sequences) < 2:
            return
        shared = common_prefix(sequences[0], sequences[-1])
        head = sequences[0][: shared * WIDTH]
        if (shared - len(self._pool.tree.match(head))) * (len(sequences) - 1) > _WORTH_SHARING:
            self._prefill([head])
        groups: dict[bytes, list[bytes]] = {}
        for tokens in sequences:
            groups.setdefault(tokens[shared * WIDTH : (shared + 1) * WIDTH], []).append(tokens)
        for group in groups.values():
            self._warm(group)

    def _prefill(self, sequences: list[bytes]) -> tuple[Batch, torch.Tensor]:
        """Compute what is not known of (sorted) sequences. Also gives the last logits of each, shape (rows, vocabulary)."""
        import torch

        batch = Batch(self._pool, self._scratch, self._group, sequences, self._reserve(sequences))
        piece = max(1, _BIAS_ELEMENTS // (len(sequences) * self._group * (batch.columns + batch.width)))
        logits = torch.empty(0)
        for start in range(0, batch.width, piece):
            layout, ids, positions, last = batch.prefill(start, min(start + piece, batch.width))
            logits = self._forward(batch, layout, ids, positions, last)
        batch.prefilled()
        return batch, logits

    def _reserve(self, sequences: list[bytes]) -> tuple[list[Ints], Ints | None]:
        """Pool slots of the known prefix of each sequence (never all of it) and free ones for what follows, None where the pool is full."""
        matched = [self._pool.tree.match(tokens)[: len(tokens) // WIDTH - 1] for tokens in sequences]
        # making room may evict what was just found; its keys stay in place until the batch, which copies them first, writes its own
        return matched, self._pool.tree.allocate(sum(map(len, sequences)) // WIDTH - sum(map(len, matched)))

    def _forward(self, batch: Batch, layout: Layout, ids: Ints, positions: Ints, last: Ints | None = None) -> torch.Tensor:
        """One pass over packed tokens: the logits at `last`, or of all of them, shape (positions, vocabulary)."""
        import torch

        device = self.model.device
        batch.cache.layout = layout
        self.forwarded_tokens += len(ids)
        self.forward_passes += 1
        out = self.model(
            input_ids=torch.from_numpy(ids).to(device)[None],
            position_ids=torch.from_numpy(positions).to(device)[None],
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=0 if last is None else torch.from_numpy(last).to(device),
        )
        logits: torch.Tensor = out.logits[0].float()
        return logits

    def _decode(self, batch: Batch, logits: torch.Tensor, draws: list[Draw]) -> None:
        import numpy as np

        uniforms = np.zeros((len(draws), max(len(draw.uniforms) for draw in draws)))
        for row, draw in enumerate(draws):
            uniforms[row, : len(draw.uniforms)] = draw.uniforms
        for at in range(uniforms.shape[1]):
            tokens = self._sample(logits, uniforms[:, at], draws)
            full = np.array([draw.full for draw in draws])
            staying = np.flatnonzero(~full)
            if len(staying) <= _CROWDED * len(draws):
                gone = np.flatnonzero(full)
                batch.leave(gone, np.array([len(draws[row].tokens) - 1 for row in gone.tolist()]), staying)
                draws, uniforms, tokens = [draws[row] for row in staying.tolist()], uniforms[staying], tokens[staying]
            if not draws:
                return
            logits = self._forward(batch, *_with_ids(batch, tokens))

    def _sample(self, logits: torch.Tensor, uniforms: NDArray[np.float64], draws: list[Draw]) -> Ints:
        """One token a row by inverse transform sampling, noted with its log-probability at temperature 1 where the draw goes on."""
        import torch

        if self.sampling.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            probs = (logits / self.sampling.temperature).softmax(-1)
            if self.sampling.top_p < 1:
                probs = _nucleus(probs, self.sampling.top_p)
            mass = probs.cumsum(-1, dtype=torch.float64)
            points = torch.from_numpy(uniforms).to(logits.device)[:, None] * mass[:, -1:]
            tokens = torch.searchsorted(mass, points, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
        logprobs = (logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
        for draw, token, logprob in zip(draws, tokens.tolist(), logprobs, strict=True):
            if not draw.full:
                draw.tokens.append(token)
                draw.logprob += logprob
                draw.stopped = token in self.sampling.stops
        ids: Ints = tokens.cpu().numpy()
        return ids


def _with_ids(batch: Batch, tokens: Ints) -> tuple[Layout, Ints, Ints]:
    layout, positions = batch.step(tokens)
    return layout, tokens, positions


def _nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero every token outside the smallest set of most probable tokens that holds `top_p`."""
    ordered, order = probs.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    return probs.scatter(-1, order, ordered)
