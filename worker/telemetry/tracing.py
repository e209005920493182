"""Traces of requests, queries and jobs, sent with OpenTelemetry.

Spans are sent only if the extra `[otel]` is installed and an endpoint is configured; otherwise the tracer is the no-op
tracer of opentelemetry-api. The standard environment variables say where spans go and how many are kept:
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and so on. A trace continues across Redis by its W3C `traceparent`. The
tracer provider is our own and not the global one, so that libraries which trace themselves stay out of these traces.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bergson_core.version import with_extra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float]
SpanKind = Literal["internal", "server", "consumer"]

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_propagator = TraceContextTextMapPropagator()
_tracer: trace.Tracer = trace.NoOpTracer()


class Spans:
    """The open spans of one piece of work, one in each trace that the work belongs to."""

    def __init__(self, spans: Sequence[trace.Span]):
        self._spans = spans

    def update(self, attributes: Attributes, name: str | None = None, failed: bool = False) -> None:
        """Adds attributes to each span.

        Args:
            attributes: The attributes.
            name: A new name for the spans.
            failed: Whether the work has failed.
        """
        for span in self._spans:
            span.set_attributes(dict(attributes))
            if name is not None:
                span.update_name(name)
            if failed:
                span.set_status(trace.StatusCode.ERROR)


def configure(service_name: str) -> None:
    """Sends the spans of this process to the endpoint of the environment, if there is one.

    Args:
        service_name: Name of the process in traces, unless the environment sets another one.
    """
    has_endpoint = any(map(os.environ.get, _ENDPOINT_VARIABLES))
    if not has_endpoint or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("nothing is traced, since %s: pip install %s", error, with_extra("otel"))
        return
    resource_attributes = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in resource_attributes
    resource = Resource.create({} if is_named else {"service.name": service_name})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use_provider(provider)


def use_provider(provider: "TracerProvider | None") -> None:
    """Makes spans with `provider` from now on, or no spans if it is None."""
    global _tracer
    _tracer = provider.get_tracer("bergson") if provider else trace.NoOpTracer()


def traceparent() -> str | None:
    """Returns the W3C traceparent of the open span, with which another process continues the trace.

    It is None if this process sends no spans. The no-op tracer would pass on the caller's span instead, and the work of
    other processes would appear as if the caller itself had done it.
    """
    if isinstance(_tracer, trace.NoOpTracer):
        return None
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(name: str, kind: SpanKind, parents: Sequence[str | None], attributes: Attributes) -> Iterator[Spans]:
    """Opens a span in the trace of each parent, or in a new trace if there is no parent.

    Work that is done for several callers at once thus shows in the trace of each caller. The first span is the parent
    of spans that are made inside the context and has links to all parents; each other span has a link to the first one.

    Args:
        name: Name of the spans.
        kind: Kind of the spans.
        parents: Traceparents of the callers, as `traceparent` returns them.
        attributes: Attributes of the spans.

    Yields:
        The open spans, which end with the context.
    """
    contexts = [_parse(parent) for parent in dict.fromkeys(filter(None, parents))] or [Context()]
    callers = [trace.get_current_span(context).get_span_context() for context in contexts]
    links = [trace.Link(caller) for caller in callers] if len(callers) > 1 else []
    span_kind, span_attributes = trace.SpanKind[kind.upper()], dict(attributes)
    first = _tracer.start_span(name, contexts[0], span_kind, span_attributes, links)
    others = [
        _tracer.start_span(name, context, span_kind, span_attributes, [trace.Link(first.get_span_context())])
        for context in contexts[1:]
    ]
    try:
        with trace.use_span(first, end_on_exit=True):
            yield Spans([first, *others])
    finally:
        for other in others:
            other.end()


def record_steps(durations_s: Mapping[str, float]) -> None:
    """Adds a span for each step of what was just done, as children of the open span.

    Args:
        durations_s: Name and duration in seconds of each step, in their order; the last step ends now.
    """
    at_ns = time.time_ns() - sum(round(1e9 * seconds) for seconds in durations_s.values())
    for name, seconds in durations_s.items():
        step = _tracer.start_span(name, start_time=at_ns)
        at_ns += round(1e9 * seconds)
        step.end(end_time=at_ns)


def _parse(parent: str) -> Context:
    """Returns the context of a traceparent, or an empty context if it is malformed; never the context open here."""
    return _propagator.extract({"traceparent": parent}, Context())
