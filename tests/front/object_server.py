"""A real S3 API on loopback, and in front of it a server that fails as networks and servers do."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import httpx2
import pytest

_OWN = {"host", "expect", "connection", "transfer-encoding", "content-length", "date", "server"}
"""Headers of one connection."""


class Bucket:
    """A bucket of a server that checks no signatures, made here."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint, self.name = endpoint, name
        scope = "AKIAOTHER/20260101/us-east-1/s3/aws4_request"
        signed = {"authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"}
        self._client = httpx2.Client(base_url=endpoint, timeout=30, headers=signed)
        self._client.put(f"/{name}").raise_for_status()

    def put(self, key: str, data: bytes) -> None:
        self._client.put(f"/{self.name}/{quote(key)}", content=data).raise_for_status()

    def get(self, key: str) -> bytes:
        found = self._client.get(f"/{self.name}/{quote(key)}")
        found.raise_for_status()
        return found.content

    def delete(self, key: str) -> None:
        self._client.delete(f"/{self.name}/{quote(key)}").raise_for_status()

    def keys(self, prefix: str = "") -> list[str]:
        """Without the markers of folders."""
        found = self._client.get(f"/{self.name}", params={"list-type": "2", "prefix": prefix}).text
        return [key for key in re.findall(r"<Key>(.*?)</Key>", found) if not key.endswith("/")]

    def uri(self, key: str = "", endpoint: str | None = None) -> str:
        return f"s3://{self.name}/{key}?endpoint={endpoint or self.endpoint}"

    def close(self) -> None:
        self._client.close()


@contextmanager
def serving_objects() -> Iterator[str]:
    """The endpoint of a moto server that lives as long as the block. Skips the test where moto is missing."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed: no S3 API on loopback")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        _, port = running.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        running.stop()


Fault = Callable[[str, str, str], "str | None"]
"""Of method, path and range: None to pass on, `cut` to send half and close, `reset` to close at once, or `CODE:NAME` as an S3 error."""


@contextmanager
def faulty(endpoint: str, fault: Fault) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A server that passes requests on to another unless `fault` says otherwise; and the requests it got."""
    seen: list[tuple[str, str, str]] = []
    client = httpx2.Client(base_url=endpoint, timeout=30)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _pass(self):
            asked = (self.command, self.path, self.headers.get("range") or "")
            seen.append(asked)
            body = b"".join(self._body())
            what = fault(*asked)
            if what == "reset":
                self.close_connection = True
                return
            if what and ":" in what:
                status, name = what.split(":")
                data = f"<Error><Code>{name}</Code><Message>sekrit-message</Message></Error>".encode()
                self._answer(int(status), {"content-type": "application/xml"}, b"" if self.command == "HEAD" else data, len(data))
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            found = client.request(self.command, self.path, headers=headers, content=body)
            kept = {name: value for name, value in found.headers.items() if name.lower() not in _OWN}
            data = found.content
            length = int(found.headers.get("content-length") or len(data))
            self._answer(found.status_code, kept, data[: len(data) // 2] if what == "cut" else data, length)
            if what == "cut":
                self.close_connection = True

        def _body(self):
            if self.headers.get("transfer-encoding") != "chunked":
                yield self.rfile.read(int(self.headers.get("content-length") or 0))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass

        def _answer(self, status, headers, data, length):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._pass)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        client.close()
