"""All that is replaced in other libraries while a run is active, and by what. Nothing is loaded for a library that is not."""

from __future__ import annotations

from counterplay.replay.agents.patches import Patch, Patches

_HERE = "counterplay.replay.agents"
_CHAT, _TOOL = "langchain_core.language_models.chat_models", "langchain_core.tools.base"
_HTTP = ("httpx", "httpx2")

PATCHES = Patches(
    [
        Patch("threading", "Thread", "start", f"{_HERE}.threads:started"),
        Patch("concurrent.futures.thread", "ThreadPoolExecutor", "submit", f"{_HERE}.threads:submitted"),
        # Every transport that these libraries bring, those for tests included, and those over aiohttp.
        *(
            Patch(library, owner, "handle_request", f"{_HERE}.transports:watched")
            for library in _HTTP
            for owner in ("HTTPTransport", "WSGITransport", "MockTransport")
        ),
        *(
            Patch(library, owner, "handle_async_request", f"{_HERE}.transports:awatched")
            for library in _HTTP
            for owner in ("AsyncHTTPTransport", "ASGITransport", "MockTransport")
        ),
        Patch("httpx_aiohttp", "AiohttpTransport", "handle_async_request", f"{_HERE}.transports:awatched"),
        Patch(
            "litellm.llms.custom_httpx.aiohttp_transport",
            "LiteLLMAiohttpTransport",
            "handle_async_request",
            f"{_HERE}.transports:awatched",
        ),
        *(
            Patch(_CHAT, "BaseChatModel", entry, f"{_HERE}.chat_models:entered")
            for entry in ("_generate_with_cache", "stream", "astream", "_iter_v2_events", "_aiter_v2_events")
        ),
        Patch(_CHAT, "BaseChatModel", "_agenerate_with_cache", f"{_HERE}.chat_models:aentered"),
        Patch(_CHAT, "BaseChatModel", "agenerate", f"{_HERE}.chat_models:gathered"),
        Patch(_TOOL, "BaseTool", "run", f"{_HERE}.chat_tools:entered"),
        Patch(_TOOL, "BaseTool", "arun", f"{_HERE}.chat_tools:aentered"),
    ]
)
