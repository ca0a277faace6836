"""Token ids and labels that train on sampled messages alone, whatever the chat template.

Calls that only append become one sequence with a mask, whose tokens are sent and answered exactly as the policy's were. A template that
rewrites what came before (Qwen3 drops old reasoning) makes one conversation several sequences. Where the ids that a policy sampled
were recorded, they are trained on as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterplay.finetune.answers import Messages, added_pattern, answers, render, shared

__all__ = ["IGNORED", "Messages", "Segment", "encode", "render", "segments", "spliced", "tokenised", "tokenised_pair"]

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Segment:
    """Rendered text and the character spans in it that are trained on: sampled messages with their end token.

    `messages`, `recorded` and `as_sent` align with `spans`: which message it is, the ids recorded for it (None: none), and whether
    what comes before it is what the policy was sent, which it is but for templates that open an answered turn otherwise.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    messages: tuple[int, ...] = ()
    recorded: tuple[tuple[int, ...] | None, ...] = ()
    as_sent: tuple[bool, ...] = ()


def segments(
    tokenizer: Any,
    messages: Messages,
    tools: Sequence[Any] | None,
    trained: Sequence[bool],
    recorded: Sequence[Sequence[int] | None] | None = None,
) -> list[Segment]:
    """The sequences to train on, usually one. Messages after the last trained one are left out: no loss depends on them.

    `recorded` aligns with `messages`: the ids that the policy sampled, end token included, None where they are not known. A message whose
    recorded text is not what the template makes of it ends its sequence, for later calls were sent the template's wording.
    Raises ValueError where flags or ids do not align with `messages` or the template leaves out what a message holds, and
    whatever the template raises on them.
    """
    for name, given in (("training flags", trained), ("entries of recorded ids", recorded)):
        if given is not None and len(given) != len(messages):
            msg = f"got {len(given)} {name} for {len(messages)} messages, wanted one each"
            raise ValueError(msg)
    done: list[Segment] = []
    for answer in answers(tokenizer, messages, tools, [i for i, flag in enumerate(trained) if flag], recorded):
        before = done.pop() if done and answer.context.startswith(done[-1].text) else Segment("", ())
        start, end = len(answer.context), len(answer.context) + len(answer.text)
        done.append(
            Segment(
                answer.context + answer.text,
                (*before.spans, (start, end)),
                (*before.messages, answer.index),
                (*before.recorded, answer.ids),
                (*before.as_sent, answer.as_sent),
            )
        )
    return done


def encode(tokenizer: Any, segment: Segment) -> dict[str, list[int]]:
    """`input_ids` and `labels` (IGNORED outside the spans) of one segment."""
    ids, places = spliced(tokenizer, segment)
    labels = [IGNORED] * len(ids)
    for start, end in places:
        labels[start:end] = ids[start:end]
    return {"input_ids": ids, "labels": labels}


def spliced(tokenizer: Any, segment: Segment) -> tuple[list[int], list[tuple[int, int]]]:
    """The token ids of a segment, and where in them each span lies. Recorded ids stand as they are.

    Where a token would straddle a span's edge, or a prompt alone would be cut into other tokens, the text is encoded piece by piece, as it
    is when a model is sent the prompt and writes the rest.
    """
    pieces = _cut(tokenizer, segment) or _piecewise(tokenizer, segment)
    ids: list[int] = []
    places = []
    recorded = segment.recorded or (None,) * len(segment.spans)
    for (context, answer), known in zip(pieces, recorded, strict=True):
        ids += context
        places.append((len(ids), len(ids) + len(answer if known is None else known)))
        ids += answer if known is None else known
    return ids, places


