"""Any OpenAI-compatible server as a policy.

Requests are assembled from stored message bytes, so that equal histories are equal prefixes to the server's prompt cache, and go out
over the official client's connections, under its address and key. What a server ignores (`n`, log-probabilities) is noticed, made up
for where possible, and counted.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, Self

from counterplay.core.canonical import content_key, dumps
from counterplay.core.errors import CounterplayError, PolicyError, UserError
from counterplay.core.nouns import Proposal, State, Usage
from counterplay.core.protocols import first_draw, requests
from counterplay.core.turns import turns
from counterplay.replay.adaptive import Concurrency
from counterplay.replay.fork import request_messages, request_tools
from counterplay.replay.health import Health
from counterplay.replay.openai_answers import Answer, NoAnswerError, Price, proposals_of, read_answer, usage_in
from counterplay.replay.openai_pools import Pools
from counterplay.replay.openai_sending import Sender, can_be_sent, out_of_credit, was_sent
from counterplay.replay.openai_tally import Tally
from counterplay.replay.routing import Attempt, Router, Server
from counterplay.replay.siblings import sibling_priors

if TYPE_CHECKING:
    import httpx2

_BYTES_A_TOKEN = 4  # about, in requests as providers count them against their rates
_TEMPLATE_TOKENS = 512  # what a server's chat template may add to a prompt beyond its bytes
_BETWEEN = re.compile(r"\s*,\s*(?=https?://)|\s+")
_OWN_FIELDS = {
    "model": "Name the model in openai:MODEL.",
    "messages": "They are the trace's.",
    "tools": "They are the trace's.",
    "stream": "Answers are read whole.",
    "n": "How many draws there are is the search's option, such as n or num_actions.",
    "seed": "Give it as seed: [job] seed in a job, --seed on the command line.",
    "max_tokens": "Give it as max_tokens: [policy] max_tokens in a job, --max-tokens on the command line.",
    "temperature": "Give it as temperature: [policy] temperature in a job, --temperature on the command line.",
    "logprobs": "OpenAIPolicy(logprobs=True) asks for them.",
}
"""Fields that the policy sets or budgets by, and what says them instead."""
_ADDRESS = re.compile(r"https?://\S", re.IGNORECASE)


def sampling_for_transformers_serve(temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int = 1024) -> dict[str, str]:
    """The `extra_body` that makes `transformers serve` sample; without it, it samples only if the model's generation config says so."""
    fields = {"do_sample": temperature > 0, "temperature": temperature or 1.0, "top_p": top_p, "top_k": 0, "max_new_tokens": max_new_tokens}
    return {"generation_config": dumps(fields)}


class _RejectedError(UserError):
    """The server did not take the request as it was."""


