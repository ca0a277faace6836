"""Foreign message and tool dicts into `Message` and `ToolSpec`, one way for every connector.

What already is in OpenAI form keeps its exact fields and key order. What is not is put right where its meaning is plain (the old
`function_call` form, object content, flat tool definitions) and refused with a ValueError that says why where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, overload

import orjson

from counterplay.connectors.facts import parse
from counterplay.core.canonical import canonical, dumps, loads
from counterplay.core.effects import EXTERNAL, Effect
from counterplay.core.nouns import Message, ToolSpec

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning")

_KNOWN_ROLES = (*ROLES, "function")
_TEXTS = ("tool_call_id", "name", *REASONING)
_TEXT = (str, type(None))
_PLAIN = {str, int, bool, type(None)}
_ROLE_FIRST = tuple(f'{{"role":"{role}"' for role in ROLES)


class KnownPrompt(Sequence[Message]):
    """Messages that have been read and shared already: those of another prompt `before` them, and `news` behind those.

    A prompt that grows takes only what its news take. `keys` are running hashes of `match_key`s, one behind each of the news; None
    until somebody has worked them out.
    """

    __slots__ = ("before", "keys", "news", "start")

    def __init__(self, news: Iterable[Message] = (), before: KnownPrompt | None = None) -> None:
        self.news, self.before = tuple(news), before
        self.start = 0 if before is None else len(before)
        self.keys: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return self.start + len(self.news)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.behind(0))

    @overload
    def __getitem__(self, place: int) -> Message: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Message, ...]: ...
    def __getitem__(self, place: int | slice) -> Message | tuple[Message, ...]:
        return self.behind(0)[place]

    def behind(self, count: int) -> tuple[Message, ...]:
        """All but the first `count` of these messages."""
        part: KnownPrompt | None = self
        found: list[tuple[Message, ...]] = []
        while part is not None and len(part) > count:
            found.append(part.news[max(count - part.start, 0) :])
            part = part.before
        return found[0] if len(found) == 1 else tuple(message for news in reversed(found) for message in news)

    def first(self, count: int) -> KnownPrompt:
        """The first `count` of these messages."""
        part = self
        while part.before is not None and count <= part.start:
            part = part.before
        if count == len(part):
            return part
        shorter = KnownPrompt(part.news[: count - part.start], part.before)
        shorter.keys = None if part.keys is None else part.keys[: count - part.start]
        return shorter

    def extended(self, messages: Sequence[Message]) -> KnownPrompt:
        """These messages with more behind them."""
        return KnownPrompt(messages, self) if messages else self


class KnownMessages(list[Any]):
    """What stands in a row in place of the message objects: it is empty, and the messages are those of `prompt`."""

    def __init__(self, prompt: KnownPrompt) -> None:
        super().__init__()
        self.prompt = prompt


class KnownTools(tuple[ToolSpec, ...]):
    """Tool definitions that have been read already."""

    __slots__ = ()


def message_of(fields: Any, wire: str | None = None) -> Message:
    """A message from an OpenAI-like dict. Raises ValueError where it has no known role or its tool calls can't be read.

    `wire` is the text it was read from, if that is just what would be written again: then it need not be where nothing is put right.
    """
    if not isinstance(fields, dict):
        msg = f"a message is {type(fields).__name__}, wanted an object with a role"
        raise ValueError(msg)
    role = fields.get("role")
    if role not in _KNOWN_ROLES:
        msg = f"a message has the role {role!r}, wanted one of {', '.join(ROLES)}"
        raise ValueError(msg)
    repaired = _repaired(fields)
    if not repaired and role != "function":
        return Message(wire_of(fields) if wire is None else wire)
    if role == "function":
        repaired |= {"role": "tool", "tool_call_id": str(fields.get("tool_call_id") or fields.get("name") or "")}
    kept = {key: value for key, value in fields.items() if key != "function_call" or "tool_calls" not in repaired}
    return Message(wire_of({**kept, **repaired}))


def wire_of(fields: Mapping[str, Any]) -> str:
    """As `dumps`, some three times as fast where an object holds no fractions, which two writers may spell in two ways."""
    if is_plain(fields):
        try:
            return orjson.dumps(fields).decode()
        except TypeError:  # lone surrogates, numbers of more than 64 bits, keys that are no texts
            pass
    return dumps(dict(fields))


def is_plain(fields: Mapping[str, Any]) -> bool:
    """Whether an object holds nothing, to all depths, but texts, whole numbers, booleans, null, objects and lists of objects."""
    for value in fields.values():
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is not list and kind is not dict:
            return False
        for part in value if kind is list else (value,):
            if type(part) is not dict or not is_plain(part):
                return False
    return True


def messages_of(values: Any) -> tuple[Message, ...]:
    """A whole message list. Raises ValueError where it is no list or one of them can't be read (with its place)."""
    if isinstance(values, KnownMessages):
        return values.prompt.behind(0)
    if not isinstance(values, list):
        msg = f"messages are {type(values).__name__}, wanted a list"
        raise ValueError(msg)
    messages = []
    for place, fields in enumerate(values):
        try:
            messages.append(message_of(fields))
        except ValueError as error:
            msg = f"message {place}: {error}"
            raise ValueError(msg) from None
    return tuple(messages)


