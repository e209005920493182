"""What the log, the trace and the metrics are told of the work that a worker has in hand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from worker.messages import Job, Problem, Query, Reply
from worker.telemetry import logs, tracing
from worker.telemetry.metrics import WorkerMetrics

Outcome = Literal["succeeded", "cancelled", "handed_back", "lost"] | Problem
"""What came of one start of a job."""


@contextmanager
def job_span(job: Job) -> Iterator[Callable[[Outcome], None]]:
    """While the context is open, the job is worked on; what it gives is to be told what came of that."""
    about = {"request_id": job.request_id, "job_id": job.job_id}
    attributes = {f"bergson.{key}": value for key, value in about.items()} | {
        "bergson.index": job.index or ""
    }
    with (
        tracing.span(f"job {job.kind}", "consumer", [job.traceparent], attributes) as spans,
        logs.about(**about),
    ):
        yield lambda outcome: _ended(spans, outcome)


def _ended(spans: tracing.Spans, outcome: Outcome) -> None:
    failed = isinstance(outcome, Problem)
    spans.set({"bergson.outcome": outcome.code if failed else outcome}, failed=failed)


@contextmanager
def query_span(index: str, queries: Sequence[Query]) -> Iterator[None]:
    """While the context is open, these queries of an index are answered together."""
    attributes = {"bergson.index": index, "bergson.batch_size": len(queries)}
    parents = [query.traceparent for query in queries]
    with (
        tracing.span("queries", "consumer", parents, attributes),
        logs.about(request_ids=[query.request_id for query in queries]),
    ):
        yield


@contextmanager
def verification_span(query: Query) -> Iterator[None]:
    """While the context is open, a step of this query's verification is taken."""
    with logs.about(request_ids=[query.request_id]):
        yield


def record_replies(replies: Sequence[Reply], metrics: WorkerMetrics) -> None:
    """The queries have just been replied to. Every answer tells the times of its batch."""
    metrics.replied(replies)
    if answer := next((reply.answer for reply in replies if reply.answer), None):
        timing = answer.timing_ms
        steps = {"gradient": timing.gradient, "search": timing.search, "verify": timing.verify}
        tracing.add_event({name: ms / 1000 for name, ms in steps.items() if ms or name != "verify"})
