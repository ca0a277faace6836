"""A model in a local folder, run by plain transformers, as a policy.

Calls that are in flight together are answered by one batch, prefixes seen before are not computed again, and every sample
has a random stream of its own: (seed, state, draw) decides what is sampled, not what else runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay.core.canonical import content_key
from counterplay.core.errors import CounterplayError, PolicyError, UserError
from counterplay.core.nouns import Proposal, State, Usage
from counterplay.core.protocols import first_draw
from counterplay.replay.chat_parsing import MALFORMED, Parsed, parse_tagged, parse_with_template
from counterplay.replay.chat_rendering import ChatRenderer
from counterplay.replay.decoder import Decoder, Draw, Prompt, Sampling
from counterplay.replay.siblings import sibling_priors

if TYPE_CHECKING:
    import torch

_POOL_BYTES = 2**30
_POOL_TOKENS = 2**18
_WHOLE_FILE = 2**28  # larger files enter the fingerprint by size, beginning and end
_EDGE = 2**20


@dataclass(slots=True)
class _Request:
    state: State
    n: int
    start: int
    answer: asyncio.Future[list[Proposal]]
    prompt: Prompt = field(init=False)


class TransformersPolicy:
    """Samples actions from the causal language model in folder `path`, which needs a chat template.

    `temperature` 0 is greedy; `top_p` in (0, 1]. `max_new_tokens` bounds one action (finish reason `length`). `batch_size` is how many
    samples are decoded together. `dtype` is a torch name such as `bfloat16`, None as saved; `device` None is CUDA where there is one, else
    CPU. `cache_tokens` bounds the tokens whose keys and values are kept, None is what fits into 1 GiB, at most 262,144.

    `Proposal.logprob` sums log p of all sampled tokens, the end token among them, under the model's softmax at temperature 1. `prior` is
    exp(logprob / tokens) normalised over the distinct actions of one call; None where n is 1. Tokens of a prompt are counted
    once a call, on its first proposal. Raises UserError where the folder holds no such model.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 64,
        dtype: str | None = None,
        device: str | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        _check(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, batch_size=batch_size)
        folder = Path(path)
        self.name, self.seed = folder.name, seed
        self.tokenizer, model = _load(folder, dtype, device)
        self.renderer = ChatRenderer(self.tokenizer)
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.fingerprint = f"transformers:{folder_hash(folder)}:t{temperature:g}:p{top_p:g}:m{max_new_tokens}:s{seed}:{model.dtype}"
        self.decoder = Decoder(
            model,
            Sampling(temperature, top_p, _stops(model, self.tokenizer)),
            _pool_tokens(model) if cache_tokens is None else cache_tokens,
        )
        self._context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        _check_engine(self.decoder, model, self.name)
        self._pending: list[_Request] = []
        self._draining: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="counterplay-model")

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        """`n` samples of the next action. Raises PolicyError where the state does not fit into the model's context."""
        loop = asyncio.get_running_loop()
        request = _Request(state, n, first_draw.get(), loop.create_future())
        self._pending.append(request)
        if self._draining is None or self._draining.done() or self._draining.get_loop() is not loop:
            self._draining = loop.create_task(self._drain())
        return await request.answer

    def close(self) -> None:
        """Stop the worker and let go of the model."""
        self._worker.shutdown(wait=True)
        del self.decoder

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            await self._wave()
            requests = [request for request in self._pending if not request.answer.done()]
            self._pending.clear()
            await loop.run_in_executor(self._worker, self._answer, requests, loop)

    async def _wave(self) -> None:
        """Wait until no more calls arrive: everything that is ready to run has run."""
        quiet, waiting = 0, len(self._pending)
        while quiet < 3:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._pending) == waiting else 0
            waiting = len(self._pending)

    def _answer(self, requests: list[_Request], loop: asyncio.AbstractEventLoop) -> None:
        """In the worker thread: render, then answer in batches of prompts of similar length."""
        ready = []
        for request in requests:
            try:
                request.prompt = self._prompt(request)
                ready.append(request)
            except CounterplayError as error:
                loop.call_soon_threadsafe(_fail, [request], error)
        ready.sort(key=lambda request: len(request.prompt))
        while ready:
            batch, ready = self._cut(ready)
            try:
                self.decoder.generate([request.prompt for request in batch])
                answers = [self._proposals(request) for request in batch]
            except Exception as error:  # noqa: BLE001  out of memory and the like: the callers are told, the worker lives on
                failure = PolicyError(f"the model {self.name} failed: {type(error).__name__}: {error}", do="Try a smaller batch_size.")
                loop.call_soon_threadsafe(_fail, batch, failure)
            else:
                loop.call_soon_threadsafe(_deliver, batch, answers)

    def _cut(self, ready: list[_Request]) -> tuple[list[_Request], list[_Request]]:
        rows = 0
        for count, request in enumerate(ready):
            rows += request.n
            if count and rows > self.batch_size:
                return ready[:count], ready[count:]
        return ready, []

    def _prompt(self, request: _Request) -> Prompt:
        import numpy as np

        prompt = Prompt(self.renderer.prompt(request.state), [])
        room = min(self.max_new_tokens, self._context - len(prompt))
        if room < 1:
            got = f"a state of {len(prompt)} tokens for model {self.name}"
            raise PolicyError(
                got, f"fewer than its context of {self._context}", "Search from an earlier step, or use a model with a longer context."
            )
        for draw in range(request.start, request.start + request.n):
            digest = blake2b(f"{self.seed}\n{request.state.key}\n{draw}".encode(), digest_size=16).digest()
            prompt.draws.append(Draw(np.random.Generator(np.random.Philox(key=int.from_bytes(digest))).random(room)))
        return prompt

    def _proposals(self, request: _Request) -> list[Proposal]:
        draws = request.prompt.draws
        texts = self.tokenizer.batch_decode(
            [draw.tokens[:-1] if draw.stopped else draw.tokens for draw in draws], clean_up_tokenization_spaces=False
        )
        parsed = [self._parse(text) for text in texts]
        actions = [parse.action(f"{self.seed}\n{request.state.key}\n{request.start + at}") for at, parse in enumerate(parsed)]
        logprobs, lengths = [draw.logprob for draw in draws], [len(draw.tokens) for draw in draws]
        priors = sibling_priors([action.signature for action in actions], logprobs, lengths)
        return [
            Proposal(
                action, prior, draw.logprob, self._usage(request.prompt, at), self.name, _finish_reason(draw, parse), tuple(draw.tokens)
            )
            for at, (action, prior, draw, parse) in enumerate(zip(actions, priors, draws, parsed, strict=True))
        ]

    def _parse(self, text: str) -> Parsed:
        if getattr(self.tokenizer, "response_template", None) and "<tool_call>" not in text:
            return parse_with_template(self.tokenizer, text, self.renderer.opening_text())
        return parse_tagged(text)

    def _usage(self, prompt: Prompt, at: int) -> Usage:
        output = len(prompt.draws[at].tokens)
        return Usage(0, output) if at else Usage(len(prompt), output, prompt.cached)