def output_of(fields: Any) -> Message:
    """The assistant message of a response, without the empty fields that client libraries add and no request repeats."""
    if not isinstance(fields, dict):
        return message_of(fields)
    kept = {key: value for key, value in fields.items() if key == "role" or key == "content" or not _is_empty(value)}  # noqa: PLR1714  quicker
    kept["role"], kept["content"] = "assistant", fields.get("content")
    return message_of(kept)


def tools_of(values: Any, effects: Mapping[str, Any] | None = None) -> tuple[ToolSpec, ...]:
    """Tool definitions: a list (or its JSON text) in OpenAI form, flat, or with `input_schema`; () where there are none.

    A tool's effect is taken from `effects` by name, else from its MCP `annotations`, else it is external. Raises ValueError
    where a definition or an effect can't be read.
    """
    if isinstance(values, KnownTools):
        return values
    if isinstance(values, str) and values.strip():
        values = parse(values)
    if values is None or values == "":
        return ()
    if not isinstance(values, list):
        msg = f"tools are {type(values).__name__}, wanted a list"
        raise ValueError(msg)
    return tuple(_tool(value, effects or {}) for value in values)


def match_key(message: Message) -> bytes:
    """Equal for two loggings of one message: empty fields, reasoning text, key order and unknown fields don't count.

    Nothing is kept on the message: the parsed views of it would double what it takes.
    """
    fields = _quick(message.wire)
    role = "system" if fields["role"] == "developer" else fields["role"]
    content = fields.get("content") or ""
    if isinstance(content, list):
        is_text = all(part.get("type") in ("text", None) for part in content)
        content = Message(message.wire).content_text if is_text else in_order(content)
    raw = fields.get("tool_calls") or ()
    calls = [_call_key(call, message, place) for place, call in enumerate(raw)]
    said = [role, content, calls, fields.get("tool_call_id") or ""]
    try:
        data = orjson.dumps(said)
    except TypeError:  # lone surrogates
        data = dumps(said).encode()
    return blake2b(data, digest_size=16).digest()


def role_of(message: Message) -> str:
    """`message.role`, without the parsed view of the message that it needs and keeps."""
    wire = message.wire
    return wire[9 : wire.index('"', 9)] if wire.startswith(_ROLE_FIRST) else message.role


def _call_key(call: Mapping[str, Any], message: Message, place: int) -> list[str]:
    """What `Message.tool_calls` makes of a call, its arguments with sorted keys where they are a JSON object."""
    function = call.get("function") or call
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = Message(message.wire).tool_calls[place].arguments
    return [str(call.get("id") or ""), str(function.get("name") or ""), _sorted(arguments)]


