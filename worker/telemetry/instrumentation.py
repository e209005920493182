"""Puts each job and each batch of queries of a worker into the log, the traces and the metrics."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from worker.messages import Job, Query, Reply
from worker.problem import Problem
from worker.telemetry import logs, tracing
from worker.telemetry.metrics import WorkerMetrics

Outcome = Literal["succeeded", "cancelled", "handed_back", "lost"] | Problem
"""How one start of a job ended."""


@contextmanager
def observe_job(job: Job) -> Iterator[Callable[[Outcome], None]]:
    """Traces a job, and marks what is logged in the context with its ids.

    Yields:
        A function to call with the job's outcome.
    """
    ids = {"request_id": job.request_id, "job_id": job.job_id}
    attributes = {f"bergson.{key}": value for key, value in ids.items()}
    attributes["bergson.index"] = job.index or ""
    with (
        tracing.span(f"job {job.kind}", "consumer", [job.traceparent], attributes) as spans,
        logs.context(**ids),
    ):
        yield lambda outcome: _record_outcome(spans, outcome)


def _record_outcome(spans: tracing.Spans, outcome: Outcome) -> None:
    failed = isinstance(outcome, Problem)
    spans.update({"bergson.outcome": outcome.code if failed else outcome}, failed=failed)


@contextmanager
def observe_queries(index: str, queries: Sequence[Query]) -> Iterator[None]:
    """Traces queries of one index that are answered together, and marks what is logged with their ids."""
    attributes = {"bergson.index": index, "bergson.batch_size": len(queries)}
    parents = [query.traceparent for query in queries]
    with (
        tracing.span("queries", "consumer", parents, attributes),
        logs.context(request_ids=[query.request_id for query in queries]),
    ):
        yield


@contextmanager
def observe_follow_up_step(query: Query) -> Iterator[None]:
    """Marks what is logged during a step of a query's follow-up with the query's id; a step has no span."""
    with logs.context(request_ids=[query.request_id]):
        yield


def record_replies(replies: Sequence[Reply], metrics: WorkerMetrics) -> None:
    """Counts replies that were just sent to the queries of one batch, and traces the steps of the batch.

    Every answer has the times of its batch, so those of the first answer are enough.
    """
    metrics.count_replies(replies)
    if answer := next(filter(None, (reply.answer or reply.totals for reply in replies)), None):
        timing = answer.timing_ms
        steps = {"gradient": timing.gradient, "search": timing.search}
        follow_ups = {"rescore": timing.rescore, "verify": timing.verify}
        steps |= {name: ms for name, ms in follow_ups.items() if ms}
        tracing.record_steps({name: ms / 1000 for name, ms in steps.items()})
