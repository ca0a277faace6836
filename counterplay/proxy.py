"""`counterplay record`: an OpenAI-compatible proxy that records what passes, for agents in any language; only their base URL changes.

Everything under the upstream passes through untouched, streams chunk by chunk. Of model calls request and answer are put on a tape;
headers, in which keys travel, are forwarded and never written. A run is named by the path (`/run/ID/v1/...`), by the header
`x-counterplay-run`, or by the trace id of `traceparent`; calls without a name are joined later where one continues the other.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from counterplay.cleaning import REDACTED_KEY, Cleaner, credentials
from counterplay.connectors import facts
from counterplay.core.errors import UserError
from counterplay.core.nouns import parse_json_object
from counterplay.replay.agents.ambient import ModelAnswer, ModelRequest
from counterplay.replay.agents.calls import Clock, named_error, unseen
from counterplay.replay.agents.sse import is_complete
from counterplay.replay.agents.tape import Clean, Sink, Tape, TapeFile
from counterplay.replay.agents.transports import CLOSED_EARLY, api_of
from counterplay.serving import address, listening, server, until_signal

Headers = Sequence[tuple[bytes, bytes]]
Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]

OWN_HEADERS = b"x-counterplay-"
_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"upgrade",
    b"transfer-encoding", b"host", b"content-length", b"expect",
}  # fmt: skip
_KEYS_IN_QUERY = {"key", "api_key", "api-key", "access_token", "sig"}
_DECODED = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_TRACE = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_RUN = re.compile(r"/run/([^/]{1,600})(/.*)", re.DOTALL)
_LONGEST_ID = 200
_LEAST_FAILURE = 400
_OPEN_RUNS = 10_000
_CONNECT_S = 30.0
_CHECK_S = 1.0


@dataclass(frozen=True)
class Passed:
    """What a proxy did. `calls` were recorded, in so many `runs` that were named; of `failed` ones the upstream gave no answer."""

    requests: int
    calls: int
    runs: int
    failed: int
    tape: str = ""
    traces_added: int = 0
    traces_updated: int = 0


class Proxy:
    """The ASGI application. `counts` says what it did so far."""

    def __init__(self, upstream: str, sink: Sink, *, clean: Clean | None = None) -> None:
        """Raises UserError where `upstream` is no URL."""
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"got upstream {upstream!r}", "a URL, such as https://api.openai.com/v1")
        self.origin, self.base = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        self.counts: Counter[str] = Counter()
        self._sink, self._clean = sink, clean
        self._tapes: OrderedDict[str, Tape] = OrderedDict()
        self._client: Any = None

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _live(self, receive: Receive, send: Send) -> None:
        """For servers that tell an application when they start and stop."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.aclose()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _handle(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.counts["requests"] += 1
        path = scope.get("raw_path", scope["path"].encode()).decode("ascii", "replace")
        named = _RUN.fullmatch(path)
        run, rest = (unquote(named[1])[:_LONGEST_ID], named[2]) if named else (_named(scope["headers"]), path)
        body = await _body(receive)
        if body is None:
            return
        if named and rest == "/end" and scope["method"] == "POST":
            await self._end(run, body, send)
            return
        asked = _Asked(run, scope["method"], self.url(rest, scope["query_string"]), scope["headers"], body)
        await _unless_gone(_Exchange(self, asked, send).run(), receive)

    async def _end(self, run: str, body: bytes, send: Send) -> None:
        """What the agent's own harness says of a run: its outcome, scores, tags, an error."""
        said = parse_json_object(body.decode(errors="replace")) if body else {}
        outcome = facts.outcome_of(facts.record((said or {}).get("outcome")))
        scores = (said or {}).get("scores", [])
        beyond = outcome is not None and outcome.reward is not None and not 0 <= outcome.reward <= 1
        wrong = said is None or ("outcome" in said and outcome is None) or beyond or not isinstance(scores, list)
        if said is None or wrong:
            wanted = '{"outcome": {"reward": 0.5, "success": true}, "scores": [{"name": "tone", "value": 1}]}'
            await _answer(send, 400, f"got something else than what came of a run, wanted {wanted}")
            return
        tape = self._tapes.pop(run, None) or self._begun(run, ())
        tape.end(
            error=facts.word(said.get("error")),
            outcome=outcome,
            scores=[each for each in scores if isinstance(each, dict)],
            tags=[tag for tag in said.get("tags") or [] if isinstance(tag, str)],
        )
        await _send_json(send, 200, {"run": run})

    def tape(self, run: str, headers: Headers) -> Tape:
        """The tape of a run that goes on, or of the calls of no known run."""
        known = self._tapes.get(run)
        if known is None:
            known = self._tapes[run] = Tape(self._sink, run="", clean=self._clean) if not run else self._begun(run, headers)
        self._tapes.move_to_end(run)
        if len(self._tapes) > _OPEN_RUNS:
            self._tapes.popitem(last=False)
        return known

    def _begun(self, run: str, headers: Headers) -> Tape:
        task, session, agent = (_header(headers, OWN_HEADERS + name) for name in (b"task", b"session", b"agent"))
        tape = Tape(self._sink, run=run, task=task, session=session, agent=agent, clean=self._clean)
        tape.begin()
        self.counts["runs"] += 1
        return tape

    def url(self, path: str, query: bytes) -> str:
        """The address of a path, which begins with the upstream's own, with the `/v1` in which that ends, or behind it."""
        if not path.startswith(f"{self.base}/"):
            path = self.base + (path[3:] if self.base.endswith("/v1") and path.startswith("/v1/") else path)
        return f"{self.origin}{path}" + (f"?{query.decode('ascii', 'replace')}" if query else "")

    @property
    def client(self) -> Any:
        import httpx2

        if self._client is None:
            timeout = httpx2.Timeout(None, connect=_CONNECT_S)
            self._client = httpx2.AsyncClient(timeout=timeout, limits=httpx2.Limits(), follow_redirects=False)
        return self._client


