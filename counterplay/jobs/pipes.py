"""Pickled messages between a driver and a worker of its own on this machine, and a worker that does not outlive its driver."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import socket

_LENGTH_BYTES = 8
_PR_SET_PDEATHSIG = 1


class Pipe:
    """One end. A message of any size is written and read piece by piece, while other tasks go on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, connected: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=connected))

    def put(self, message: object) -> None:
        """Send `message`, in the order of calls. What the other end does not take yet waits in memory."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        if not self._writer.is_closing():
            self._writer.writelines((len(data).to_bytes(_LENGTH_BYTES, "big"), data))

    async def send(self, message: object) -> None:
        """Send `message`, and wait while much of what was sent is not taken. Where the other end is gone nothing is sent."""
        self.put(message)
        try:
            await self._writer.drain()
        except ConnectionError:
            return  # `next` says that it is gone

    async def next(self) -> Any:
        """The next message; None where the other end is gone."""
        try:
            length = await self._reader.readexactly(_LENGTH_BYTES)
            data = await self._reader.readexactly(int.from_bytes(length, "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return pickle.loads(data)  # noqa: S301  our own process wrote it

    def close(self) -> None:
        self._writer.close()


def die_with(parent: int) -> None:
    """Let the kernel end this process when its parent `parent` ends, however that ends; end now where it has. On Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