def _quick(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return loads(text)


def _sorted(arguments: str) -> str:
    """Arguments with sorted keys where they are a JSON object; else as the model wrote them."""
    try:
        value = _quick(arguments) if arguments else {}
        return in_order(value) if isinstance(value, dict) else arguments
    except (ValueError, RecursionError):
        return arguments


def in_order(value: Any) -> str:
    """A text that is equal for equal values, whatever their key order."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:  # lone surrogates, numbers of more than 64 bits, nested deeply
        return canonical(value)


def has_reasoning(message: Message) -> bool:
    """Whether the message carries reasoning text, which clients often leave out when they send it back."""
    return '"reasoning' in message.wire and bool(message.reasoning)


def has_system(messages: Iterable[Message]) -> bool:
    return any(role_of(message) in ("system", "developer") for message in messages)


def _repaired(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message that have to be put right, as they should be."""
    content = fields.get("content")
    found = {} if content is None or type(content) is str else _content(content)
    if fields.get("tool_calls") is not None or "function_call" in fields:
        found |= _calls(fields)
    for key in _TEXTS:
        if key in fields and not isinstance(fields[key], _TEXT):
            found[key] = dumps(fields[key]) if key in REASONING else str(fields[key])
    return found


def _content(content: Any) -> dict[str, Any]:
    if content is None or isinstance(content, str):
        return {}
    if not isinstance(content, list):
        return {"content": dumps(content)}
    if all(isinstance(part, dict) and isinstance(part.get("text", ""), str | None) for part in content):
        return {}
    return {"content": [_part(part) for part in content]}


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, dict):
        return part if isinstance(part.get("text", ""), str | None) else {**part, "text": dumps(part["text"])}
    return {"type": "text", "text": part if isinstance(part, str) else dumps(part)}


def _calls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The repaired `tool_calls`; nothing where they are as they should be."""
    old = fields.get("function_call")
    calls = fields.get("tool_calls")
    if not calls and isinstance(old, dict):
        return {"tool_calls": [{"id": str(old.get("name") or ""), "type": "function", "function": _function(old)}]}
    if calls is None or calls == []:
        return {}
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        msg = "its tool_calls are no list of objects"
        raise ValueError(msg)
    if all(_is_call(call) for call in calls):
        return {}
    return {"tool_calls": [call if _is_call(call) else _call(call) for call in calls]}


def _is_call(call: Mapping[str, Any]) -> bool:
    function = call.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str) and isinstance(function.get("arguments"), str | dict)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    custom = call.get("custom")
    if isinstance(custom, dict) and "function" not in call:  # a custom tool: what it is given is any text
        return {**call, "id": str(call.get("id") or ""), "function": _function({**custom, "arguments": custom.get("input")})}
    function = call.get("function", call)
    if not isinstance(function, dict):
        msg = "a tool call has no function object"
        raise ValueError(msg)
    head = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
    return {**head, "id": str(call.get("id") or ""), "type": "function", "function": _function(function)}


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        msg = "a tool call has no function name"
        raise ValueError(msg)
    if arguments is None:
        return {"name": name, "arguments": ""}
    return {"name": name, "arguments": arguments if isinstance(arguments, str | dict) else dumps(arguments)}


def _tool(value: Any, effects: Mapping[str, Any]) -> ToolSpec:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict):
        msg = f"a tool is {type(value).__name__}, wanted an object with a name"
        raise ValueError(msg)
    if function is value and isinstance(value.get("name"), str):
        schema = value.get("parameters") or value.get("input_schema") or {}
        function = {"name": value["name"], "description": value.get("description") or "", "parameters": schema}
        value = {"type": "function", "function": function}
    if not isinstance(function.get("parameters", {}), dict | None):
        msg = f"the parameters of tool {function.get('name')!r} are no JSON schema"
        raise ValueError(msg)
    declared = effects.get(str(function.get("name")))
    annotations = value.get("annotations") or function.get("annotations")
    if declared is not None:
        return ToolSpec.from_openai(value, Effect.parse(str(declared)))
    return ToolSpec.from_openai(value, Effect.from_mcp(annotations) if isinstance(annotations, dict) else EXTERNAL)


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_empty(part) for part in value.values())
    return value is None or value == []
