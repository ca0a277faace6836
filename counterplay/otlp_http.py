"""OTLP over HTTP: what a request must be, what it is refused for, and the answers in the encoding it came in.

Decoding runs in two threads of its own, so that a large body does not hold up the others; bodies that are on their way are bounded
in size, in number of bytes held together, and in time.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from counterplay.connectors.otlp_protobuf import Signal
from counterplay.otlp_parts import parts_of
from counterplay.spool import Encoding, Frame, Meta

PROTOBUF, JSON = "application/x-protobuf", "application/json"

_ENCODINGS: Mapping[str, Encoding] = {PROTOBUF: "protobuf", JSON: "json"}
_BODIES_AT_ONCE = 4
_BODY_TIMEOUT_S = 30.0
_GZIP_MEMBERS = 16
_GRPC_CODES = {400: 3, 404: 12, 405: 12, 408: 4, 413: 8, 415: 3, 429: 8, 503: 14}
_ZLIB_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Refused(Exception):  # noqa: N818  an answer, not a defect
    """A request that is not taken, and why. `retry_s` is when the client may come again; None where that would not help."""

    def __init__(self, status: int, reason: str, retry_s: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_s = status, reason, retry_s


@dataclass(frozen=True, slots=True)
class Export:
    """One request, decoded. `nameless` counts spans that name no trace, `passed_over` log records that are no messages and
    spans of counterplay's own jobs.
    """

    frames: tuple[Frame, ...]
    count: int
    nameless: int
    passed_over: int


class Endpoint:
    """The HTTP application: `keep` makes an export durable, `refusal` says why nothing is taken now, `report` what happened so far."""

    def __init__(
        self,
        keep: Callable[[Export], Awaitable[None]],
        refusal: Callable[[], Refused | None],
        report: Callable[[], Mapping[str, Any]],
        *,
        max_body_bytes: int,
    ) -> None:
        self._keep, self._refusal, self._report, self._limit = keep, refusal, report, max_body_bytes
        self._held = 0
        self._threads = ThreadPoolExecutor(2, "decode")
        self.app = Starlette(
            routes=[
                Route("/v1/traces", self._traces, methods=["POST"]),
                Route("/v1/logs", self._logs, methods=["POST"]),
                Route("/", self._status, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _unknown},
        )

    def close(self) -> None:
        self._threads.shutdown()

    async def _traces(self, request: Request) -> Response:
        return await self._export(request, "traces")

    async def _logs(self, request: Request) -> Response:
        return await self._export(request, "logs")

    async def _status(self, request: Request) -> Response:  # noqa: ARG002  what a route is called with
        return Response(orjson.dumps(self._report()), media_type=JSON)

    async def _export(self, request: Request, signal: Signal) -> Response:
        media = _media(request)
        body = bytearray()
        try:
            await self._read(request, body)
            export = await self._decoded(request, media, signal, bytes(body))
            await self._keep(export)
        except Refused as refused:
            return _refusal(media, refused)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        finally:
            self._held -= len(body)
        return _success(media, signal, export.nameless)

    async def _read(self, request: Request, body: bytearray) -> None:
        """The body as it came. One that is refused is read to its end all the same, as clients expect, unless it is too large."""
        announced = request.headers.get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced) > self._limit:
            raise _too_large(self._limit)
        refused = self._refusal()
        size = 0
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._limit:
                        raise _too_large(self._limit)
                    if refused is None and self._held + len(chunk) > _BODIES_AT_ONCE * self._limit:
                        refused = Refused(429, "too many large exports at once", 1)
                    if refused is None:
                        self._held += len(chunk)
                        body += chunk
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {_BODY_TIMEOUT_S:g} seconds") from None
        if refused is not None:
            raise refused

    async def _decoded(self, request: Request, media: str, signal: Signal, body: bytes) -> Export:
        if media not in _ENCODINGS:
            raise Refused(415, f"got the content type {media or '(none)'!r}, wanted {PROTOBUF} or {JSON}")
        packing = request.headers.get("content-encoding", "identity").strip().lower()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, decoded, body, packing, signal, _ENCODINGS[media], self._limit)


def decoded(body: bytes, packing: str, signal: Signal, encoding: Encoding, limit: int) -> Export:
    """A request's body as frames by trace. Raises Refused where it is too large or not what it is said to be."""
    try:
        data = _unpacked(body, packing, limit)
        parts, passed_over = parts_of(data, signal, encoding)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    now = time.time()
    frames = tuple(
        Frame.of(Meta(part.trace, signal, encoding, part.count, part.ended, now, len(part.payload)), part.payload) for part in parts
    )
    return Export(frames, sum(part.count for part in parts), sum(part.count for part in parts if not part.trace), passed_over)


