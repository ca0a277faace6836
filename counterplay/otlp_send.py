"""Sending spans to a collector or viewer over OTLP/HTTP, in protobuf: the encoding that all of them take."""

from __future__ import annotations

import base64
import gzip
import ipaddress
import os
import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from counterplay.core.errors import UserError

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
_AGAIN = {429, 502, 503, 504}
_TRIES, _PATIENCE_S, _REST_S = 5, 60.0, 1.0
_PATH = "/v1/traces"


class Sender:
    """Posts documents to `url`, one request each. Headers come from OTEL_EXPORTER_OTLP_HEADERS (`name=value,...`), as OpenTelemetry has it.

    Raises UserError where the URL is none, or would carry headers in the clear to another machine. A context manager.
    """

    def __init__(self, url: str) -> None:
        import httpx2

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"got --to {url!r}", "an http or https URL, such as http://localhost:6006")
        self.url = url if parts.path.strip("/") else f"{url.rstrip('/')}{_PATH}"
        headers = _headers(os.environ.get(HEADERS, ""))
        if headers and parts.scheme == "http" and not _is_here(parts.hostname):
            raise UserError(f"got {HEADERS} for {parts.hostname} over plain http", "https", "Else anybody on the way reads them.")
        self._client = httpx2.Client(timeout=_PATIENCE_S, headers=headers, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, document: Mapping[str, Any]) -> None:
        """Raises UserError where it is not taken, after some tries where the server asks for patience."""
        import httpx2

        body = gzip.compress(encoded(document), 1)
        kind = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        for tried in range(1, _TRIES + 1):
            try:
                answer = self._client.post(self.url, content=body, headers=kind)
            except httpx2.HTTPError as error:
                raise UserError(f"{self.url} does not answer: {error}", "a collector or viewer that listens there") from error
            if answer.is_success:
                return
            if answer.status_code not in _AGAIN or tried == _TRIES:
                raise UserError(f"{self.url} answered {answer.status_code}: {answer.text[:200]}", "one that takes OTLP/HTTP traces")
            time.sleep(min(_wait_s(answer.headers.get("retry-after")) or _REST_S * tried, _PATIENCE_S))


def encoded(document: Mapping[str, Any]) -> bytes:
    """An OTLP/JSON export as protobuf. Lone surrogates, which it can't hold, are replaced."""
    from google.protobuf.json_format import ParseDict
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return ParseDict(_in_base64(document), ExportTraceServiceRequest()).SerializeToString()


def _in_base64(value: Any) -> Any:
    """Ids as protobuf's own JSON has them: in base64, where OTLP/JSON has hex."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_in_base64(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    ids = {key: base64.b64encode(bytes.fromhex(value[key])).decode() for key in ("traceId", "spanId", "parentSpanId") if key in value}
    return {key: ids[key] if key in ids else _in_base64(item) for key, item in value.items()}


def _headers(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {unquote(name.strip()): unquote(value.strip()) for name, _, value in pairs}


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wait_s(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
