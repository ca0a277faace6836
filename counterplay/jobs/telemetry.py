"""A job as OpenTelemetry sees it: a span for the command, its stages, its units and its exports, and metrics of what goes on.

Made of the job's events alone, so it says no more than they do: ids, states and amounts, no content. The names are of counterplay's own,
none of the GenAI conventions, and `counterplay receive` leaves out what this instrumentation scope sends: a job is no agent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from counterplay.core.errors import UserError
from counterplay.jobs.progress import SETTLED
from counterplay.jobs.work import ERRORS
from counterplay.otlp_parts import OWN_SCOPE
from counterplay.version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Span, TracerProvider

    from counterplay.jobs.events import Event

_PREFIX = "counterplay."
_AMOUNTS = (("model_calls", "{call}"), ("tokens", "{token}"), ("usd", "USD"), ("tool_calls", "{call}"))
_UNIT = "unit."


class Telemetry:
    """A listener to a job's events that makes spans and metrics of them, with providers of your own."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self._tracer = tracers.get_tracer(OWN_SCOPE, __version__)
        meter = meters.get_meter(OWN_SCOPE, __version__)
        self._lock = threading.Lock()
        self._job: Span | None = None
        self._stages: list[Span] = []
        self._exports: dict[str, Span] = {}
        self._units: dict[str, Span] = {}
        self._states: dict[str, int] = {}
        self._began_s, self._id = time.time(), ""
        self._settled = meter.create_counter(f"{_PREFIX}job.units.settled", "{unit}", "Units that were settled or are to be tried again.")
        self._calls = meter.create_counter(f"{_PREFIX}job.calls", "{call}", "Model calls by where the answer came from: server or journal.")
        self._used = {
            kind: meter.create_counter(f"{_PREFIX}job.charged.{kind}", unit, f"What budgets were charged in {kind.replace('_', ' ')}.")
            for kind, unit in _AMOUNTS
        }
        self._lasted = meter.create_histogram(f"{_PREFIX}job.unit.duration", "s", "How long a try of a unit took.")
        gauges: Mapping[str, tuple[str, str, Callable[[], Iterable[tuple[float, Mapping[str, str]]]]]] = {
            "units": ("{unit}", "Units by state.", self._by_state),
            "in_flight": ("{unit}", "Units that workers have now.", lambda: [(len(self._units), {})]),
            "queue_age": ("s", "How long units wait that are pending: since the command began; 0 where none is.", self._queue_age),
        }
        for name, (unit, said, look) in gauges.items():
            meter.create_observable_gauge(f"{_PREFIX}job.{name}", [self._observing(look)], unit, said)

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            self._take(event)

    def close(self) -> None:
        """End what is under way; nobody will say how it ended."""
        with self._lock:
            self._end_all(time.time_ns())

    def _take(self, event: Event) -> None:
        if event.job:
            self._id = event.job
        match event.name:
            case "job.began":
                self._began_s = event.at_us / 1e6
                self._job = self._begin(f"job {event.fields['name']}", event, None)
            case "job.planned" | "job.resumed":
                self._states = {state: count for state, count in event.fields["states"].items() if count}
                self._states["pending"] = self._states.get("pending", 0) + self._states.pop("running", 0)
                self._set(self._job, {"id": event.job, "units": event.fields["units"], "resumed": event.name == "job.resumed"})
            case "stage.began":
                self._stages.append(self._begin(event.fields["stage"], event, self._job))
            case "stage.ended":
                self._end(self._stages.pop() if self._stages else None, event)
            case "export.began":
                self._exports[event.fields["folder"]] = self._begin(f"export {event.fields['kind']}", event, self._stage)
            case "export.ended":
                self._end(self._exports.pop(event.fields["folder"], None), event)
            case "units.claimed":
                self._moved("pending", "running", event.fields["count"])
            case "units.released":
                self._moved("running", "pending", event.fields["count"])
                for unit in event.fields["units"]:
                    self._end(self._units.pop(unit, None), event, {"state": "pending"})
            case "unit.began":
                self._units[event.unit] = self._begin("unit", event, self._stage)
            case "job.ended" | "job.failed":
                amounts = event.fields.get("used", {})
                self._set(self._job, {"ended": event.fields.get("ended", ""), **{f"used.{kind}": used for kind, used in amounts.items()}})
                self._fail(self._job, event.fields.get("error", ""))
                self._end_all(event.at_us * 1000)
            case name if name.startswith(_UNIT):
                self._unit_settled(event)
            case _:
                if self._job is not None:
                    self._job.add_event(event.name, _attributes({"unit": event.unit, **event.fields}), event.at_us * 1000)

    @property
    def _stage(self) -> Span | None:
        return self._stages[-1] if self._stages else self._job

    def _unit_settled(self, event: Event) -> None:
        state = event.name.removeprefix(_UNIT)
        used, live = event.fields.get("used", {}), event.fields.get("live_calls", 0)
        labels = {"job": event.job, "state": state, "class": event.fields.get("class", "")}
        self._settled.add(1, labels)
        self._lasted.record(event.fields.get("seconds", 0.0), {"job": event.job, "state": state})
        self._calls.add(live, {"job": event.job, "from": "server"})
        self._calls.add(max(0, used.get("model_calls", 0) - live), {"job": event.job, "from": "journal"})
        for kind, counter in self._used.items():
            if used.get(kind):
                counter.add(used[kind], {"job": event.job})
        self._moved("running", state if state in SETTLED else "pending", 1)
        span = self._units.pop(event.unit, None) or self._begin("unit", event, self._stage)
        told = {"state": state, "class": event.fields.get("class", ""), "task": event.fields.get("task")}
        self._fail(span, ERRORS.get(told["class"], "") if state not in ("done", "skipped") else "")
        amounts = {f"used.{kind}": amount for kind, amount in used.items()}
        self._end(span, event, {**told, "attempts": event.fields.get("attempt"), "live_calls": live, **amounts})

    def _moved(self, before: str, after: str, count: int) -> None:
        for state, change in ((before, -count), (after, count)):
            self._states[state] = self._states.get(state, 0) + change

    def _begin(self, name: str, event: Event, parent: Span | None) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        context = Context() if parent is None else set_span_in_context(parent, Context())
        span = self._tracer.start_span(name, context, start_time=event.at_us * 1000)
        about = {name: value for name, value in event.fields.items() if name in ("trace", "traces", "stage", "kind")}
        self._set(span, {"job": event.job, "unit": event.unit, **about})
        return span

    def _end(self, span: Span | None, event: Event, told: Mapping[str, Any] | None = None) -> None:
        if span is not None:
            self._set(span, told or {})
            self._fail(span, event.fields.get("error", ""))
            span.end(event.at_us * 1000)

    def _end_all(self, at_ns: int) -> None:
        for span in (*self._units.values(), *self._exports.values(), *reversed(self._stages), *([self._job] if self._job else [])):
            span.end(at_ns)
        self._units, self._exports, self._stages, self._job = {}, {}, [], None

    def _set(self, span: Span | None, told: Mapping[str, Any]) -> None:
        if span is not None:
            span.set_attributes(_attributes(told))

    def _fail(self, span: Span | None, why: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        if span is not None and why:
            span.set_status(Status(StatusCode.ERROR, why))

    def _by_state(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        return [(count, {"state": state}) for state, count in list(self._states.items())]

    def _queue_age(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        return [(time.time() - self._began_s if self._states.get("pending") else 0.0, {})]

    def _observing(
        self, look: Callable[[], Iterable[tuple[float, Mapping[str, str]]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            from opentelemetry.metrics import Observation

            return [Observation(value, {"job": self._id, **labels}) for value, labels in look()]

        return observe


def _attributes(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a span may say: texts and numbers, under names of counterplay's own; what is not known is left out."""
    known = {name: value for name, value in told.items() if value != "" and isinstance(value, str | bool | int | float)}
    return {f"{_PREFIX}{name}": value for name, value in known.items()}


@contextmanager
def exported() -> Iterator[Telemetry]:
    """Spans and metrics of what happens in the block go to a collector over OTLP/HTTP, wherever OpenTelemetry's own variables say.

    OTEL_EXPORTER_OTLP_ENDPOINT (none: http://localhost:4318), OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and the others are the SDK's.
    A collector that does not answer costs the job nothing. Raises UserError where the SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        got = f"got --otel, but {error.name} is not installed"
        raise UserError(got, "OpenTelemetry's SDK and its OTLP/HTTP exporter", "pip install 'counterplay[otel]'") from None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "counterplay"}
    resource = Resource.create(named)
    tracers, meters = TracerProvider(resource=resource), MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    telemetry = Telemetry(tracers, meters)
    try:
        yield telemetry
    finally:
        telemetry.close()
        tracers.shutdown()
        meters.shutdown()
