"""From the bytes of a chat completion to what a judge needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from counterplay.core.canonical import loads
from counterplay.core.nouns import Message, Usage


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: its text, and the log-probabilities of it and its likeliest alternatives, by text."""

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a model. `tokens` and `usage` are None where the server gave none, `message` where there was no server."""

    text: str
    message: Message | None = None
    refusal: str = ""
    finish_reason: str = ""
    tokens: tuple[Token, ...] | None = None
    usage: Usage | None = field(default=None, compare=False)


def read_reply(body: bytes) -> Reply:
    """Parse one chat completion. Raises ValueError where it holds no message."""
    completion = loads(body.decode())
    choices = completion.get("choices") if isinstance(completion, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    said = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(said, dict):
        msg = "no choices with a message"
        raise ValueError(msg)
    kept = {name: value for name, value in said.items() if value is not None and name in ("content", "tool_calls")}
    message = Message.from_openai({"role": "assistant", "content": None, **kept})
    tokens = _tokens(choice.get("logprobs"))
    return Reply(
        message.content_text, message, str(said.get("refusal") or ""), str(choice.get("finish_reason") or ""), tokens, _usage(completion)
    )


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    found = []
    for token in content:
        top: dict[str, float] = {}
        for each in (token, *(token.get("top_logprobs") or ())):  # a server may leave the token itself out of the alternatives, or not
            if isinstance(each.get("token"), str) and isinstance(each.get("logprob"), int | float):
                top[each["token"]] = float(each["logprob"])
        found.append(Token(str(token.get("token") or ""), top))
    return tuple(found)


def _usage(completion: Mapping[str, Any]) -> Usage | None:
    usage = completion.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        read.get("cached_tokens") or 0,
        written.get("reasoning_tokens") or 0,
    )
