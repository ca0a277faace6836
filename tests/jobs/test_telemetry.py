"""A job's spans and metrics: at a real OTLP/HTTP receiver, in the SDK's own memory, and never among agents' traces."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra counterplay[otel]")

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from counterplay import Store
from counterplay.jobs import running
from counterplay.jobs.telemetry import Telemetry, exported
from counterplay.otlp_parts import OWN_SCOPE, parts_of
from tests.jobs.batch import loaded, make
from tests.receiving import as_json, one_call, receiving


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name in ("moves", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("moves", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def seen():
    """A listener, its spans and its metrics, in memory."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(tracers, meters)

    def measured():
        found = {}
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                labels = tuple(value for name, value in sorted(point.attributes.items()) if name != "job" and value)
                found[metric.name.removeprefix("counterplay.job."), *labels] = getattr(point, "value", getattr(point, "count", None))
        return found

    yield telemetry, spans, measured
    tracers.shutdown()
    meters.shutdown()


@pytest.fixture
def collector():
    """An OTLP/HTTP receiver that keeps what comes, by path; and where it listens."""
    kept = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            kept.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", kept
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_nest_and_say_what_units_came_to(folder, seen):
    telemetry, spans, measured = seen
    job = loaded(make(folder, tasks=1))
    report = running.run(job, listeners=[telemetry])
    found = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    assert {name: len(of) for name, of in found.items()} == {
        "job moves": 1,
        "ingest": 1,
        "units": 1,
        "unit": 5,
        "exports": 1,
        "export sft": 1,
        "export dpo": 1,
    }
    (whole,), (units,) = found["job moves"], found["units"]
    assert whole.parent is None
    assert {span.parent.span_id for name in ("ingest", "units", "exports") for span in found[name]} == {whole.context.span_id}
    assert {span.parent.span_id for span in found["unit"]} == {units.context.span_id}
    assert {span.parent.span_id for span in found["export sft"]} == {found["exports"][0].context.span_id}
    assert all(span.start_time <= span.end_time for of in found.values() for span in of)
    about = [dict(span.attributes) for span in found["unit"]]
    assert {a["counterplay.state"] for a in about} == {"done"}
    assert {a["counterplay.task"] for a in about} == {"t0"}
    assert all(a["counterplay.trace"] == a["counterplay.unit"] and a["counterplay.attempts"] == 1 for a in about)
    assert sum(a["counterplay.used.model_calls"] for a in about) == report.used["model_calls"]
    assert whole.attributes["counterplay.id"] == report.job
    assert {span.instrumentation_scope.name for of in found.values() for span in of} == {OWN_SCOPE}
    names = {key for of in found.values() for span in of for key in span.attributes}
    assert all(name.startswith("counterplay.") for name in names)
    told = measured()
    assert told["units.settled", "done"] == told["unit.duration", "done"] == 5
    assert (told["calls", "server"], told["calls", "journal"]) == (report.live_calls, 0)
    assert told["charged.tokens",] == report.used["tokens"]
    assert (told["units", "done"], told["units", "pending"], told["units", "running"]) == (5, 0, 0)
    assert (told["in_flight",], told["queue_age",]) == (0, 0)


def test_what_fails_is_an_error_without_words(folder, seen):
    telemetry, spans, measured = seen
    file = make(folder, tasks=1)
    (folder / "broken.py").write_text("def World(task):\n    raise KeyError('said by a user')\n")
    running.run(loaded(file, environment={"spec": "broken:World"}), listeners=[telemetry])
    failed = [span for span in spans.get_finished_spans() if span.name == "unit"]
    assert {(span.status.is_ok, span.attributes["counterplay.class"]) for span in failed} == {(False, "user")}
    assert "said by a user" not in "".join(span.to_json() for span in spans.get_finished_spans())
    assert measured()["units.settled", "user", "failed"] == 5


def test_answers_from_the_journal_are_told_apart_and_interrupted_spans_end(folder, seen):
    telemetry, spans, measured = seen
    file = make(folder, tasks=1)
    running.run(loaded(file))
    running.run(loaded(file, search={"options": {"n": 4}}), listeners=[telemetry])
    told = measured()
    assert told["calls", "journal"] > 0
    assert told["calls", "journal"] + told["calls", "server"] == told["charged.model_calls",]
    spans.clear()
    with pytest.raises(KeyboardInterrupt):
        running.run(loaded(file, job={"seed": 5}), listeners=[telemetry], watch=_interrupt)
    telemetry.close()
    assert {"job moves", "units"} <= {span.name for span in spans.get_finished_spans()}


def _interrupt(status):
    raise KeyboardInterrupt


def test_over_http_as_the_sdk_s_variables_say(folder, collector, monkeypatch):
    url, kept = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with exported() as telemetry:
        running.run(loaded(make(folder, tasks=1)), listeners=[telemetry])
    assert {path for path, _ in kept} == {"/v1/traces", "/v1/metrics"}
    bodies = [body for path, body in kept if path == "/v1/traces"]
    found = [MessageToDict(ExportTraceServiceRequest.FromString(body)) for body in bodies]
    text = json.dumps(found)
    assert text.count('"name": "unit"') == 5
    assert '"stringValue": "counterplay"' in text
    assert [parts_of(body, "traces", "protobuf") for body in bodies] == [([], one.count('"spanId"')) for one in map(json.dumps, found)]


def test_the_receiver_takes_agents_traces_alone(folder, monkeypatch):
    job = loaded(make(folder, tasks=1))
    with receiving(folder / "received.duckdb", "--quiet-s", 0.1) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with exported() as telemetry:
            running.run(job, listeners=[telemetry])
        assert receiver.post(one_call(3).SerializeToString()).status_code == 200
        receiver.stop()
    with Store.open(folder / "received.duckdb", read_only=True) as store:
        assert store.stats().traces == 1
        assert store.rejected() == []


def test_json_of_our_own_is_left_out_and_that_of_others_is_not():
    export = one_call(3)
    body = as_json(export)
    assert len(parts_of(body, "traces", "json")[0]) == 1
    export.resource_spans[0].scope_spans[0].scope.name = OWN_SCOPE
    assert parts_of(as_json(export), "traces", "json") == ([], 1)
