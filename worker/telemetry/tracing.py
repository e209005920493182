"""Spans for OpenTelemetry, where it is installed (extra `[otel]`) and an endpoint is configured; nothing elsewhere.

The standard variables say where spans go and how many are kept: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ...
A context crosses Redis as the W3C's `traceparent`. The provider is our own, not the global one. No torch here.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float]
SpanKind = Literal["internal", "server", "consumer"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Spans:
    """Spans that are open; none where nothing is traced."""

    def __init__(self, spans: Sequence[Any] = ()):
        self._spans = spans

    def update(self, attributes: Attributes, name: str | None = None, failed: bool = False) -> None:
        """Says more about each of them."""
        for span in self._spans:
            span.set_attributes(dict(attributes))
            if name is not None:
                span.update_name(name)
            if failed:
                span.set_status(_api().StatusCode.ERROR)


_NOTHING = Spans()
_tracer: Any = None


def configure(service_name: str) -> None:
    """Sends the spans of this process to the endpoint of the environment, under this name if it says no other."""
    if not any(map(os.environ.get, _ENDPOINTS)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("nothing is traced, since %s: pip install 'bergson-service[otel]'", error)
        return
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use_provider(provider)


def use_provider(provider: "TracerProvider | None") -> None:
    """Makes spans by `provider` from now on, or none."""
    global _tracer
    _tracer = provider.get_tracer("bergson") if provider else None


def traceparent() -> str | None:
    """The context of the open span, for somebody else to go on from."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(name: str, kind: SpanKind, parents: Sequence[str | None], attributes: Attributes) -> Iterator[Spans]:
    """A span in the trace of each of `parents` while the context is open; one of a new trace where there is none.

    What is done for several at once is told in the trace of each. The first is the parent of what is made inside, has
    links to all `parents`, and the others have a link to it.
    """
    if _tracer is None:
        yield _NOTHING
        return
    trace = _api()
    contexts = [_context(parent) for parent in dict.fromkeys(filter(None, parents))] or [_context(None)]
    theirs = [trace.get_current_span(context).get_span_context() for context in contexts]
    links = [trace.Link(one) for one in theirs] if len(theirs) > 1 else []
    options = {"kind": trace.SpanKind[kind.upper()], "attributes": dict(attributes)}
    first = _tracer.start_span(name, context=contexts[0], links=links, **options)
    to_first = [trace.Link(first.get_span_context())]
    others = [_tracer.start_span(name, context=one, links=to_first, **options) for one in contexts[1:]]
    try:
        with trace.use_span(first, end_on_exit=True):
            yield Spans([first, *others])
    finally:
        for one in others:
            one.end()


def record_steps(steps: Mapping[str, float]) -> None:
    """Children of the open span for what was just done: each step's name and seconds, in order, the last ends now."""
    if _tracer is None:
        return
    at = time.time_ns() - sum(round(1e9 * seconds) for seconds in steps.values())
    for name, seconds in steps.items():
        step = _tracer.start_span(name, start_time=at)
        at += round(1e9 * seconds)
        step.end(end_time=at)


def _context(parent: str | None) -> Any:
    """The context that `parent` names, an empty one where it makes no sense: never the one that is open here."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent or ""}, Context())


def _api() -> Any:
    from opentelemetry import trace

    return trace