def _unpacked(body: bytes, packing: str, limit: int) -> bytes:
    """The body without its content encoding, never more than `limit` bytes of it. Raises ValueError where it is damaged."""
    if packing in ("", "identity"):
        return body
    if packing == "zstd":
        return _unpacked_zstd(body, limit)
    if packing not in _ZLIB_BITS:
        raise Refused(415, f"got the content encoding {packing!r}, wanted gzip, deflate, zstd or identity")
    try:
        return _inflated(body, _ZLIB_BITS[packing], limit)
    except zlib.error as error:
        if packing != "deflate":
            msg = f"the body is not what its content encoding {packing} says: {error}"
            raise ValueError(msg) from None
    try:
        return _inflated(body, -15, limit)  # deflate without the zlib header that the standard asks for
    except zlib.error as error:
        msg = f"the body is not what its content encoding {packing} says: {error}"
        raise ValueError(msg) from None


def _inflated(body: bytes, bits: int, limit: int) -> bytes:
    taken = bytearray()
    for _ in range(_GZIP_MEMBERS):
        stream = zlib.decompressobj(bits)
        taken += stream.decompress(body, limit - len(taken) + 1)
        if len(taken) > limit:
            raise _too_large(limit)
        if not stream.eof:
            msg = "the compressed body is cut short"
            raise ValueError(msg)
        body = stream.unused_data
        if not body:
            return bytes(taken)
    msg = f"the body is in more than {_GZIP_MEMBERS} compressed pieces"
    raise ValueError(msg)


def _unpacked_zstd(body: bytes, limit: int) -> bytes:
    import pyarrow as pa

    try:
        with pa.input_stream(pa.BufferReader(body), compression="zstd") as stream:
            data: bytes = stream.read(limit + 1)
    except OSError as error:
        msg = f"the body is not what its content encoding zstd says: {error}"
        raise ValueError(msg) from None
    if len(data) > limit:
        raise _too_large(limit)
    return data


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body has more than {limit} bytes; send fewer spans at once")


def _media(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _success(media: str, signal: Signal, nameless: int) -> Response:
    """ExportTraceServiceResponse or ExportLogsServiceResponse, with what was not taken of an export that otherwise was."""
    reason = "without a trace id; they are in quarantine"
    if media == JSON:
        rejected = "rejectedSpans" if signal == "traces" else "rejectedLogRecords"
        said = {"partialSuccess": {rejected: str(nameless), "errorMessage": reason}} if nameless else {}
        return Response(orjson.dumps(said), media_type=JSON)
    return Response(_protobuf_success(signal, nameless, reason), media_type=PROTOBUF)


def _protobuf_success(signal: Signal, nameless: int, reason: str) -> bytes:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess, ExportTraceServiceResponse

    if not nameless:
        return b""
    if signal == "traces":
        part = ExportTracePartialSuccess(rejected_spans=nameless, error_message=reason)
        return ExportTraceServiceResponse(partial_success=part).SerializeToString()
    records = ExportLogsPartialSuccess(rejected_log_records=nameless, error_message=reason)
    return ExportLogsServiceResponse(partial_success=records).SerializeToString()


def _refusal(media: str, refused: Refused, headers: Mapping[str, str] | None = None) -> Response:
    """google.rpc.Status, as the standard asks for."""
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

    code = _GRPC_CODES.get(refused.status, 13)
    told = dict(headers or {})
    if refused.retry_s is not None:
        told["retry-after"] = str(refused.retry_s)
    if media == PROTOBUF:
        return Response(Status(code=code, message=refused.reason).SerializeToString(), refused.status, told, PROTOBUF)
    return Response(orjson.dumps({"code": code, "message": refused.reason}), refused.status, told, JSON)


async def _unknown(request: Request, error: Exception) -> Response:
    """A path or a method that is none of this server's."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    reasons = {404: f"{request.url.path} is not received here, only /v1/traces and /v1/logs", 405: "wanted POST"}
    return _refusal(_media(request), Refused(status, reasons.get(status, "not possible")), headers)