def _deliver(batch: list[_Request], answers: list[list[Proposal]]) -> None:
    for request, answer in zip(batch, answers, strict=True):
        if not request.answer.done():
            request.answer.set_result(answer)


def _fail(batch: list[_Request], error: CounterplayError) -> None:
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(error)


def _finish_reason(draw: Draw, parsed: Parsed) -> str:
    if not draw.stopped:
        return "length"
    if parsed.malformed:
        return MALFORMED
    return "tool_calls" if parsed.calls else "stop"


def _check(*, temperature: float, top_p: float, max_new_tokens: int, batch_size: int) -> None:
    if not temperature >= 0:
        raise UserError(f"got temperature {temperature}", "a number that is not negative")
    if not 0 < top_p <= 1:
        raise UserError(f"got top_p {top_p}", "a number in (0, 1]")
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"got max_new_tokens {max_new_tokens}, batch_size {batch_size}", "numbers of at least 1")


def _load(folder: Path, dtype: str | None, device: str | None) -> tuple[Any, Any]:
    if not folder.is_dir():
        raise UserError(
            f"got model folder {folder}, which is not there", "a folder with config.json, weights and tokenizer", "Check the path."
        )
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"got folder {folder} without config.json (it holds {held})",
            "a transformers model folder",
            "Give the folder that save_pretrained wrote.",
        )
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from counterplay.replay.kv_cache import ATTENTION, packed_attention

    AttentionInterface.register(ATTENTION, packed_attention)
    bars = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype or "auto")
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        got = f"got folder {folder}, which transformers can't load: {first}"
        raise UserError(got, "a causal language model with a tokenizer", "Load it with AutoModelForCausalLM to see more.") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"got model folder {folder} without a chat template",
            "an instruction-tuned model",
            "Put its chat_template.jinja into the folder.",
        )
    return tokenizer, model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """End tokens: what the generation config says, the tokenizer's own, and `<|im_end|>` where it is a token."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    stops = {declared} if isinstance(declared, int) else set(declared or ())
    stops.add(tokenizer.eos_token_id)
    stops.add(tokenizer.get_vocab().get("<|im_end|>"))
    return frozenset(stop for stop in stops if stop is not None)


def _pool_tokens(model: Any) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return min(_POOL_TOKENS, _POOL_BYTES // int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize))


def _check_engine(decoder: Decoder, model: Any, name: str) -> None:
    """Compare the batch engine with the plain model on a few tokens, so that no architecture is run wrongly. Raises UserError."""
    import numpy as np
    import torch

    from counterplay.replay.kv_cache import ATTENTION

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    difference = float("inf")
    if kinds == {"full_attention"} and not window:
        tokens = np.arange(1, 13, dtype=np.int32) % config.vocab_size
        with torch.inference_mode():
            plain = model(input_ids=torch.from_numpy(tokens.astype(np.int64)).to(model.device)[None]).logits[0, -1].float()
        model.set_attn_implementation(ATTENTION)
        decoder.logits(tokens[:7].tobytes())
        difference = _relative(decoder.logits(tokens.tobytes()), plain)
    if not difference < (1e-3 if model.dtype.itemsize == 4 else 0.1):
        got = f"model {name} of type {config.model_type}, whose attention the batch engine does not reproduce"
        raise UserError(got, "a model with full attention in every layer", "Serve it (transformers serve, vllm) and use openai:MODEL.")


def _relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def folder_hash(folder: Path) -> str:
    """A key of a model folder's content, 32 hex digits. Files above 256 MiB count by size, first and last MiB."""
    parts = []
    for file in sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file() and entry.suffix in {".json", ".jinja", ".safetensors", ".bin", ".model", ".txt"}
    ):
        size = file.stat().st_size
        with file.open("rb") as stream:
            if size <= _WHOLE_FILE:
                content = stream.read()
            else:
                content = stream.read(_EDGE)
                stream.seek(-_EDGE, 2)
                content += stream.read()
        parts += [file.name, str(size), blake2b(content).hexdigest()]
    return content_key(*parts)
