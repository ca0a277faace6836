"""What a dialect makes of a span, and the tree that spans form.

A dialect is a `read(span) -> Reading`: its kind, and for a model call the messages at their absolute positions in the prompt, as
far as the span still holds them. What an attribute limit may have taken is left out here and never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from counterplay.connectors.facts import parse
from counterplay.connectors.normalise import role_of
from counterplay.connectors.spans.span import Span
from counterplay.core.canonical import canonical, content_key
from counterplay.core.nouns import Message, ToolSpec, Usage

Kind: TypeAlias = Literal["llm", "tool", "agent", "judge", "other"]
Sizes: TypeAlias = tuple[int, int, int]

NO_SIZE: Sizes = (0, 0, 0)
_LEAST_LIMIT = 128
_KEPT_TEXTS = 4
_NO_LIMITS = (None, None, None)
_DEEPEST = 200
_ENDINGS = tuple(".!?:;,\"'`)]}>*|-")


@dataclass(frozen=True)
class Slot:
    """A message at its place. `whole` is False where only its beginning is known.

    `sizes` is the length of its longest text in characters, UTF-16 units and bytes, the three units of length limits.
    """

    message: Message
    whole: bool = True
    sizes: Sizes = NO_SIZE

    @property
    def role(self) -> str:
        return role_of(self.message)

    @cached_property
    def ident(self) -> str:
        """Equal for messages that say and do the same: ids, key order, reasoning and surrounding white space do not count."""
        message = Message(self.message.wire)  # what is worked out of it is not kept
        content = message.content
        others = [part for part in content if not _is_text(part)] if isinstance(content, list) else []
        calls = [call.signature for call in message.tool_calls]
        role = "system" if message.role == "developer" else message.role
        return content_key(role, message.content_text.strip(), canonical(others) if others else "[]", *calls)

    def agrees(self, other: Slot) -> bool:
        """Whether two sightings can be of one message: equal, or one the beginning of the other where that was cut."""
        if self.ident == other.ident:
            return True
        if (self.whole and other.whole) or self.role != other.role:
            return False
        longer, shorter = (self, other) if self.whole else (other, self)
        return _begins(longer.message, shorter.message)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _begins(longer: Message, shorter: Message) -> bool:
    """Whether `shorter` is `longer` with texts cut."""
    if len(longer.tool_calls) != len(shorter.tool_calls) or not longer.content_text.startswith(shorter.content_text):
        return False
    pairs = zip(longer.tool_calls, shorter.tool_calls, strict=True)
    return all(whole.name == cut.name and whole.arguments.startswith(cut.arguments) for whole, cut in pairs)


@dataclass(slots=True)
class ToolRun:
    """One executed tool call as its span tells it. None where the span does not say; `cut` where the result is only a beginning.

    `claimed_by` is the span id of the model call that asked for it, empty while that is not known.
    """

    name: str
    call_id: str | None = None
    arguments: str | None = None
    result: str | None = None
    span_id: str = ""
    scope: str = ""
    start_ns: int | None = None
    cut: bool = False
    claimed_by: str = ""

    @property
    def signature(self) -> str | None:
        """Name and canonical arguments, comparable with a tool call's; None where the arguments are unknown."""
        if self.arguments is None:
            return None
        try:
            return f"{self.name}({canonical(parse(self.arguments or '{}'))})"
        except (ValueError, RecursionError):
            return f"{self.name}({self.arguments})"


@dataclass(slots=True)
class Reading:
    """What one span says. For a model call, `slots` holds input messages by position and `count` their number, None if unknown.

    `tools` is None where the span names none; `tools_whole` says whether those it names are all. `name` is the tool's or agent's.
    `proven` is False where the prompt is known to be another than the model was sent (hidden instructions), however whole it looks.
    `context` is what the span itself says of the trajectory that its call belongs to (see `build`), empty as a rule; `after` are the
    messages that came after its answer where no further call was sent them.
    """

    kind: Kind = "other"
    dialect: str = ""
    name: str = ""
    slots: dict[int, Slot] = field(default_factory=dict)
    count: int | None = None
    outputs: list[Slot] = field(default_factory=list)
    tools: tuple[ToolSpec, ...] | None = None
    tools_whole: bool = False
    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    response_id: str | None = None
    provider: str | None = None
    streamed: bool | None = None
    first_token_ns: int | None = None
    tool: ToolRun | None = None
    redacted: bool = False
    truncated: bool = False
    proven: bool = True
    context: Mapping[str, Any] = field(default_factory=dict)
    after: list[Slot] = field(default_factory=list)


FINISH_REASONS: Mapping[str, str] = {
    "tool_call": "tool_calls",
    "tool-calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "safety": "content_filter",
    "content-filter": "content_filter",
    "refusal": "content_filter",
}