class OpenAIPolicy:
    """Samples actions from `model` on the server at `base_url` (None: OPENAI_BASE_URL, else OpenAI's own).

    Several addresses, in a sequence or in one text with commas between them, are servers of the same model: each state goes to the one
    that has seen its prompt, and to another where that one is full or fails (`replay/routing.py`).

    `api_key` None reads OPENAI_API_KEY; a server given by `base_url` may do without. `temperature`, `max_tokens` and `seed` are not sent
    where None; the seed sent is derived from (`seed`, state, draw). At most `concurrency` requests are in flight, and at each server no
    more than it is found to bear (`replay/adaptive.py`). A request is repeated up to `retries` times on 408, 409, 5xx, timeouts
    (`timeout_s`), lost connections and answers that can't be read, more often where a server is busy (`routing.Router`). `prices` maps
    model names to `Price`; without one, cost is None. `n_support` says whether the server honours `n`: `auto` tries and remembers.
    `logprobs` asks for log-probabilities, until the server shows that it gives none. `extra_body` holds further fields of the request,
    none that the policy sends itself.
    `parse_text_calls` reads `<tool_call>` text as tool calls where a server has not. `send_reasoning` says whether the agent sends
    the reasoning of earlier steps back, as it was logged. `http_client` is an `httpx2.AsyncClient` of
    your own, for one event loop. Where a search is under a limiter, every request takes a turn of it.

    The fingerprint covers model and parameters, not the address: the same model behind another port is the same policy, and which of
    several servers answers makes no difference.
    """

    takes_turns = keeps_requests = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        temperature: float | None = 1.0,
        max_tokens: int | None = 2048,
        seed: int | None = 0,
        concurrency: int = 16,
        retries: int = 8,
        timeout_s: float = 120.0,
        prices: Mapping[str, Price] | None = None,
        n_support: Literal["auto", "always", "never"] = "auto",
        logprobs: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        parse_text_calls: bool = True,
        send_reasoning: bool = True,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        self.base_urls = addresses(base_url or os.environ.get("OPENAI_BASE_URL"))
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if self.base_urls else None)
        if self._key is None:
            raise UserError(f"got policy openai:{model} without a key", "OPENAI_API_KEY or a base_url", "Set one of them.")
        if concurrency < 1 or retries < 0 or not timeout_s > 0:
            raise UserError(f"got concurrency {concurrency}, retries {retries}, timeout_s {timeout_s}", "at least 1, 0 and more than 0")
        own = next((name for name in extra_body or {} if name in _OWN_FIELDS), None)
        if own is not None:
            raise UserError(f"got {own!r} in extra_body", "fields that the policy does not send itself", _OWN_FIELDS[own])
        self.model, self.base_url, self.name = model, base_url, model
        self.max_tokens, self.seed, self.concurrency = max_tokens, seed, concurrency
        self.retries, self.timeout_s, self.parse_text_calls = retries, timeout_s, parse_text_calls
        self.send_reasoning = send_reasoning
        self.price = (prices or {}).get(model)
        self.tally = Tally()
        self._n_support = n_support
        self._honours_n = {"auto": None, "always": True, "never": False}[n_support]
        self._logprobs = logprobs
        sent = {"temperature": temperature, "max_tokens": max_tokens}
        self._params = {name: value for name, value in sent.items() if value is not None} | dict(extra_body or {})
        unsent = () if send_reasoning else ("reasoning unsent",)
        self.fingerprint = f"openai:{content_key(model, dumps(self._params), str(seed), str(logprobs), str(parse_text_calls), *unsent)}"
        self._http_client = http_client
        self._router: Router | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def propose(self, state: State, n: int) -> Sequence[Proposal]:
        """`n` independent draws. Raises PolicyError where the server does not answer or answers nonsense, UserError where it refuses us."""
        start = first_draw.get()
        if n == 1 or self._apart(state, start, n):
            answers = await self._each(state, start, n)
        else:
            first = await self._many(state, start, n)
            got = len(first.choices)
            answers = [first, *(await self._each(state, start + got, n - got))]
        choices = [choice for answer in answers for choice in answer.choices]
        signatures = [choice.action.signature for choice in choices]
        priors = sibling_priors(signatures, [choice.logprob for choice in choices], [choice.tokens for choice in choices])
        proposals: list[Proposal] = []
        for answer in answers:
            span = slice(len(proposals), len(proposals) + len(answer.choices))
            proposals += proposals_of(answer, priors[span], answer.usage or Usage())
        return proposals

    def estimate(self, state: State, n: int) -> Usage | None:
        """An upper bound of what `propose` will use; None where `max_tokens` is not set, as there is none.

        No tokenizer makes more tokens of a text than it has bytes; the prompt counts once a draw unless `n_support` is `always`. What the
        server has shown so far does not count: where a budget ends a search would else hang on what was asked before, and of which process.
        """
        if self.max_tokens is None:
            return None
        prompts = 1 if self._n_support == "always" else n
        usage = Usage((len(self._body(state, 0, 1)) + _TEMPLATE_TOKENS) * prompts, self.max_tokens * n)
        return self._priced(usage)

    async def aclose(self) -> None:
        """Close the connections. A client of the caller's own stays open."""
        router, self._router = self._router, None
        if router is not None and self._http_client is None:
            await router.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _each(self, state: State, start: int, n: int) -> list[Answer]:
        """One request for every draw, all in flight together."""
        tasks = [asyncio.ensure_future(self._ask(state, start + at, 1)) for at in range(n)]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    def _apart(self, state: State, start: int, n: int) -> bool:  # noqa: ARG002  what a policy that was asked before may go by
        """Whether each draw is a request of its own."""
        return self._honours_n is False

    async def _many(self, state: State, start: int, n: int) -> Answer:
        """One request for all draws; remembers whether the server gave them."""
        try:
            answer = await self._ask(state, start, n)
        except _RejectedError:
            if self._honours_n:
                raise
            answer = await self._ask(state, start, 1)  # raises again where `n` was not to blame
        if self._honours_n is None or len(answer.choices) < n:
            self._honours_n = len(answer.choices) >= n
        return answer

    async def _ask(self, state: State, start: int, n: int) -> Answer:
        body = self._body(state, start, n)
        answer = known = self._kept(state, start)
        try:
            answer = known or await self._in_turn(body, state, start, n)
        except _RejectedError as error:
            if not (self._logprobs and "logprob" in error.got):
                raise
            self._logprobs = False
            return await self._ask(state, start, n)
        if self._logprobs and all(choice.logprob is None for choice in answer.choices):
            self._logprobs = False
        if answer.usage is not None:
            answer = replace(answer, usage=self._priced(answer.usage))
        if known is None:
            self._count(answer, n)
        return replace(answer, model=answer.model or self.model)

    def _count(self, answer: Answer, n: int) -> None:
        self.tally.add(answer.usage)
        self.tally.short += len(answer.choices) < n

    def _kept(self, state: State, start: int) -> Answer | None:
        """The draw that a request begins with, as it was answered before the search was killed, where its proposal has several."""
        keeping = requests.get()
        said = None if keeping is None else keeping.get(self._name_of(state, start))
        return None if said is None else self._read(said.encode(), "the journal", self._seeds(state, start, 1))

    def _name_of(self, state: State, start: int) -> str:
        return f"{start}\n{self._body(state, start, 1).decode()}"

    async def _in_turn(self, body: bytes, state: State, start: int, n: int) -> Answer:
        """One request, when the search that asks has its turn. The turn ends with the tokens really used."""
        taking = turns.get()
        turn = None if taking is None else await taking.take(state, len(body) / _BYTES_A_TOKEN + n * (self.max_tokens or 0))
        tokens: float | None = None
        try:
            answer = await self._answer(body, state, start, n)
            tokens = None if answer.usage is None else answer.usage.tokens
        finally:
            if turn is not None:
                turn.end(tokens)
        return answer

    async def _answer(self, body: bytes, state: State, start: int, n: int) -> Answer:
        seeds, keeping = self._seeds(state, start, n), requests.get()

        def read(said: bytes, server: str) -> Answer:
            answer = self._read(said, server, seeds)
            if keeping is not None and (n == 1 or len(answer.choices) < n) and len(answer.choices) == 1:  # a whole proposal is kept as one
                keeping.put(self._name_of(state, start), said.decode())
            return answer

        attempt = await self._connected().post(body, state.prefix_keys[0], read)
        if attempt.value is None:
            self.tally.failures += 1
            raise self._failure(attempt)
        return attempt.value

    def _seeds(self, state: State, start: int, n: int) -> list[str]:
        return [f"{self.seed}\n{state.key}\n{start + at}" for at in range(n)]

    def _read(self, said: bytes, server: str, seeds: Sequence[str]) -> Answer:
        try:
            return read_answer(said, server, seeds, parse_text_calls=self.parse_text_calls)
        except NoAnswerError:
            raise
        except CounterplayError:
            self._waste(said)
            raise

    def _waste(self, said: bytes) -> None:
        """Count an answer that can't be used."""
        usage = usage_in(said)
        self.tally.unusable += 1
        self.tally.wasted_tokens += 0 if usage is None else usage.tokens

    def _priced(self, usage: Usage) -> Usage:
        return usage if self.price is None else replace(usage, cost_usd=self.price.of(usage))

    def _body(self, state: State, start: int, n: int) -> bytes:
        """The request: stored bytes in a fixed order. What varies from draw to draw comes last."""
        parts = [b'"model":' + dumps(self.model).encode()]
        if state.tools:
            parts.append(b'"tools":' + request_tools(state))
        parts.append(b'"messages":' + request_messages(state, reasoning=self.send_reasoning))
        varying: dict[str, Any] = dict(self._params)
        if self._logprobs:
            varying["logprobs"] = True
        if n > 1:
            varying["n"] = n
        if self.seed is not None:
            drawn = blake2b(f"{self.seed}\n{state.key}\n{start}".encode(), digest_size=4).digest()
            varying["seed"] = int.from_bytes(drawn) >> 1
        parts += [f"{dumps(name)}:{dumps(value)}".encode() for name, value in varying.items()]
        return b"{" + b",".join(parts) + b"}"

    def _failure(self, attempt: Attempt[Answer]) -> CounterplayError:
        """Why a request stayed unanswered."""
        server, error = attempt.server.url, attempt.error
        if attempt.response is not None:
            return self._refusal(server, attempt.response.status_code, attempt.response.text, credit=not out_of_credit(attempt.response))
        if isinstance(error, NoAnswerError):
            return self._refusal(server, error.status, error.got)
        if isinstance(error, CounterplayError):
            return error
        return self._unanswered(server, error)

    def _unanswered(self, server: str, error: Exception | None) -> CounterplayError:
        """There is no answer at all."""
        if isinstance(error, TimeoutError):
            got = f"{server} did not answer within {self.timeout_s:g} s, {self.retries + 1} times"
            do = "Allow for more ([pace] timeout_s in a job, --timeout-s, timeout_s in Python), or have fewer requests in flight."
            return PolicyError(got, "an answer", do)
        if error is not None and not can_be_sent(error):  # what it says may hold the key
            got = f"no request can be sent to {server} ({type(error).__name__})"
            return UserError(got, "an address with http:// or https://, and a key of one line", "Check base_url and OPENAI_API_KEY.")
        if error is not None and was_sent(error):
            do = "Look at the server's own log, or lower the concurrency."
            return PolicyError(f"{server} broke off the connection {self.retries + 1} times ({error})", "an answer", do)
        got = f"{server} can't be reached ({error})"
        return PolicyError(got, "an OpenAI-compatible server", "Check base_url, and that the server runs.")

    def _refusal(self, server: str, status: int, text: str, *, credit: bool = True) -> CounterplayError:
        got = f"{server} answered {status}: {text[:200]!r}"
        if not credit:
            return UserError(got, "an account with credit left", "Top it up, or give another key, and run the same command again.")
        if status in {401, 403}:
            return UserError(got, "a key that the server accepts", "Set OPENAI_API_KEY.")
        if status == 404:
            return UserError(
                got, f"model {self.model!r} at <base_url>/chat/completions", "Check the model's name, and that base_url ends in /v1."
            )
        if status in {400, 413, 422}:
            return _RejectedError(
                got, "a request that the server accepts", "Compare model, parameters and context length with what the server supports."
            )
        return PolicyError(f"{got}, after {self.retries} retries", "a chat completion", "Try again later, or lower the concurrency.")

    def _connected(self) -> Router:
        """The router of the running event loop: pooled connections do not outlive theirs."""
        loop = asyncio.get_running_loop()
        if self._router is None or self._loop is not loop:
            self._loop = loop
            servers = [self._server(url) for url in self.base_urls or (None,)]
            self._router = Router(servers, most=self.concurrency, retries=self.retries, tally=self.tally)
        return self._router

    def _server(self, url: str | None) -> Server:
        import openai

        http = self._http_client or _pools()
        first = http.clients[0] if isinstance(http, Pools) else http
        client = openai.AsyncOpenAI(api_key=self._key, base_url=url, http_client=first)
        sender = Sender(client, http, "chat/completions", timeout_s=self.timeout_s)
        return Server(url or str(client.base_url).rstrip("/"), sender, Concurrency(most=self.concurrency), Health())


def addresses(base_url: str | Sequence[str] | None) -> tuple[str, ...]:
    """The addresses in a text with commas between them, or as they are given, each once; none where there is none.

    Raises UserError where one is no address of HTTP.
    """
    given = _BETWEEN.split(base_url) if isinstance(base_url, str) else base_url or ()
    found = tuple(dict.fromkeys(address.strip() for address in given if address.strip()))
    for address in found:
        if not _ADDRESS.match(address):
            shown = address.rpartition("@")[2]
            raise UserError(
                f"got the server {shown!r}", "an address with http:// or https://", f"Write http://{shown.rpartition('://')[2]}"
            )
    return found


def _pools() -> Pools:
    """The official client's connections; what is trusted is read once for all of them."""
    import httpx2
    import openai

    tls = httpx2.create_ssl_context()
    return Pools(lambda: openai.DefaultAsyncHttpxClient(verify=tls))
