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
def observe_job(job: Job) -> Iterator[Callable[[Outcome], None]]:
    """While the context is open, the job is worked on; what it gives is to be told what came of that."""
    about = {"request_id": job.request_id, "job_id": job.job_id}
    attributes = {f"bergson.{key}": value for key, value in about.items()} | {
        "bergson.index": job.index or ""
    }
    with (
        tracing.span(f"job {job.kind}", "consumer", [job.traceparent], attributes) as spans,
        logs.context(**about),
    ):
        yield lambda outcome: _ended(spans, outcome)


def _ended(spans: tracing.Spans, outcome: Outcome) -> None:
    failed = isinstance(outcome, Problem)
    spans.update({"bergson.outcome": outcome.code if failed else outcome}, failed=failed)


@contextmanager
def observe_queries(index: str, queries: Sequence[Query]) -> Iterator[None]:
    """While the context is open, these queries of an index are answered together."""
    attributes = {"bergson.index": index, "bergson.batch_size": len(queries)}
    parents = [query.traceparent for query in queries]
    with (
        tracing.span("queries", "consumer", parents, attributes),
        logs.context(request_ids=[query.request_id for query in queries]),
    ):
        yield


@contextmanager
def observe_verification_step(query: Query) -> Iterator[None]:
    """While the context is open, a step of this query's verification is taken."""
    with logs.context(request_ids=[query.request_id]):
        yield


def record_replies(replies: Sequence[Reply], metrics: WorkerMetrics) -> None:
    """The queries have just been replied to. Every answer tells the times of its batch."""
    metrics.count_replies(replies)
    if answer := next((reply.answer for reply in replies if reply.answer), None):
        timing = answer.timing_ms
        steps = {"gradient": timing.gradient, "search": timing.search, "verify": timing.verify}
        tracing.record_steps({name: ms / 1000 for name, ms in steps.items() if ms or name != "verify"})
