"""Rows in the file formats of fine-tuning services and other trainers, one JSON object a line.

`openai`: chat fine-tuning as OpenAI defined it and Fireworks and Together take it, arguments as text, `weight` 0 on answers that are not to
be trained on. `sharegpt`: `conversations` with `from` and `value`, as LLaMA-Factory reads tool calls in it. What a format can't
say is left out of its file with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from counterplay.core.canonical import dumps
from counterplay.finetune.rows import Kind

Line: TypeAlias = dict[str, Any]
Lined: TypeAlias = Literal["openai", "sharegpt"]

_ROLES = {"user": "human", "assistant": "gpt", "tool": "observation"}
_OURS, _THEIRS = ("gpt", "function_call"), ("human", "observation")


class UnsayableError(ValueError):
    """A row that a format has no words for; the message is the reason."""


def openai_line(kind: Kind, record: Mapping[str, Any]) -> Line:
    """A row of kind sft or dpo as a line for a fine-tuning service. Raises UnsayableError for other kinds and longer completions."""
    tools = {"tools": record["tools"]} if record["tools"] else {}
    if kind == "sft":
        pairs = zip(record["messages"], record["trained"], strict=True)
        messages = [_wire(fields, trained) for fields, trained in pairs]
        return {"messages": messages, **tools, **({"parallel_tool_calls": True} if tools else {})}
    if kind == "dpo":
        sides = [[_wire(fields) for fields in record[side]] for side in ("chosen", "rejected")]
        if any(len(side) != 1 for side in sides):
            raise UnsayableError("more than one message a side")
        request = {"messages": [_wire(fields) for fields in record["prompt"]], **tools, "parallel_tool_calls": True}
        return {"input": request, "preferred_output": sides[0], "non_preferred_output": sides[1]}
    raise UnsayableError(f"a row of kind {kind}")


def sharegpt_line(kind: Kind, record: Mapping[str, Any]) -> Line:
    """A row of kind sft, dpo or kto in ShareGPT form.

    Raises UnsayableError for other kinds, where turns do not alternate, where text stands beside a tool call or reasoning before an answer,
    where a side or a completion is longer than a message, and where an answer is not to be trained on, since the format has no mask.
    """
    columns = {"sft": ("messages",), "dpo": ("prompt",), "kto": ("prompt", "completion")}.get(kind)
    if columns is None:
        raise UnsayableError(f"a row of kind {kind}")
    messages = [fields for column in columns for fields in record[column]]
    line: Line = {}
    if messages and messages[0].get("role") in ("system", "developer"):
        line["system"] = _text(messages[0])
        messages = messages[1:]
    if not all(on for fields, on in _aimed_at(kind, record) if _is_answer(fields)):
        raise UnsayableError("an answer that is not to be trained on")
    if kind == "kto" and len(record["completion"]) != 1:
        raise UnsayableError("more than one message in the completion")
    turns = list(_turns(messages))
    while kind != "dpo" and turns and turns[-1]["from"] in _THEIRS:
        turns.pop()  # what came after the last answer is in no loss
    sides = {side: list(_turns(record[side])) for side in ("chosen", "rejected")} if kind == "dpo" else {}
    if any(len(side) != 1 for side in sides.values()):
        raise UnsayableError("more than one message a side")
    _check(turns, ends_with=_THEIRS if kind == "dpo" else _OURS)
    line["conversations"] = turns
    line |= {name: side[0] for name, side in sides.items()}
    if kind == "kto":
        line["kto_tag"] = record["label"]
    if record["tools"]:
        line["tools"] = dumps([tool.get("function") or tool for tool in record["tools"]])
    return line


FORMATS: Mapping[str, Callable[[Kind, Mapping[str, Any]], Line]] = MappingProxyType({"openai": openai_line, "sharegpt": sharegpt_line})


def _wire(fields: Mapping[str, Any], trained: bool = True) -> Line:
    """A message as an API takes it: arguments as text, and a weight of 0 where an answer is not to be trained on."""
    message = dict(fields)
    if message.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    if _is_answer(message) and not trained:
        message["weight"] = 0
    return message


def _call(call: Mapping[str, Any]) -> Line:
    function = dict(call.get("function") or {key: call[key] for key in ("name", "arguments") if key in call})
    arguments = function.get("arguments", "")
    function["arguments"] = arguments if isinstance(arguments, str) else dumps(arguments)
    return {"id": call.get("id"), "type": "function", "function": function}


def _aimed_at(kind: Kind, record: Mapping[str, Any]) -> Iterable[tuple[Mapping[str, Any], bool]]:
    """The messages that a format without masks trains on, and whether they are to be."""
    columns = {"sft": (("messages", "trained"),), "kto": (("completion", "completion_trained"),)}.get(kind, ())
    return (pair for column, flags in columns for pair in zip(record[column], record[flags], strict=True))


def _is_answer(fields: Mapping[str, Any]) -> bool:
    return fields.get("role") == "assistant"


def _turns(messages: Iterable[Mapping[str, Any]]) -> Iterable[Line]:
    """Turns of the format; results of parallel calls are one observation, on a line each."""
    results: list[str] = []
    for fields in messages:
        if fields.get("role") == "tool":
            results.append(_text(fields))
            continue
        if results:
            yield {"from": "observation", "value": "\n".join(results)}
            results = []
        yield _turn(fields)
    if results:
        yield {"from": "observation", "value": "\n".join(results)}


def _turn(fields: Mapping[str, Any]) -> Line:
    if fields.get("reasoning_content") or fields.get("reasoning"):
        raise UnsayableError("reasoning")
    calls = [call.get("function") or call for call in fields.get("tool_calls") or ()]
    role = _ROLES.get(str(fields.get("role")))
    if role is None:
        raise UnsayableError(f"a {fields.get('role')} message in the middle")
    if not calls:
        return {"from": role, "value": _text(fields)}
    if _text(fields).strip():
        raise UnsayableError("text beside a tool call")
    said = [{"name": call.get("name"), "arguments": call.get("arguments")} for call in calls]
    return {"from": "function_call", "value": dumps(said[0] if len(said) == 1 else said)}


def _text(fields: Mapping[str, Any]) -> str:
    content = fields.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    raise UnsayableError("content that is not text")


def _check(turns: Sequence[Line], ends_with: tuple[str, ...]) -> None:
    """Human turns and observations stand at odd places, answers at even ones; the last is on the side of `ends_with`."""
    wanted = [_THEIRS if place % 2 == 0 else _OURS for place in range(len(turns))]
    alternate = all(turn["from"] in side for turn, side in zip(turns, wanted, strict=True))
    if not turns or not alternate or turns[-1]["from"] not in ends_with:
        raise UnsayableError("turns that do not alternate")
