"""An interceptor that keeps all it is shown, and gives the answers it was told to; and a server that streams in pieces."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Seen:
    """`models` and `tools` are answers to give, in order: a callable of the request, an answer, or None to let it through."""

    def __init__(self, models=(), tools=()):
        self.answers, self.tool_answers = list(models), list(tools)
        self.requests, self.answered, self.tool_requests, self.tool_answered_with = [], [], [], []
        self.order = []

    def model(self, request):
        self.requests.append(request)
        self.order.append("model")
        return given(self.answers, request)

    def model_answered(self, request, answer):
        assert any(request is asked for asked in self.requests)
        self.answered.append(answer)
        self.order.append("answered")

    def tool(self, request):
        self.tool_requests.append(request)
        self.order.append(f"tool {request.name}")
        return given(self.tool_answers, request)

    def tool_answered(self, request, answer):
        assert any(request is asked for asked in self.tool_requests)
        self.tool_answered_with.append(answer)
        self.order.append(f"{request.name} gave")


def given(answers, request):
    answer = answers.pop(0) if answers else None
    return answer(request) if callable(answer) else answer


def sse(*events, end=("[DONE]",)):
    """Pieces of a stream, one an event."""
    return [f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n".encode() for each in (*events, *end)]


def delta(content, at=0, **more):
    choice = {"index": at, "delta": {"role": "assistant", "content": content, **more}, "finish_reason": None}
    return {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


class Streaming:
    """Answers every POST by the pieces of its script, chunked; an Event among them is waited for, None breaks the connection."""

    def __init__(self, *pieces, content_type="text/event-stream", status=200, headers=None):
        self.pieces, self.content_type, self.status, self.headers = pieces, content_type, status, headers or {}
        self.served, self.aborted = 0, threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(outer):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.served += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(outer.status)
                self.send_header("Content-Type", outer.content_type)
                self.send_header("Transfer-Encoding", "chunked")
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):
                    for piece in outer.pieces:
                        if piece is None:
                            self.close_connection = True
                            return
                        if isinstance(piece, threading.Event):
                            piece.wait(5)
                            continue
                        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                    return
                outer.aborted.set()

            def log_message(self, *_):
                pass

        return Handler
