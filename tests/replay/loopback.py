"""A scripted OpenAI-compatible server on loopback: it answers what it is told to and keeps account of what it was asked."""

import json
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(*contents, calls=(), usage=True, logprobs=None, **message):
    """The body of an answer: one choice a content, `calls` as (id, name, arguments)."""
    choices = []
    for at, content in enumerate(contents):
        said = {"role": "assistant", "content": content, "refusal": None, **message}
        if calls:
            said["tool_calls"] = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
        choice = {"index": at, "message": said, "finish_reason": "tool_calls" if calls else "stop"}
        if logprobs is not None:
            choice["logprobs"] = {"content": [{"token": "x", "logprob": value} for value in logprobs[at]]}
        choices.append(choice)
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "scripted-1", "choices": choices}
    if usage:
        details = {"cached_tokens": 3}
        body["usage"] = {"prompt_tokens": 10, "completion_tokens": 5 * len(contents), "prompt_tokens_details": details}
    return body


class Loopback:
    """`script` holds answers in order: a dict (200), (status, body[, headers]), bytes, or a number of seconds to wait first.

    Once it is used up, every request is answered by `default(request)`. A context manager; `base_url` ends in /v1.
    """

    def __init__(self, *script, default=None):
        self.script = deque(script)
        self.default = default or (lambda request: completion(*[f"answer {at}" for at in range(request.get("n", 1))]))
        self.requests, self.bodies, self.served = [], [], {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
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

    def sent(self, request):
        """Hears of each request whose answer has been written to its connection."""

    def _handler(outer):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer._lock:
                    outer.in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer.in_flight)
                    outer.bodies.append(body)
                    outer.requests.append(json.loads(body))
                    delay = outer.script.popleft() if outer.script and isinstance(outer.script[0], float) else 0.0
                    answer = outer.script.popleft() if outer.script else outer.default(outer.requests[-1])
                time.sleep(delay)
                with outer._lock:
                    outer.in_flight -= 1
                self._answer(answer)
                outer.sent(json.loads(body))

            def _answer(self, answer):
                status, headers = 200, {}
                if isinstance(answer, tuple):
                    status, answer, *rest = answer
                    headers = rest[0] if rest else {}
                if isinstance(answer, dict):
                    usage = answer.get("usage") or {}
                    with outer._lock:
                        outer.served["calls"] += status == 200
                        for kind in ("prompt_tokens", "completion_tokens"):
                            outer.served[kind] += usage.get(kind, 0)
                    answer = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                for name, value in headers.items():
                    self.send_header(name, value)
                with suppress(ConnectionError):  # a client that gave up
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_):
                pass

        return Handler
