"""Answers about datasets: what the card says, what was left out, and rows as the trainer will see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterplay import console
from counterplay.core.store.viewing import TraceIndex
from counterplay.viewing.asking import MissingError, Query
from counterplay.viewing.conversation import View, message_view, tool_view

if TYPE_CHECKING:
    from counterplay.finetune.records import Record

WINDOW, LARGEST = 50, 500
PREVIEW, FACET = 160, 200
_FIGURES: tuple[str, ...] = ("score", "weight", "probability", "margin", "label", "kind", "played", "visits", "value_sum")
_FIGURES += tuple(f"{side}_{name}" for side in ("chosen", "rejected") for name in ("visits", "value_sum"))
_TAUGHT = ("chosen", "completion", "completions", "messages", "prompt")
_SIDES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "sft": (("messages", ""),),
    "dpo": (("chosen", "prompt"), ("rejected", "prompt")),
    "reward": (("chosen", "prompt"), ("rejected", "prompt")),
    "kto": (("completion", "prompt"),),
    "grpo": (("prompt", ""),),
    "prm": (("completions", "prompt"),),
}


def summary(name: str, folder: Path, told: View) -> View:
    from counterplay.finetune.kinds import LAYOUTS

    kept = {field: console.plain(told.get(field) or {}) for field in ("rows", "tasks", "dropped")}
    layout = LAYOUTS.get(told["kind"])
    return {"id": name, "name": folder.name, "kind": told["kind"], "title": layout.title if layout else told["kind"], **kept}


def detail(name: str, folder: Path, told: View) -> View:
    card = folder / "README.md"
    fields = ("grades", "algorithms", "gates", "settings", "sources")
    plain = ("tokens", "max_length", "label_noise", "labels")
    return {
        **summary(name, folder, told),
        **{field: console.plain(told.get(field) or {}) for field in fields},
        **{field: console.plain(told.get(field)) for field in plain},
        "verifiers": list(told.get("verifiers") or ()),
        "logged": told.get("logged") or 0,
        "licence": told.get("licence") or "unknown",
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    }


def drops(told: View, query: Query) -> View:
    offset, limit = query.window(100, LARGEST)
    reason = query.text("reason") or None
    rows = [drop for drop in told.get("drops") or () if reason is None or drop["reason"] == reason]
    shown = [{"reason": drop["reason"], "name": drop["name"], "detail": drop.get("detail") or ""} for drop in rows[offset : offset + limit]]
    return {"total": len(rows), "offset": offset, "rows": shown}


def row_list(records: Sequence[Record], kind: str, query: Query) -> View:
    """A window of the rows of one split that pass the filters, and what there is to filter by."""
    offset, limit = query.window(WINDOW, LARGEST)
    passed = [index for index, record in enumerate(records) if _passes(record, kind, query)]
    facets = {name: Counter(str(record.get(name) or "") for record in records) for name in ("task", "grade", "algorithm")}
    return {
        "total": len(passed),
        "offset": offset,
        "rows": [row_summary(index, records[index], kind) for index in passed[offset : offset + limit]],
        "facets": {
            name: [{"value": value, "count": count} for value, count in counts.most_common(FACET)] for name, counts in facets.items()
        },
    }


def _passes(record: Record, kind: str, query: Query) -> bool:
    for name in ("task", "grade", "algorithm", "search"):
        asked = query.text(name)
        if asked and str(record.get(name) or "") != asked:
            return False
    trace, text = query.text("trace"), (query.text("text") or "").casefold()
    if trace and trace not in (record.get("traces") or ()):
        return False
    return not text or any(text in message["wire"].casefold() or text in message["text"].casefold() for message in _views(record, kind))


def _views(record: Record, kind: str) -> Iterator[View]:
    from counterplay.core.nouns import Message

    for column in dict.fromkeys(name for pair in _SIDES[kind] for name in pair if name):
        yield from (message_view(Message.from_openai(fields)) for fields, _ in _flat(record[column]))


def row_summary(index: int, record: Record, kind: str) -> View:
    taught = next(column for column in _TAUGHT if column in record)
    flat = [fields for fields, _ in _flat(record[taught])]
    return {
        "index": index,
        "name": record.get("name") or str(index),
        "task": record.get("task"),
        "grade": record.get("grade") or "",
        "algorithm": record.get("algorithm") or "",
        "logged": bool(record.get("logged")),
        "messages": sum(len(_flat(record[column])) for column in dict.fromkeys(n for pair in _SIDES[kind] for n in pair if n)),
        "preview": _preview(flat),
        "figures": {name: console.plain(record[name]) for name in _FIGURES if name in record},
    }


def _preview(messages: Sequence[View]) -> str:
    from counterplay.core.nouns import Message
    from counterplay.search.reading import clipped

    answers = [fields for fields in messages if fields.get("role") == "assistant"] or messages
    if not answers:
        return ""
    message = Message.from_openai(answers[-1])
    return clipped(message.signature if message.tool_calls else message.content_text, PREVIEW)


def row_detail(index: TraceIndex, record: Record, kind: str, number: int, tokenizer: Any) -> View:
    """One row as the trainer will see it; without a tokenizer (None), its messages."""
    from counterplay.core.nouns import ToolSpec

    return {
        "row": row_summary(number, record, kind),
        "kind": kind,
        "tools": [tool_view(ToolSpec.from_openai(fields)) for fields in record.get("tools") or ()],
        "sides": [_side(record, kind, column, shared, tokenizer) for column, shared in _SIDES[kind]],
        "lineage": lineage(index, record),
    }


def _side(record: Record, kind: str, column: str, shared: str, tokenizer: Any) -> View:
    prompt, own = _flat(record[shared]) if shared else [], _flat(record[column])
    trained = [False] * len(prompt) + _trained(record, kind, column, own)
    weights = record.get("step_weights") or ()
    messages = []
    for place, (fields, step) in enumerate([*prompt, *own]):
        weight = weights[place] if not shared and place < len(weights) else None
        shown = _row_message(fields, trained=trained[place], shared=place < len(prompt), weight=weight)
        mark = place >= len(prompt) and step is not None and fields is record[column][step][0]
        messages.append({**shown, "label": _label(record, step) if mark and step is not None else None})
    rendered, note = None, "No tokenizer was given: --tokenizer MODEL_FOLDER shows the very text that is trained on."
    if tokenizer is not None:
        rendered, note = _rendered(record, [fields for fields, _ in [*prompt, *own]], trained, tokenizer)
    return {"name": column, "messages": messages, "rendered": rendered, "note": note}


def _trained(record: Record, kind: str, column: str, own: Sequence[tuple[View, int | None]]) -> list[bool]:
    """What is in the loss, or, where values are learned, what is judged."""
    flags = record.get("trained" if kind == "sft" else f"{column}_trained")
    if flags and len(flags) == len(own):
        return [bool(flag) for flag in flags]
    if kind == "grpo":
        return [False] * len(own)
    return [fields.get("role") == "assistant" for fields, _ in own]


def _row_message(fields: View, *, trained: bool, shared: bool, weight: float | None) -> View:
    from counterplay.core.nouns import Message

    message = Message.from_openai(fields)
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    return {**message_view(message), "trained": trained, "shared": shared, "calls": calls, "weight": weight}


def _label(record: Record, step: int) -> View | None:
    def at(name: str) -> Any:
        values = record.get(name) or ()
        return console.plain(values[step]) if step < len(values) else None

    value = at("labels")
    return None if value is None else {"value": value, "low": at("low"), "high": at("high"), "lines": at("lines")}


def _rendered(record: Record, messages: Sequence[View], trained: Sequence[bool], tokenizer: Any) -> tuple[list[View] | None, str]:
    """The text of training in pieces, and why there is none."""
    from counterplay.finetune.exactness import recorded_in
    from counterplay.finetune.masks import IGNORED, encode, render, segments

    tools = record.get("tools")
    try:
        if not any(trained):
            text = render(tokenizer, [messages], tools)[0]
            tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            return [{"pieces": [{"text": text, "trained": False}], "tokens": tokens, "trained_tokens": 0}], ""
        made = []
        for segment in segments(tokenizer, messages, tools, trained, recorded_in(record)):
            labels = encode(tokenizer, segment)["labels"]
            kept = sum(label != IGNORED for label in labels)
            made.append({"pieces": list(_pieces(segment.text, segment.spans)), "tokens": len(labels), "trained_tokens": kept})
    except Exception as error:  # noqa: BLE001  a chat template is foreign code and may raise anything; the row is shown without it
        return None, f"The chat template refuses this row: {type(error).__name__}: {error}"[:300]
    return made, ""


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[View]:
    at = 0
    for start, end in spans:
        if start > at:
            yield {"text": text[at:start], "trained": False}
        yield {"text": text[start:end], "trained": True}
        at = end
    if at < len(text):
        yield {"text": text[at:], "trained": False}


def lineage(index: TraceIndex, record: Record) -> View:
    traces, nodes, search = list(record.get("traces") or ()), list(record.get("nodes") or ()), record.get("search") or ""
    held = index.held(traces) if traces else set()
    places = index.node_places(search, nodes) if search else None
    return {
        "task": record.get("task"),
        "traces": [{"id": trace, "held": trace in held} for trace in traces],
        "sessions": list(record.get("sessions") or ()),
        "search": search,
        "search_held": places is not None,
        "algorithm": record.get("algorithm") or "",
        "fork_step": record.get("fork_step"),
        "nodes": [{"key": key, "index": (places or {}).get(key)} for key in nodes],
        "verifiers": list(record.get("verifiers") or ()),
        "grade": record.get("grade") or "",
        "agent": record.get("agent"),
    }


def _flat(column: Sequence[Any]) -> list[tuple[View, int | None]]:
    """The messages of a column, each with the number of the list it lies in; None where messages are the items."""
    made: list[tuple[View, int | None]] = []
    for number, item in enumerate(column or ()):
        made += [(fields, number) for fields in item] if isinstance(item, list) else [(item, None)]
    return made


def split_of(told: View, name: str | None) -> str:
    """The split that is asked for; the first with rows where none is. Raises MissingError where there is none of that name."""
    rows: Mapping[str, int] = told["rows"]
    split = name or next((each for each, count in rows.items() if count), "")
    if not rows.get(split):
        raise MissingError(f"no split {split!r}", f"one of {', '.join(each for each, count in rows.items() if count) or 'none'}")
    return split
