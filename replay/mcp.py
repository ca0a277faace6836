"""The tools of an MCP server as a world, over stdio or streamable HTTP, through the official SDK.

What a tool does to the world comes from its annotations, and a tool without them is external: it is never executed unless
it is named. Annotations are the server's own word; give `effects` where it is not to be trusted.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias, cast

from counterplay.core.canonical import canonical, content_key
from counterplay.core.effects import Effect
from counterplay.core.errors import UserError
from counterplay.core.nouns import Message, ToolSpec
from counterplay.replay.effects import EffectTable
from counterplay.replay.environment_fingerprint import source_digest
from counterplay.replay.mcp_content import content_of
from counterplay.replay.world import Content, ToolError

if TYPE_CHECKING:
    from mcp import Client, StdioServerParameters

Server: TypeAlias = "StdioServerParameters | str | Callable[[], Any]"
_START_S = 30.0
_LAST_WORDS = 500


def mcp_world(
    server: Server,
    *,
    prompt: Sequence[Message] = (),
    effects: Mapping[str, Effect] | None = None,
    fresh: bool | None = None,
    timeout_s: float = 60.0,
) -> Callable[[], Coroutine[Any, Any, McpWorld]]:
    """A factory of worlds for `LiveEnvironment`, each with a connection of its own.

    `server` is how to start one (`mcp.StdioServerParameters`: a process of its own for each instance), the URL of one that runs
    already, or a function that gives anything `mcp.Client` takes, called once an instance. `fresh` says that each instance begins
    in the same state, so that a prefix can be executed again; None: all but URLs do. A server that only reads needs not be
    fresh for that. `effects`, by tool name, stand above the annotations. A call that takes longer than `timeout_s` ends its
    branch, as does a server that dies.
    """

    async def make() -> McpWorld:
        world = McpWorld(server, prompt=prompt, effects=effects, fresh=fresh, timeout_s=timeout_s)
        await world.open()
        return world

    return make


class McpWorld:
    """One connection to one server. `tools` and `fingerprint` are known once it is open."""

    idle_limit = 16  # kept branches hold a process each

    def __init__(
        self, server: Server, *, prompt: Sequence[Message], effects: Mapping[str, Effect] | None, fresh: bool | None, timeout_s: float
    ) -> None:
        self.prompt, self.timeout_s = tuple(prompt), timeout_s
        self.tools: Sequence[ToolSpec] = ()
        self.fingerprint, self.replayable = "mcp:", False
        self._server, self._effects = server, dict(effects or {})
        self._is_fresh = not isinstance(server, str) if fresh is None else fresh
        self._client: Client | None = None
        self._holder: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._errors: tempfile._TemporaryFileWrapper[str] | None = None
        self._broken = False

    async def open(self) -> None:
        """Connect and list the tools. Raises UserError where there is no server to talk to."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.ensure_future(self._hold(ready))
        try:
            await asyncio.wait_for(asyncio.shield(ready), _START_S)
        except TimeoutError:
            words = self._last_words()
            await self._abandon()
            raise UserError(f"{self._name} did not answer within {_START_S:g} s{words}", "an MCP server") from None
        except BaseException:
            await self._abandon()
            raise

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Content:
        """Call one tool. Raises ToolError where the server refuses the call, TimeoutError and ConnectionError where it does not answer."""
        from mcp import MCPError
        from mcp_types import INVALID_PARAMS, REQUEST_TIMEOUT

        if self._client is None:
            raise ConnectionError(f"{self._name} is not connected")
        try:
            result = await self._client.call_tool(name, dict(arguments), read_timeout_seconds=self.timeout_s)
        except MCPError as error:
            if error.code == INVALID_PARAMS:
                raise ToolError(f"Error: {error.message}") from None
            self._broken = True
            if error.code == REQUEST_TIMEOUT:
                raise TimeoutError(f"{self._name} did not answer {name} within {self.timeout_s:g} s") from error
            raise ConnectionError(f"{self._name} did not answer {name}: {error.message}{self._last_words()}") from error
        return content_of(result)

    async def close(self) -> None:
        """End the connection, and the process where it is this instance's own."""
        holder, self._holder, self._client = self._holder, None, None
        self._over.set()
        if holder is not None:
            await asyncio.wait([holder])
            error = None if holder.cancelled() else holder.exception()
            if error is not None and not self._broken:
                raise error
        errors, self._errors = self._errors, None
        if errors is not None:
            errors.close()

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        """Keep the connection open: a task of its own, because the SDK wants it closed by the task that opened it."""
        from mcp import Client

        try:
            async with Client(self._target(), cache=None) as client:
                await self._learn(client)
                self._client = client
                if not ready.done():
                    ready.set_result(None)
                await self._over.wait()
        except Exception as error:
            if ready.done():
                raise
            do = "Check the command or the URL, and that the server runs alone."
            problem = UserError(f"{self._name} can't be reached: {_innermost(error)}{self._last_words()}", "an MCP server", do)
            problem.__cause__ = error
            ready.set_exception(problem)

    async def _learn(self, client: Client) -> None:
        tools, cursor = [], None
        while True:
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        known = EffectTable.from_mcp([tool.model_dump(by_alias=True, exclude_none=True) for tool in tools]).effects() | self._effects
        self.tools = [ToolSpec.function(tool.name, tool.description or "", tool.input_schema, known[tool.name]) for tool in tools]
        info = client.server_info
        told = "" if info is None else f"{info.name}@{info.version}"
        self.fingerprint = f"mcp:{told}:{content_key(self._address, *(f'{tool.wire} {tool.effect}' for tool in self.tools))}"
        self.replayable = self._is_fresh or all(tool.effect.kind in ("pure", "read") for tool in self.tools)

    def _target(self) -> Any:
        """What the SDK's client connects to. A process writes its complaints where they can be quoted."""
        from mcp import StdioServerParameters, stdio_client

        server = self._server() if callable(self._server) else self._server
        if not isinstance(server, StdioServerParameters):
            return server
        self._errors = tempfile.NamedTemporaryFile("w", encoding="utf-8")  # noqa: SIM115  closed by `close`
        return stdio_client(server, errlog=cast("TextIO", self._errors.file))

    async def _abandon(self) -> None:
        """Give up on a connection that did not come about."""
        self._broken = True
        if self._holder is not None:
            self._holder.cancel()
        await self.close()

    @property
    def _address(self) -> str:
        server = self._server
        if isinstance(server, str):
            return server
        if not callable(server):  # only as part of a digest: the environment may hold keys
            return canonical([server.command, *server.args, str(server.cwd or ""), server.env or {}])
        return f"{getattr(server, '__qualname__', type(server).__name__)} {source_digest(server)}"

    @property
    def _name(self) -> str:
        server = self._server
        shown = server.partition("?")[0].rpartition("@")[2] if isinstance(server, str) else getattr(server, "command", "")
        return f"the MCP server {shown}".strip()

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        words = Path(self._errors.name).read_text(encoding="utf-8", errors="replace").strip()[-_LAST_WORDS:]
        return f"; its last words: {words}" if words else ""


def _innermost(error: BaseException) -> str:
    """The first error inside groups of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
