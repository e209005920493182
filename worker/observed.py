"""What the log, the trace and the metrics are told of the work that a worker has in hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker import logs, tracing
from worker.messages import Job, Query, Reply
from worker.metrics import WorkerMetrics


@contextmanager
def working_on(job: Job) -> Iterator[None]:
    """While the context is open, the job is worked on."""
    about = {"request_id": job.request_id, "job_id": job.job_id}
    attributes = {f"bergson.{key}": value for key, value in about.items()} | {
        "bergson.index": job.index or ""
    }
    with tracing.span(f"job {job.kind}", "consumer", [job.traceparent], attributes), logs.about(**about):
        yield


@contextmanager
def answering(index: str, queries: Sequence[Query]) -> Iterator[None]:
    """While the context is open, these queries of an index are answered together."""
    attributes = {"bergson.index": index, "bergson.batch_size": len(queries)}
    parents = [query.traceparent for query in queries]
    with (
        tracing.span("queries", "consumer", parents, attributes),
        logs.about(request_ids=[query.request_id for query in queries]),
    ):
        yield


def replied(replies: Sequence[Reply], metrics: WorkerMetrics) -> None:
    """The queries have just been replied to. Every answer tells the times of its batch."""
    metrics.replied(replies)
    if answer := next((reply.answer for reply in replies if reply.answer), None):
        timing = answer.timing_ms
        tracing.tell({"gradient": timing.gradient / 1000, "search": timing.search / 1000})
