"""Which calls of a chat log belong together, guessed from the bytes of their rows and told by name.

Calls of one session or trace are one part's. Where rows have no such id, or one for each request, those are whose prompts begin alike
up to the first user message: where one call continues another, theirs do.
"""

from __future__ import annotations

import re

from counterplay.connectors.parts import Part
from counterplay.connectors.prefixes import beginning

_EDGE = 4096
_SESSION = r"(?:x[-_])?session[-_]id|conversation[-_]id|thread[-_]id|helicone[-_]session[-_]id|session"
_TRACE = r"(?:x[-_])?trace[-_]id|x[-_]trace|run[-_]id|rollout[-_]id"
_IDS = tuple(re.compile(rf'"(?:{keys})"[ \t]*:[ \t]*"([^"\\]+)"'.encode(), re.IGNORECASE) for keys in (_SESSION, _TRACE))
_OF_REQUESTS = b'"call_type"'
"""A key of proxies that give each request a trace of its own."""


class Rows:
    """Tells which rows are of a part. What was found in one row is looked for first in the next."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._habit: tuple[int, int] | None = None

    def __call__(self, source: bytes, start: int, end: int) -> bool:
        messages = source.find(b'"messages"', start, end)
        head = min(messages, start + _EDGE) if messages >= 0 else min(end, start + _EDGE)
        edges = ((start, head), (max(start, end - _EDGE), end))
        return self._part.takes(self._id(source, edges) or beginning(source, max(messages, start), end, b'"user"', b"}"))

    def _id(self, source: bytes, edges: tuple[tuple[int, int], ...]) -> bytes | None:
        """The id of the session, or else of the trace. One that a proxy gave is of the request only."""
        if self._habit is not None and (found := self._found(source, edges, *self._habit)):
            return found
        loose = any(source.find(_OF_REQUESTS, *edge) >= 0 for edge in edges)
        for habit in ((of_trace, edge) for of_trace in ((0,) if loose else (0, 1)) for edge in (0, 1)):
            if found := self._found(source, edges, *habit):
                self._habit = habit
                return found
        return None

    def _found(self, source: bytes, edges: tuple[tuple[int, int], ...], of_trace: int, edge: int) -> bytes | None:
        found = _IDS[of_trace].search(source, *edges[edge])
        return found[1] if found else None
