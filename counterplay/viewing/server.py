"""The page and its API over HTTP, for this machine alone: a token, no other host's name, nothing that writes.

Whoever has not the token of this process sees nothing, so that neither another user of the machine nor a page in the same browser reads
the logs; a name that resolves to 127.0.0.1 but is not it (DNS rebinding) is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from counterplay.core.errors import CounterplayError, UserError
from counterplay.serving import server, until_signal
from counterplay.viewing.answers import Answers
from counterplay.viewing.asking import MissingError
from counterplay.viewing.page import as_json, built, policy

HOST = "127.0.0.1"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Site:
    """The application. `token` is what a browser must bring: once in the URL, then as a cookie, or as a bearer token."""

    def __init__(self, answers: Answers, port: int, token: str | None = None) -> None:
        self.answers, self.port, self.token = answers, port, token or secrets.token_urlsafe(24)
        self.cookie = f"counterplay-{port}"
        self._page = built()
        self._headers = {**_HEADERS, "Content-Security-Policy": policy(self._page, "'self'") + "; frame-ancestors 'none'"}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/?token={self.token}"

    @property
    def app(self) -> ASGIApp:
        routes = [Route("/", self._open, methods=["GET"]), Route("/api/{path:path}", self._ask, methods=["GET"])]
        return _Guarded(GZipMiddleware(Starlette(routes=routes), minimum_size=1024, compresslevel=3), self._refusal, self._headers)

    def _refusal(self, request: Request) -> Response | None:
        """Why a request gets no answer; None where it gets one."""
        if request.headers.get("host", "") not in {f"{HOST}:{self.port}", f"localhost:{self.port}"}:
            return _problem(403, UserError("the request names another host", f"{HOST}:{self.port}"))
        if request.headers.get("sec-fetch-site", "none") == "cross-site" and request.url.path != "/":
            return _problem(403, UserError("the request comes from another site", "the page itself"))
        return None

    def _knows(self, request: Request) -> bool:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else request.cookies.get(self.cookie, "")
        return hmac.compare_digest(given.encode(), self.token.encode())

    async def _open(self, request: Request) -> Response:
        given = request.query_params.get("token", "")
        if hmac.compare_digest(given.encode(), self.token.encode()):
            onward = RedirectResponse("/", status_code=303)
            onward.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return onward
        if not self._knows(request):
            return HTMLResponse(
                "<!doctype html><title>counterplay</title><p>Open the URL that <code>counterplay view</code> printed.</p>", 401
            )
        return HTMLResponse(self._page)

    async def _ask(self, request: Request) -> Response:
        if not self._knows(request):
            return _problem(401, UserError("the request has no token", "the cookie, or a bearer token", "Open the URL that was printed."))
        path = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0].removeprefix("/api/")
        try:
            answer = await run_in_threadpool(self.answers.answer, path, dict(request.query_params))
        except MissingError as error:
            return _problem(404, error)
        except UserError as error:
            return _problem(400, error)
        except CounterplayError as error:
            return _problem(500, error)
        return _json(answer)


class _Guarded:
    """Every response, whatever made it, carries the same headers; what is refused never reaches the application."""

    def __init__(self, app: ASGIApp, refusal: Callable[[Request], Response | None], headers: dict[str, str]) -> None:
        self._app, self._refusal = app, refusal
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            await send(message)

        refused = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, guarded)


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, media_type="application/json")


def _problem(status: int, error: CounterplayError) -> Response:
    return _json({"error": {"got": error.got, "wanted": error.wanted, "do": error.do}}, status)


def serve(site: Site, listener: socket.socket, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is given the URL to open."""
    asyncio.run(_serve(site, listener, ready))


async def _serve(site: Site, listener: socket.socket, ready: Callable[[str], None]) -> None:
    serving = server(site.app)
    with until_signal() as stopped:
        running = asyncio.create_task(serving.serve(sockets=[listener]))
        ready(site.url)
        await asyncio.wait([running, asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
        serving.should_exit = True
        await running