def finish_reason(raw: Any) -> str | None:
    """A finish reason in OpenAI's words; an unknown one in lower case; None where there is none."""
    text = raw.lower() if isinstance(raw, str) else ""
    return FINISH_REASONS.get(text, text) or None


def sizes_of(text: str) -> Sizes:
    if text.isascii():
        return len(text), len(text), len(text)
    return len(text), len(text.encode("utf-16-le", "surrogatepass")) // 2, len(text.encode(errors="surrogatepass"))


class LengthLimit:
    """Finds out whether a producer cut values at a length: several texts reach the very same maximum, or one a round one, in mid-word.

    Of the longest texts it keeps (hash, is broken JSON, ends like a sentence), not the texts.
    """

    def __init__(self) -> None:
        self._longest = [0, 0, 0]
        self._texts: list[set[tuple[int, bool, bool]]] = [set(), set(), set()]

    def add(self, text: str) -> None:
        if len(text) < _LEAST_LIMIT // 4:
            return
        for unit, size in enumerate(sizes_of(text)):
            if size > self._longest[unit]:
                self._longest[unit], self._texts[unit] = size, set()
            if size == self._longest[unit] and len(self._texts[unit]) < _KEPT_TEXTS:
                self._texts[unit].add((hash(text), _is_broken(text), text.rstrip().endswith(_ENDINGS)))

    @cached_property
    def limits(self) -> tuple[int | None, ...]:
        """The limit in characters, UTF-16 units and bytes; None in a unit in which there is none."""
        return tuple(size if self._is_limit(size, texts) else None for size, texts in zip(self._longest, self._texts, strict=True))

    @property
    def found(self) -> bool:
        """Whether there is a limit in any unit."""
        return self.limits != _NO_LIMITS

    def cut(self, sizes: Sizes) -> bool:
        """Whether a text of these sizes was cut."""
        return self.found and any(limit is not None and size == limit for size, limit in zip(sizes, self.limits, strict=True))

    @staticmethod
    def _is_limit(size: int, texts: set[tuple[int, bool, bool]]) -> bool:
        if size < _LEAST_LIMIT:
            return False
        if len(texts) > 2 or (len(texts) == 2 and any(broken for _, broken, _ in texts)):
            return True
        is_round = size & (size - 1) == 0 or size % 500 == 0
        return is_round and (len(texts) > 1 or not all(ended for *_, ended in texts))


def _is_broken(text: str) -> bool:
    """Whether a text begins like JSON and does not end like it."""
    closer = {"{": "}", "[": "]", '"': '"'}.get(text[:1])
    return closer is not None and not text.rstrip().endswith(closer)


@dataclass(frozen=True, slots=True)
class Node:
    """A span's place. `scope` is the id of the agent or tool span it runs under (empty: none); `path` all of them, nearest first."""

    span: Span
    reading: Reading
    scope: str = ""
    path: tuple[str, ...] = ()


class SpanTree:
    """The spans of one trace. Parents may be missing, come later or be named in a circle."""

    def __init__(self, members: Sequence[tuple[Span, Reading]]) -> None:
        self._by_id = {span.span_id: (span, reading) for span, reading in members}
        self.nodes = {span.span_id: Node(span, reading, *self._scope(span)) for span, reading in members}

    @property
    def roots(self) -> list[Span]:
        """Spans without a parent in this trace, earliest first; those that name a missing parent come last."""
        found = [span for span, _ in self._by_id.values() if span.parent_id not in self._by_id]
        return sorted(found, key=lambda span: (span.parent_id is not None, span.start_ns or 0))

    def ancestors(self, span: Span) -> Iterator[tuple[Span, Reading]]:
        """Nearest first, up to _DEEPEST of them: of more, every span's would take the square of their number."""
        seen = {span.span_id}
        while span.parent_id in self._by_id and span.parent_id not in seen and len(seen) <= _DEEPEST:
            span, reading = self._by_id[span.parent_id]
            seen.add(span.span_id)
            yield span, reading

    def wrapped(self) -> dict[str, str]:
        """Model calls logged twice, one span round the other: the inner span's id by the outer's."""
        found: dict[str, str] = {}
        for span_id, node in self.nodes.items():
            if node.reading.kind != "llm":
                continue
            for span, reading in self.ancestors(node.span):
                if reading.kind in ("agent", "tool", "judge"):
                    break
                if reading.kind == "llm":
                    found[span.span_id] = span_id
        return found

    def _scope(self, span: Span) -> tuple[str, tuple[str, ...]]:
        path: list[str] = []
        last = span
        for last, reading in self.ancestors(span):
            if reading.kind in ("agent", "tool", "judge"):
                path.append(last.span_id)
        missing = last.parent_id if last.parent_id and last.parent_id not in self._by_id else ""
        return (path[0] if path else missing), tuple(path)