@dataclass(frozen=True)
class _Asked:
    """A request as it came, and where it goes."""

    run: str
    method: str
    url: str
    headers: Headers
    body: bytes


class _Exchange:
    """One request on its way to the upstream and back."""

    def __init__(self, proxy: Proxy, asked: _Asked, send: Send) -> None:
        self._proxy, self._asked, self._send = proxy, asked, send
        self._clock = Clock()
        self._chunks: list[bytes] = []
        self._first_s: float | None = None
        self._status, self._kind, self._packing = 0, "application/json", b""
        self._tape: Tape | None = None
        path = urlsplit(asked.url).path
        api = api_of(asked.method, path)
        if api is not None:
            plain = _unpacked(asked.body, (_header(asked.headers, b"content-encoding") or "").encode())
            attempt = _header(asked.headers, b"x-stainless-retry-count") or ""
            self._request = ModelRequest(api, plain, path, int(attempt) if attempt.isdecimal() else 0)
            self._tape = proxy.tape(asked.run, asked.headers)
            self._tape.model(self._request)

    async def run(self) -> None:
        """Pass it on. What is known by then is recorded, whoever breaks off."""
        import httpx2

        try:
            with unseen():
                response = await self._sent()
        except httpx2.TransportError as failure:
            self._proxy.counts["failed"] += 1
            self._recorded(named_error(failure))
            await _answer(self._send, 502, f"the upstream {self._proxy.origin} can't be reached: {named_error(failure)}")
            return
        except BaseException as failure:
            self._recorded(_gone(failure))
            raise
        try:
            await self._passed(response)
        except httpx2.TransportError as failure:
            self._proxy.counts["failed"] += 1
            self._recorded(named_error(failure))  # the client sees its answer break off, as it would without us
        except BaseException as failure:
            self._recorded(None if is_complete(self._body()) else _gone(failure))
            raise
        finally:
            await response.aclose()

    async def _sent(self) -> Any:
        import httpx2

        asked = self._asked
        headers = [*_forwarded(asked.headers), (b"accept-encoding", _accepted(asked.headers))]
        content = asked.body or (b"" if asked.method in ("POST", "PUT", "PATCH") else None)
        request = httpx2.Request(asked.method, asked.url, headers=headers, content=content)
        return await self._proxy.client.send(request, stream=True, auth=None)

    async def _passed(self, response: Any) -> None:
        self._status = response.status_code
        self._kind = response.headers.get("content-type", self._kind).partition(";")[0].strip().lower()
        self._packing = response.headers.get("content-encoding", "").encode()
        raw = [(name.lower(), value) for name, value in response.headers.raw]
        kept = [(name, value) for name, value in raw if name not in _BY_HOP or name == b"content-length"]
        await self._send({"type": "http.response.start", "status": self._status, "headers": kept})
        async for chunk in response.aiter_raw():
            if self._first_s is None and b"data:" in chunk:
                self._first_s = self._clock.elapsed_s()
            if self._tape is not None:
                self._chunks.append(chunk)
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._recorded(None)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _recorded(self, error: str | None) -> None:
        if self._tape is None:
            return
        tape, self._tape = self._tape, None
        body = self._body()
        if self._status >= _LEAST_FAILURE:
            for credential in self._credentials():
                body = body.replace(credential.encode(), REDACTED_KEY.encode())
        answer = ModelAnswer(
            body, self._status, self._kind, self._clock.started_at_us, self._clock.elapsed_s(), self._first_s, error
        )  # fmt: skip
        self._proxy.counts["calls"] += 1
        tape.model_answered(self._request, answer)

    def _body(self) -> bytes:
        return _unpacked(b"".join(self._chunks), self._packing)

    def _credentials(self) -> list[str]:
        """What this request was let in by: a refusal may repeat it."""
        in_headers = credentials((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._asked.headers)
        return in_headers + [value for name, value in parse_qsl(urlsplit(self._asked.url).query) if name.lower() in _KEYS_IN_QUERY]


def create_app(upstream: str, sink: Sink, *, clean: Clean | None = None) -> Proxy:
    """An ASGI application that passes everything on to `upstream` and records model calls into `sink`.

    Without `clean`, events are cleaned of what errors may repeat. Raises UserError where `upstream` is no URL.
    """
    return Proxy(upstream, sink, clean=clean or Cleaner())


def serve(
    upstream: str,
    *,
    to: Path | None = None,
    store: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 4319,
    redact: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    watch: Callable[[Passed], None] = lambda _: None,
) -> Passed:
    """Record until SIGINT or SIGTERM. The tape is `to`; None is `STORE.tape.jsonl` where there is a store, else `runs.jsonl`.

    With a store, what the tape holds is taken in when the proxy has stopped. Port 0 is any free one; `redact` names kinds that are
    replaced before anything is written. Raises UserError where the address can't be had or `upstream` is no URL, StoreError where the
    store can't be written then; the tape has it all.
    """
    tape = to or (Path(f"{store}.tape.jsonl") if store else Path("runs.jsonl"))
    with listening(host, port) as listener:
        sink = TapeFile(tape)
        try:
            proxy = create_app(upstream, sink, clean=Cleaner(tuple(redact) or None))
            ready = f"recording what passes http://{address(listener)} to {upstream} on {tape}; Ctrl-C stops"
            asyncio.run(_serve(proxy, listener, lambda: watch(_passed(proxy, tape)), lambda: say(ready)))
        finally:
            sink.close()
    done = _passed(proxy, tape)
    if store is None or not tape.stat().st_size:
        return done
    from counterplay import loop

    with loop.opened(store) as opened:
        report = loop.ingest([tape], opened)
    return replace(done, traces_added=report.traces_added, traces_updated=report.traces_updated)


async def _serve(proxy: Proxy, listener: Any, watch: Callable[[], None], ready: Callable[[], None]) -> None:
    http = server(proxy, date=False)
    with until_signal() as stopped:
        ready()
        tasks = [asyncio.create_task(http.serve([listener])), asyncio.create_task(stopped.wait())]
        try:
            while not any(task.done() for task in tasks):
                watch()
                await asyncio.wait(tasks, timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            http.should_exit = True
            await tasks[0]
        finally:
            tasks[1].cancel()
            await proxy.aclose()


def _passed(proxy: Proxy, tape: Path) -> Passed:
    told = proxy.counts
    return Passed(told["requests"], told["calls"], told["runs"], told["failed"], str(tape))


async def _unless_gone(work: Any, receive: Receive) -> None:
    """Do it, but stop as soon as the client has gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, leaving):
            task.cancel()
        ended = await asyncio.gather(working, leaving, return_exceptions=True)
    if isinstance(ended[0], Exception):
        raise ended[0]


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes | None:
    """The whole request; None where the client goes away before it has sent it."""
    taken = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        taken += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(taken)


async def _answer(send: Send, status: int, reason: str) -> None:
    """An error in the form in which OpenAI's clients read it."""
    await _send_json(send, status, {"error": {"message": reason, "type": "counterplay_proxy_error", "param": None, "code": None}})


async def _send_json(send: Send, status: int, value: Mapping[str, Any]) -> None:
    body = orjson.dumps(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _gone(failure: BaseException) -> str:
    return CLOSED_EARLY if isinstance(failure, asyncio.CancelledError) else named_error(failure)


def _named(headers: Headers) -> str:
    """The run that headers name; empty where none does."""
    own = _header(headers, OWN_HEADERS + b"run")
    if own:
        return own[:_LONGEST_ID]
    traced = _TRACE.fullmatch((_header(headers, b"traceparent") or "").strip().lower())
    return traced[1] if traced else ""


def _header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


def _forwarded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Without those that are of one connection only, those that are for us, and those that `connection` names."""
    listed = {word.strip().lower() for key, value in headers if key.lower() == b"connection" for word in value.split(b",")}
    left_out = _BY_HOP | listed | {b"accept-encoding"}
    return [(key, value) for key, value in headers if key.lower() not in left_out and not key.lower().startswith(OWN_HEADERS)]


def _accepted(headers: Headers) -> bytes:
    """Of the packings that the client takes those that can be read here."""
    asked = (_header(headers, b"accept-encoding") or "").encode().split(b",")
    taken = [word.strip() for word in asked if word.partition(b";")[0].strip().lower() in _DECODED]
    return b", ".join(taken) or b"identity"


def _unpacked(raw: bytes, packing: bytes) -> bytes:
    """Without its content encoding, as far as it goes; as it is where it is packed in another way."""
    bits = _DECODED.get(packing.strip().lower())
    if bits is None or not raw:
        return raw
    for window in (bits, -15):
        try:
            return zlib.decompressobj(window).decompress(raw)
        except zlib.error:
            continue
    return raw
