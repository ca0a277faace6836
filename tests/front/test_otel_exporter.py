"""The span exporter: spans of a real SDK are stored as the receiver would have stored them, and the application never notices."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra counterplay[otel]")

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult

from counterplay.core.errors import StoreError, UserError
from counterplay.core.store import Store
from counterplay.otel import CounterplaySpanExporter

ROOT = Path(__file__).parents[2]


def speak(tracer, text, *, answer="fine"):
    """A model call within an agent, in words of the GenAI conventions."""
    with tracer.start_as_current_span("agent"), tracer.start_as_current_span("chat m") as span:
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "m",
                "gen_ai.usage.input_tokens": 7,
                "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": text}]}]),
                "gen_ai.output.messages": json.dumps(
                    [{"role": "assistant", "parts": [{"type": "text", "content": answer}], "finish_reason": "stop"}]
                ),
            }
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.duckdb"


@pytest.fixture
def tracing(path):
    """A tracer whose spans go to the store, and its exporter; shut down at the end."""
    providers = []

    def go(exporter=None, processor=SimpleSpanProcessor):
        exporter = exporter or CounterplaySpanExporter(path)
        provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
        provider.add_span_processor(processor(exporter))
        providers.append(provider)
        return provider, exporter

    yield go
    for provider in providers:
        provider.shutdown()


def said(path):
    with Store.open(path, read_only=True) as store:
        assert not store.rejected()
        return sorted(" / ".join(message.content_text for message in trace.trajectory.messages) for trace in store.load())


def inboxes(path):
    return sorted(path.parent.glob(f"{path.name}.inbox-*"))


def test_traces_are_in_the_store_after_a_flush_and_after_the_end(path, tracing):
    provider, exporter = tracing(processor=BatchSpanProcessor)
    tracer = provider.get_tracer("agent")
    speak(tracer, "one ü")
    assert provider.force_flush()
    assert exporter.force_flush()
    assert said(path) == ["one ü / fine"]
    with Store.open(path, read_only=True) as store:
        (trace,) = store.load()
        assert trace.source.format == "otlp"
        assert (trace.calls[0].model, trace.calls[0].usage.input_tokens) == ("m", 7)
    speak(tracer, "two")
    with tracer.start_as_current_span("half"):
        speak(tracer, "three")
        provider.shutdown()
    assert said(path) == ["one ü / fine", "three / fine", "two / fine"]
    assert inboxes(path) == []
    assert exporter.export([]) == SpanExportResult.FAILURE


def test_the_thread_stores_what_is_quiet_without_being_asked(path, tracing):
    provider, _ = tracing(CounterplaySpanExporter(path, quiet_s=0.0))
    speak(provider.get_tracer("agent"), "one")
    deadline = time.monotonic() + 10
    while not path.exists() or said_or_none(path) != ["one / fine"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def said_or_none(path):
    try:
        return said(path)
    except (StoreError, UserError):
        return None


def test_secrets_are_redacted_as_at_every_door(path, tracing):
    key = "sk-counterplay-0123456789abcdefABCDEF"
    provider, _ = tracing(CounterplaySpanExporter(path, redact=("secrets", "email")))
    speak(provider.get_tracer("agent"), f"I am joe@example.com, my key is {key}")
    provider.shutdown()
    (text,) = said(path)
    assert key not in text
    assert "joe@" not in text


def test_what_can_t_be_written_never_reaches_the_application(tmp_path, tracing, caplog, monkeypatch):
    monkeypatch.setattr("counterplay.otel._PATIENCE_S", 0.1)
    (tmp_path / "file").write_text("")
    provider, exporter = tracing(CounterplaySpanExporter(tmp_path / "file" / "s.duckdb"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            speak(provider.get_tracer("agent"), "one")
        assert exporter.force_flush()
    assert len([record for record in caplog.records if "could not be kept" in record.message]) == 1
    (tmp_path / "bad.duckdb").write_text("not a database at all" * 100)
    provider, exporter = tracing(CounterplaySpanExporter(tmp_path / "bad.duckdb"))
    with caplog.at_level(logging.WARNING):
        speak(provider.get_tracer("agent"), "one")
        assert not exporter.force_flush(timeout_millis=100)
    assert any("could not be stored" in record.message for record in caplog.records)


def test_a_store_that_is_in_use_makes_traces_wait(path, tracing):
    provider, exporter = tracing()
    with Store.open(path):
        speak(provider.get_tracer("agent"), "one")
        assert not exporter.force_flush(timeout_millis=100)
    assert exporter.force_flush()
    assert said(path) == ["one / fine"]


def test_two_exporters_of_one_store_in_one_process(path, tracing):
    providers = [tracing()[0] for _ in range(2)]
    for provider, text in zip(providers, ("one", "two"), strict=True):
        speak(provider.get_tracer("agent"), text)
    assert len(inboxes(path)) == 2
    for provider in providers:
        provider.shutdown()
    assert said(path) == ["one / fine", "two / fine"]
    assert inboxes(path) == []


def test_a_forked_child_exports_for_itself(path, tracing):
    provider, exporter = tracing()
    tracer = provider.get_tracer("agent")
    speak(tracer, "before")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        status = 1
        try:
            speak(tracer, "in the child")
            exporter.shutdown()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    speak(tracer, "after")
    provider.shutdown()
    assert said(path) == ["after / fine", "before / fine", "in the child / fine"]
    assert inboxes(path) == []


KILLED = """
import os, signal, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from counterplay.otel import CounterplaySpanExporter
from tests.front.test_otel_exporter import speak

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(CounterplaySpanExporter(sys.argv[1], quiet_s=60)))
speak(provider.get_tracer("agent"), "killed")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_taken_up_by_the_next(path, tracing):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(inboxes(path)) == 1
    provider, _ = tracing()
    speak(provider.get_tracer("agent"), "next")
    deadline = time.monotonic() + 10
    while len(inboxes(path)) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    provider.shutdown()
    assert said(path) == ["killed / fine", "next / fine"]
    assert inboxes(path) == []


def test_wrong_use_is_an_error_at_once(path, monkeypatch):
    with pytest.raises(UserError, match="nonsense"):
        CounterplaySpanExporter(path, redact=("nonsense",))
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.common.trace_encoder", None)
    with pytest.raises(UserError, match="pip install"):
        CounterplaySpanExporter(path)