def _cut(tokenizer: Any, segment: Segment) -> list[tuple[list[int], list[int]]]:
    """Context and answer of every span, cut out of one encoding of the whole; nothing where the edges do not fit."""
    text, spans = segment.text, segment.spans
    ids, offsets = _whole(tokenizer, text)
    at: dict[int, int] = {}
    for place, (start, end) in enumerate(offsets):
        if end > start:
            at.setdefault(start, place)
    at[len(text)] = len(ids)
    if not offsets or not all(edge in at for span in spans for edge in span):
        return []
    marks = [0, *(match.start() for match in added_pattern(tokenizer).finditer(text))]
    alone = [marks[max(bisect_left(marks, start) - 1, 0)] for start, _ in spans]
    prompts = tokenizer([text[mark:start] for mark, (start, _) in zip(alone, spans, strict=True)], add_special_tokens=False)["input_ids"]
    if any(mark not in at or ids[at[mark] : at[start]] != prompt for mark, (start, _), prompt in zip(alone, spans, prompts, strict=True)):
        return []
    befores = [0, *(end for _, end in spans)]
    return [(ids[at[before] : at[start]], ids[at[start] : at[end]]) for before, (start, end) in zip(befores, spans, strict=False)]


def _piecewise(tokenizer: Any, segment: Segment) -> list[tuple[list[int], list[int]]]:
    befores = [0, *(end for _, end in segment.spans)]
    pairs = zip(befores, segment.spans, strict=False)
    text = segment.text
    return [(_whole(tokenizer, text[before:start])[0], _whole(tokenizer, text[start:end])[0]) for before, (start, end) in pairs]


def _whole(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their character offsets; no offsets where the tokenizer can't tell."""
    if not getattr(tokenizer, "is_fast", False):
        return tokenizer(text, add_special_tokens=False)["input_ids"], []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def tokenised(
    tokenizer: Any,
    messages: Messages,
    tools: Sequence[Any] | None,
    trained: Sequence[bool],
    recorded: Sequence[Sequence[int] | None] | None = None,
) -> list[dict[str, Any]]:
    """Ready sequences for SFTTrainer, as `segments` makes them: `input_ids` and `labels`, which TRL takes as they are."""
    return [encode(tokenizer, segment) for segment in segments(tokenizer, messages, tools, trained, recorded)]


def tokenised_pair(tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Ready ids for DPOTrainer: `prompt_ids` as the policy was sent them, `chosen_ids` and `rejected_ids` as it would write them.

    A side of several messages comes with a mask, `chosen_mask` or `rejected_mask`: 1 where a model sampled the token, by the row's
    `chosen_trained` and `rejected_trained`. Where a template renders the two prompts differently, the sides start where the texts
    diverge. Raises ValueError where the template rewrites a side as it goes on, so that it is not one text.
    """
    sides = {side: _side(tokenizer, row, side) for side in ("chosen", "rejected")}
    contexts = [segment.text[: segment.spans[0][0]] for segment in sides.values()]
    start = min(shared(contexts[0], segment.text) for segment in sides.values())
    pair: dict[str, Any] = {"prompt_ids": _whole(tokenizer, contexts[0][:start])[0]}
    for side, segment in sides.items():
        first = len(row[side]) == 1
        spans = [(0 if first else begin - start, end - start) for begin, end in segment.spans]
        encoded = encode(tokenizer, Segment(segment.text[start:], tuple(spans)))
        pair[f"{side}_ids"] = encoded["input_ids"]
        if len(row[side]) > 1:
            pair[f"{side}_mask"] = [int(label != IGNORED) for label in encoded["labels"]]
    return pair


def _side(tokenizer: Any, row: Mapping[str, Any], side: str) -> Segment:
    prompt, written = list(row["prompt"]), list(row[side])
    flags = row.get(f"{side}_trained") or [message["role"] == "assistant" for message in written]
    made = segments(tokenizer, [*prompt, *written], row.get("tools"), [*(False for _ in prompt), *flags])
    if len(made) != 1:
        msg = f"the chat template makes {len(made)} texts of the {side} side, wanted one"
        raise ValueError(msg)
    return made[0]
