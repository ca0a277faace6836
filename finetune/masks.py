"""Token ids and labels that train on sampled messages alone, whatever the chat template.

Where a sampled message begins and ends is found by rendering: what the policy was sent (the messages before it, with the
generation prompt) against the same with the message. A template that rewrites what came before (Qwen3 drops old
reasoning) makes one conversation several sequences, each exactly what was sent and answered.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

IGNORED = -100

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""OpenAI chat messages as dicts, arguments as objects."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rendered text and the character spans in it that are trained on: sampled messages with their end token."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render(tokenizer: Any, conversations: Sequence[Messages], tools: Sequence[Any] | None, *, ask: bool = False) -> list[str]:
    """The texts of conversations over one tool set; with `ask`, as a policy is sent them: ending in the generation prompt."""
    if not conversations:
        return []
    texts = tokenizer.apply_chat_template(
        [list(messages) for messages in conversations], tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=ask
    )
    return [str(text) for text in texts]


def segments(tokenizer: Any, messages: Messages, tools: Sequence[Any] | None, trained: Sequence[bool]) -> list[Segment]:
    """The sequences to train on, usually one. Messages after the last trained one are left out: no loss depends on them.

    Raises ValueError where `trained` does not align with `messages`, and whatever the template raises on them.
    """
    if len(trained) != len(messages):
        msg = f"got {len(trained)} training flags for {len(messages)} messages, wanted one each"
        raise ValueError(msg)
    ends = _end_tokens(tokenizer)
    done: list[Segment] = []
    indices = [i for i, flag in enumerate(trained) if flag]
    prompts = render(tokenizer, [messages[:i] for i in indices], tools, ask=True)
    answers = render(tokenizer, [messages[: i + 1] for i in indices], tools)
    for sent, answered in zip(prompts, answers, strict=True):
        start = _common(sent, answered)
        end = _end_of_message(answered, start, ends)
        spans: tuple[tuple[int, int], ...] = ()
        if done and sent.startswith(done[-1].text):
            spans = done.pop().spans
        done.append(Segment(answered[:end], (*spans, (start, end))))
    return done


def _common(sent: str, answered: str) -> int:
    """Where the answer begins: the end of the prompt, or earlier where the template renders it differently once it is answered."""
    return len(sent) if answered.startswith(sent) else len(os.path.commonprefix([sent, answered]))  # noqa: RUF071  texts, not paths


def _end_tokens(tokenizer: Any) -> tuple[str, ...]:
    return tuple({token.content for token in tokenizer.added_tokens_decoder.values() if token.special and not token.content.isspace()})


def _end_of_message(text: str, start: int, ends: tuple[str, ...]) -> int:
    """White space that a template writes after the end token is not the model's."""
    stripped = text.rstrip()
    return len(stripped) if len(stripped) > start and stripped.endswith(ends) else len(text)


def encode(tokenizer: Any, segment: Segment) -> dict[str, list[int]]:
    """`input_ids` and `labels` (IGNORED outside the spans) of one segment.

    Where a token would straddle a span's edge, the text is encoded piece by piece, as it is when a model is sent the prompt and
    writes the rest.
    """
    ids, offsets = _whole(tokenizer, segment.text)
    starts = {start for start, end in offsets if end > start} | {len(segment.text)}
    if offsets and all(edge in starts for span in segment.spans for edge in span):
        inside = _membership(segment.spans)
        return {"input_ids": ids, "labels": [token if inside(start) else IGNORED for token, (start, _) in zip(ids, offsets, strict=True)]}
    encoded: dict[str, list[int]] = {"input_ids": [], "labels": []}
    at = 0
    for start, end in segment.spans:
        for text, is_trained in ((segment.text[at:start], False), (segment.text[start:end], True)):
            piece, _ = _whole(tokenizer, text)
            encoded["input_ids"] += piece
            encoded["labels"] += piece if is_trained else [IGNORED] * len(piece)
        at = end
    return encoded


def _whole(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their character offsets; no offsets where the tokenizer can't tell."""
    if not getattr(tokenizer, "is_fast", False):
        return tokenizer(text, add_special_tokens=False)["input_ids"], []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _membership(spans: Sequence[tuple[int, int]]) -> Any:
    """A test for positions asked in rising order."""
    left = list(spans)

    def inside(position: int) -> bool:
        while left and position >= left[0][1]:
            left.pop(0)
        return bool(left) and position >= left[0][0]

    return inside


def tokenised(tokenizer: Any, messages: Messages, tools: Sequence[Any] | None, trained: Sequence[bool]) -> list[dict[str, Any]]:
    """Ready sequences for SFTTrainer: `input_ids` and `labels`, which TRL takes as they are."""
    return [encode(tokenizer, segment) for segment in segments(tokenizer, messages, tools, trained)]


def tokenised_pair(tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Ready ids for DPOTrainer: `prompt_ids` as the policy was sent them, `chosen_ids` and `rejected_ids` as it would write them.

    Where a template renders the prompt alone differently, the completions start where the texts diverge.
    """
    prompt, tools = list(row["prompt"]), row.get("tools")
    (sent,) = render(tokenizer, [prompt], tools, ask=True)
    texts = render(tokenizer, [[*prompt, *row[side]] for side in ("chosen", "rejected")], tools)
    start = min(_common(sent, text) for text in texts)
    ends = _end_tokens(tokenizer)
    written = [text[start : _end_of_message(text, start, ends)] for text in texts]
    prompt_ids, chosen_ids, rejected_ids = (_whole(tokenizer, text)[0] for text in (sent[:start], *written))
    return {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
