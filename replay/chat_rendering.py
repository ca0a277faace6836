"""From a state to the tokens a chat model is sent, rendering each message about once.

A template that only appends gives the tokens of a longer state as those of the shorter one plus those of the new messages.
That is checked against a full rendering for every shape of step a few times and now and then afterwards; the first
difference switches to full renderings for good.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from counterplay.core.errors import PolicyError
from counterplay.core.nouns import Message, State, Step, ToolSpec

_CHECKS = 2  # full renderings that confirm a new shape of step
_CHECK_EVERY = 64  # how often a confirmed shape is checked again
_STUB = Message.user("?")


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates take it: tool-call arguments as objects (text that is no JSON object stays text), text parts joined."""
    fields = message.to_openai()
    calls = fields.get("tool_calls") or ()
    for raw, call in zip(calls, message.tool_calls, strict=True):
        function = raw.get("function") or raw
        function["arguments"] = call.arguments if call.args is None else call.args
    content = fields.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        fields["content"] = message.content_text
    return fields


class ChatRenderer:
    """Renders with the tokenizer's own chat template. Control tokens inside messages, such as `<|im_end|>`, are plain text to the model.

    Keeps the tokens of the latest `keep` states. Tokens are int32 bytes.
    """

    def __init__(self, tokenizer: Any, keep: int = 8192) -> None:
        self.tokenizer = tokenizer
        self.incremental = True
        self.full_renderings = 0
        self._keep = keep
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._stub = b""
        self._opening: bytes | None = None
        added = [re.escape(token) for token in tokenizer.get_added_vocab() if not token.isspace()]
        self._control = re.compile("|".join(added) or r"(?!)")

    def prompt(self, state: State) -> bytes:
        """The tokens of a state, up to and with the opening of the next assistant message. Raises PolicyError where the template can't."""
        if self._opening is None:
            body, opened = self._full(state), self._full(state, opened=True)
            self.incremental = opened.startswith(body)
            self._opening = opened[len(body) :] if self.incremental else b""
        body = self._body(state) if self.incremental else b""
        return body + self._opening if self.incremental else self._full(state, opened=True)

    def opening_text(self) -> str:
        """What the template writes before the model goes on; empty before anything was rendered."""
        import numpy as np

        return str(self.tokenizer.decode(np.frombuffer(self._opening or b"", np.int32).tolist()))

    def _body(self, state: State) -> bytes:
        known = self._bodies.get(state.key)
        if known is None:
            parent = self._bodies.get(state.prefix(len(state) - 1).key) if state.steps else None
            known = self._full(state) if parent is None else self._extended(parent, state)
            self._bodies[state.key] = known
            if len(self._bodies) > self._keep:
                self._bodies.popitem(last=False)
        self._bodies.move_to_end(state.key)
        return known

    def _extended(self, parent: bytes, state: State) -> bytes:
        if not self._stub:
            self._stub = self._tokens([_STUB])
        delta = self._tokens([_STUB, *state.steps[-1].messages])
        body = parent + delta[len(self._stub) :]
        shape = _shape(state.steps[-1])
        self._seen[shape] += 1
        if self._seen[shape] <= _CHECKS or self._seen[shape] % _CHECK_EVERY == 0:
            full = self._full(state)
            opened = self._full(state, opened=True)
            if full != body or not delta.startswith(self._stub) or opened != full + (self._opening or b""):
                self.incremental = False
                return full
        return body

    def _full(self, state: State, *, opened: bool = False) -> bytes:
        self.full_renderings += 1
        return self._tokens(state.messages, state.tools, opened=opened)

    def _tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, opened: bool = False) -> bytes:
        import numpy as np

        wires = [part.wire for part in messages] + [part.wire for part in tools]
        try:
            ids = self.tokenizer.apply_chat_template(
                [template_message(message) for message in messages],
                tools=[tool.to_openai() for tool in tools] or None,
                add_generation_prompt=opened,
                sanitize_control_tokens=any(map(self._control.search, wires)),
                return_dict=False,
            )
        except Exception as error:  # templates raise what they like
            got = f"the chat template failed on a state of {len(messages)} messages: {type(error).__name__}: {error}"
            raise PolicyError(
                got, "a template that renders these roles and tool calls", "Give the model folder another chat_template."
            ) from error
        return np.array(ids, np.int32).tobytes()


def _shape(step: Step) -> tuple[Any, ...]:
    """What a template may treat differently in the messages of a step."""
    return tuple((m.role, bool(m.content), len(m.tool_calls), bool(m.reasoning)) for m in step.messages)
