"""From the bytes of a chat-completion answer to proposals. Unknown fields of a message are kept, nonsense is refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from counterplay.core.canonical import dumps
from counterplay.core.errors import PolicyError
from counterplay.core.nouns import Message, Proposal, Usage, parse_json_object
from counterplay.core.token_ids import choice_token_ids
from counterplay.replay.chat_parsing import MALFORMED, parse_tagged

_ID_TAIL = re.compile(r"[0-9A-Za-z]+\Z")
_SHORT_ID = 8  # ids with a shorter tail, such as `functions.look_up:0`, are counted by the server, not drawn


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _PromptDetails(_Part):
    cached_tokens: int | None = None


class _CompletionDetails(_Part):
    reasoning_tokens: int | None = None


class _Usage(_Part):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Token(_Part):
    logprob: float


class _Logprobs(_Part):
    content: list[_Token] | None = None


class _Choice(_Part):
    message: dict[str, Any]
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(_Part):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. `cached` is the price of input read from the server's cache, None as `input`."""

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        cached = self.input if self.cached is None else self.cached
        fresh = usage.input_tokens - usage.cached_tokens
        return (fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output) / 1e6


class NoAnswerError(PolicyError):
    """An error with status 200, as gateways give where the server behind them failed. `status` is the one it should have had."""

    def __init__(self, got: str, wanted: str = "", do: str = "", *, status: int) -> None:
        super().__init__(got, wanted, do)
        self.status = status


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer before priors: `logprob` over `tokens` tokens, None where the server gave none; `token_ids` likewise."""

    action: Message
    finish_reason: str
    logprob: float | None
    tokens: int
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`usage` is None where the server did not say."""

    choices: tuple[Choice, ...]
    usage: Usage | None
    model: str


def read_answer(body: bytes, server: str, seeds: Sequence[str], *, parse_text_calls: bool = True) -> Answer:
    """Parse one answer; `seeds[i]` decides the tool-call ids of choice i.

    Raises NoAnswerError where it is an error, another PolicyError where it holds no choice.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise _error_in(server, body) or _nonsense(server, body, f"{place}: {first['msg']}") from None
    if not completion.choices:
        raise _error_in(server, body) or _nonsense(server, body, "no choices")
    pairs = zip(completion.choices, seeds, strict=False)
    choices = tuple(_choice(choice, seed, parse_text_calls=parse_text_calls) for choice, seed in pairs)
    return Answer(choices, None if completion.usage is None else _usage(completion.usage), completion.model or "")


def proposals_of(answer: Answer, priors: Sequence[float | None], usage: Usage) -> list[Proposal]:
    """`usage`, which servers give for a whole call, sits on its first proposal."""
    return [
        Proposal(choice.action, prior, choice.logprob, Usage() if at else usage, answer.model, choice.finish_reason, choice.token_ids)
        for at, (choice, prior) in enumerate(zip(answer.choices, priors, strict=True))
    ]


def usage_in(body: bytes) -> Usage | None:
    """What an answer says it used, however little else of it can be read; None where it does not say."""
    fields = parse_json_object(body.decode(errors="replace"))
    try:
        return _usage(_Usage.model_validate(fields["usage"])) if fields and fields.get("usage") else None
    except ValidationError:
        return None


def _error_in(server: str, body: bytes) -> NoAnswerError | None:
    """The error that an answer is; None where it is none. One without a status of its own is the server's fault."""
    fields = parse_json_object(body.decode(errors="replace"))
    error = (fields or {}).get("error")
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return NoAnswerError(
        f"{server} answered 200 with an error: {body[:200].decode(errors='replace')!r}", "a chat completion", status=status
    )


def _nonsense(server: str, body: bytes, reason: str) -> PolicyError:
    shown = body[:200].decode(errors="replace")
    return PolicyError(
        f"{server} answered 200 with {shown!r} ({reason})", "an OpenAI chat completion", "Check that base_url is an OpenAI-compatible API."
    )


def _usage(usage: _Usage) -> Usage:
    details, written = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (details.cached_tokens or 0) if details else 0,
        (written.reasoning_tokens or 0) if written else 0,
    )


def _choice(choice: _Choice, seed: str, *, parse_text_calls: bool) -> Choice:
    fields = {name: value for name, value in choice.message.items() if value is not None or name == "content"}
    fields = {"role": "assistant", "content": None, **fields}
    finish = choice.finish_reason or ""
    content = fields["content"]
    if not fields.get("tool_calls"):
        fields.pop("tool_calls", None)
        if parse_text_calls and isinstance(content, str) and "<tool_call>" in content:
            parsed = parse_tagged(content)
            finish = MALFORMED if parsed.malformed and finish != "length" else finish
            if parsed.calls:
                fields = {**fields, **parsed.action(seed).to_openai()}
    for at, call in enumerate(fields.get("tool_calls") or ()):
        _settle_call(call, f"{seed}\n{at}")
    tokens = choice.logprobs.content if choice.logprobs else None
    logprob = None if tokens is None else sum(token.logprob for token in tokens)
    return Choice(Message(dumps(fields)), finish, logprob, len(tokens or ()), choice_token_ids(choice.model_extra or {}))


def _settle_call(call: Any, seed: str) -> None:
    """Give a call an id that depends on `seed` alone, in the form the server uses, and its arguments as text."""
    if not isinstance(call, dict):
        return
    given = str(call.get("id") or "call_" + "0" * 16)
    tail = _ID_TAIL.search(given)
    if tail is not None and len(tail[0]) >= _SHORT_ID:
        drawn = blake2b(seed.encode(), digest_size=32).hexdigest()[: len(tail[0])]
        given = given[: tail.start()] + drawn
    call["id"] = given
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), Mapping):
        function["arguments"] = dumps(dict(function["arguments"]))
