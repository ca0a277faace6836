"""Reaching a judge's model: any server with the chat completion API, or any function from messages and a schema to text.

Retries, their waits and the connections are the official client's. What a server refuses (structured output, a seed, a temperature,
log-probabilities) is found out with the first request that it refuses, left out from then on, and kept in `unsupported`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, runtime_checkable

from counterplay.core.canonical import content_key, dumps
from counterplay.core.errors import UserError, VerifierError
from counterplay.core.nouns import ToolSpec, Usage
from counterplay.core.protocols import fingerprint_of
from counterplay.verifiers.judges.replies import Reply, read_reply

if TYPE_CHECKING:
    import httpx2
    import openai

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Complete: TypeAlias = Callable[[Messages, Mapping[str, Any]], str | Awaitable[str]]
"""A model as a function: OpenAI messages and the JSON schema of the answer (empty: a bare word) in, text out."""

_OPTIONAL = ("response_format", "temperature", "seed", "top_logprobs", "logprobs", "max_tokens", "tool_choice")
_OTHER_NAMES = {"response_format": ("json_schema", "structured output", "guided"), "max_tokens": ("max_completion_tokens",)}


@dataclass(slots=True)
class Tally:
    """What a judge's model has used so far. `calls` are answered requests, `failures` requests that stayed unanswered.

    `repairs` counts answers that could not be read and were asked for again, `unmetered` answers without usage. Tokens are the
    server's own figures; `usage.cost_usd` is None where no price is known.
    """

    calls: int = 0
    failures: int = 0
    repairs: int = 0
    unmetered: int = 0
    usage: Usage = field(default_factory=Usage)

    def add(self, usage: Usage | None) -> None:
        self.calls += 1
        self.unmetered += usage is None
        self.usage += usage or Usage()


@runtime_checkable
class Model(Protocol):
    """What a judge asks. `name` appears in scores; `fingerprint` covers the model and its settings, never an address."""

    name: str
    fingerprint: str
    tally: Tally
    calls_tools: bool

    async def complete(
        self,
        messages: Messages,
        schema: Mapping[str, Any] | None,
        *,
        seed: int = 0,
        tools: Sequence[ToolSpec] = (),
        more_calls: bool = True,
        top_logprobs: int = 0,
    ) -> Reply:
        """One answer. `schema` None asks for bare text. `more_calls` False says that the tools may not be called any more."""
        ...


class FunctionModel:
    """A function as a judge's model: a local model, a gateway of one's own. It calls no tools and gives no log-probabilities.

    Give it a `fingerprint` that names model and settings: else its own name is all that journals and caches know it by.
    """

    calls_tools = False

    def __init__(self, complete: Complete) -> None:
        self._complete = complete
        self.fingerprint = f"function:{fingerprint_of(complete)}"
        self.name = str(getattr(complete, "name", None) or getattr(complete, "__name__", None) or type(complete).__name__)
        self.tally = Tally()

    async def complete(self, messages: Messages, schema: Mapping[str, Any] | None, **_: Any) -> Reply:
        try:
            answered = self._complete(messages, schema or {})
            text = await answered if inspect.isawaitable(answered) else answered
        except Exception:
            self.tally.failures += 1
            raise
        self.tally.add(None)
        if not isinstance(text, str):
            raise VerifierError(f"{self.name} gave a {type(text).__name__}", "text")
        return Reply(text)

    async def aclose(self) -> None:
        """Nothing is open."""


class ChatModel:
    """`model` on the OpenAI-compatible server at `base_url` (None: OPENAI_BASE_URL, else OpenAI's own).

    `api_key` None reads OPENAI_API_KEY; a server given by `base_url` may do without. `client` is an `openai.AsyncOpenAI` of your own, for
    one event loop, in place of address, key, `retries` and `timeout_s`. `temperature` None sends none. Judges give every question a
    seed of its own; `send_seed` says whether it is sent. At most `concurrency` requests are in flight. A request is repeated up to
    `retries` times on 408, 409, 429, 5xx, timeouts (`timeout_s`) and lost connections, as the client does it, after what Retry-After
    says. `price` gives the US dollars of a usage. `extra_body` holds further fields of the request.
    """

    calls_tools = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: openai.AsyncOpenAI | None = None,
        temperature: float | None = 0.0,
        send_seed: bool = True,
        max_tokens: int = 2048,
        concurrency: int = 16,
        retries: int = 4,
        timeout_s: float = 120.0,
        price: Callable[[Usage], float] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if not model or concurrency < 1 or retries < 0 or not timeout_s > 0 or max_tokens < 1:
            got = f"got model {model!r}, {concurrency=}, {retries=}, {timeout_s=}, {max_tokens=}"
            raise UserError(got, "a model, retries of at least 0, and the others above 0")
        self.name = self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if self.base_url else None)
        if client is None and self._key is None:
            raise UserError(f"got judge model {model!r} without a key", "OPENAI_API_KEY or a base_url", "Set one of them.")
        self.send_seed, self.concurrency, self.retries, self.timeout_s, self.price = send_seed, concurrency, retries, timeout_s, price
        self.tally = Tally()
        self.unsupported: frozenset[str] = frozenset()
        self._params: dict[str, Any] = {"max_tokens": max_tokens, **(extra_body or {})}
        if temperature is not None:
            self._params["temperature"] = temperature
        self.fingerprint = f"chat:{content_key(model, dumps(self._params), str(send_seed))}"
        self._own, self._client = client, client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots, self._first = asyncio.Semaphore(concurrency), asyncio.Lock()
        self._asked = False

    async def complete(
        self,
        messages: Messages,
        schema: Mapping[str, Any] | None,
        *,
        seed: int = 0,
        tools: Sequence[ToolSpec] = (),
        more_calls: bool = True,
        top_logprobs: int = 0,
    ) -> Reply:
        """One answer. Raises VerifierError where the server does not answer or answers nonsense, UserError where it refuses us."""
        client = self._connected()
        wanted: dict[str, Any] = dict(self._params)
        if schema is not None:
            wanted["response_format"] = {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": schema}}
        if tools:
            wanted["tools"] = [tool.to_openai() for tool in tools]
            wanted |= {} if more_calls else {"tool_choice": "none"}
        if top_logprobs:
            wanted |= {"logprobs": True, "top_logprobs": top_logprobs}
        if self.send_seed:
            wanted["seed"] = seed
        if not self._asked:
            async with self._first:  # what the server refuses is found out once, not by every request of the first wave
                if not self._asked:
                    try:
                        return await self._settled(client, messages, wanted)
                    finally:
                        self._asked = True
        return await self._settled(client, messages, wanted)

    async def aclose(self) -> None:
        """Close the connections. A client of the caller's own stays open."""
        client, self._client = self._client, self._own
        self._loop = None
        if client is not None and self._own is None:
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _settled(self, client: openai.AsyncOpenAI, messages: Messages, wanted: Mapping[str, Any]) -> Reply:
        """The answer, without what the server refuses. That is remembered only once a request without it was taken."""
        import openai

        dropped: frozenset[str] = frozenset()
        while True:
            fields = without(wanted, self.unsupported | dropped)
            try:
                response = await self._post(client, {"model": self.model, "messages": list(messages), **fields})
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                blamed = blame(fields, str(error))
                if not blamed:
                    self.tally.failures += 1
                    raise VerifierError(
                        f"{self.name} was refused: {error}"[:500], "a request that the server takes", "Compare max_chars with its context."
                    ) from error
                dropped |= blamed
                continue
            self.unsupported |= dropped
            return self._read(response.content)

    async def _post(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> httpx2.Response:
        import httpx2
        import openai

        try:
            async with self._slots:
                return await client.post("/chat/completions", cast_to=httpx2.Response, content=dumps(body).encode())
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            self.tally.failures += 1
            raise UserError(f"{self.name} was refused: {error}"[:500], "a key and a model that the server knows") from error
        except openai.APIError as error:
            self.tally.failures += 1
            raise VerifierError(f"{self.name} did not answer: {error}"[:500], "a chat completion", "Try again later.") from error

    def _read(self, body: bytes) -> Reply:
        try:
            reply = read_reply(body)
        except ValueError as error:
            self.tally.failures += 1
            raise VerifierError(f"{self.name} answered 200 with {body[:200]!r} ({error})", "an OpenAI chat completion") from error
        if reply.usage is not None and self.price is not None:
            reply = replace(reply, usage=replace(reply.usage, cost_usd=self.price(reply.usage)))
        self.tally.add(reply.usage)
        return reply

    def _connected(self) -> openai.AsyncOpenAI:
        """The client of the running event loop: pooled connections do not outlive theirs."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            import openai

            self._loop, self._slots, self._first = loop, asyncio.Semaphore(self.concurrency), asyncio.Lock()
            self._client = self._own or openai.AsyncOpenAI(
                api_key=self._key, base_url=self.base_url, max_retries=self.retries, timeout=self.timeout_s
            )
        return self._client


def as_model(model: str | Model | Complete) -> Model:
    """A judge's model from its name, from a function, or as it is."""
    if isinstance(model, str):
        return ChatModel(model)
    return model if isinstance(model, Model) else FunctionModel(model)


def without(wanted: Mapping[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """The fields of a request without those refused; a limit on tokens goes under its newer name instead."""
    fields = {name: value for name, value in wanted.items() if name not in refused}
    if "max_tokens" in refused and "max_tokens" in wanted:
        fields["max_completion_tokens"] = wanted["max_tokens"]
    return fields


def blame(fields: Mapping[str, Any], complaint: str) -> frozenset[str]:
    """The fields that a refusal is about: those it names, else structured output, the likeliest; empty where nothing can be left out."""
    text = complaint.casefold()
    present = [name for name in _OPTIONAL if name in fields]
    named = {name for name in present if any(word in text for word in (name, *_OTHER_NAMES.get(name, ())))}
    if named & {"logprobs", "top_logprobs"}:
        named |= {"logprobs", "top_logprobs"} & set(present)
    return frozenset(named or {"response_format"} & set(present))
