"""A small MCP server of the official SDK: in the process, or as one of its own by `python mcp_server.py stdio FILE` or `http FILE PORT`.

It keeps notes in memory. Each tool that was executed is a line in FILE, so that a test can count over all processes.
"""

import os
import sys
import time
from pathlib import Path

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

READ, WRITE = ToolAnnotations(read_only_hint=True), ToolAnnotations(open_world_hint=False, destructive_hint=False)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6300010000000500010d0a2db40000000049454e44ae426082"
)


def make_server(executed: Path) -> MCPServer:
    """A server with notes of its own."""
    server = MCPServer("notes", version="1.2", log_level="ERROR")
    notes: dict[str, str] = {}

    def note(tool: str) -> None:
        with executed.open("a") as file:
            file.write(f"{tool}\n")

    @server.tool(annotations=READ)
    def get(key: str) -> str:
        """Read a note."""
        note("get")
        if key not in notes:
            raise ToolError(f"no note {key}")
        return notes[key]

    @server.tool(annotations=READ)
    def everything() -> dict[str, str]:
        """All notes."""
        note("everything")
        return dict(notes)

    @server.tool(annotations=READ)
    def count() -> int:
        """How many notes there are."""
        note("count")
        return len(notes)

    @server.tool(annotations=WRITE)
    def put(key: str, text: str) -> str:
        """Write a note."""
        note("put")
        notes[key] = text
        return f"{key} is {text}"

    @server.tool(annotations=READ)
    def picture() -> Image:
        """A picture."""
        note("picture")
        return Image(data=PIXEL, format="png")

    @server.tool(annotations=READ)
    def sleep(seconds: float) -> str:
        """Take a while."""
        note("sleep")
        time.sleep(seconds)
        return "awake"

    @server.tool(annotations=READ)
    def die() -> str:
        """Crash."""
        note("die")
        sys.stderr.write("out of paper")
        sys.stderr.flush()
        os._exit(3)

    @server.tool(annotations=READ)
    def process() -> int:
        """Which process this is."""
        return os.getpid()

    @server.tool()
    def send_mail(to: str) -> str:
        """Send a mail; says nothing of what it does to the world."""
        note("send_mail")
        return f"sent to {to}"

    return server


if __name__ == "__main__":
    mine = make_server(Path(sys.argv[2]))
    if sys.argv[1] == "stdio":
        mine.run("stdio")
    else:
        mine.run("streamable-http", host="127.0.0.1", port=int(sys.argv[3]))
