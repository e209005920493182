"""What a worker counts and measures, in a registry of its own. No torch here.

A worker opens no port: its numbers travel in its heartbeat, and `GET /metrics` of the web process shows them with the
label `worker`. What each means stands in docs/observing.md. Any thread may count.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector

from bergson_core.schemas.results import Answer
from worker.messages import METRIC_SUFFIXES, MetricFamily, Reply

DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper ends of the buckets of a time."""
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class WorkerMetrics:
    """The numbers of one worker, from 0 on."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector("bergson", registry=registry)
        self.queries = Counter(
            "bergson_queries",
            "Queries that were replied to: ok, or a problem.",
            ["outcome"],
            registry=registry,
        )
        self._batch_size = Histogram(
            "bergson_query_batch_size",
            "Queries of one index that were replied to together.",
            buckets=_BATCHES,
            registry=registry,
        )
        self._gradient = Histogram(
            "bergson_gradient_seconds",
            "Time for the gradients of a batch.",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._search = Histogram(
            "bergson_search_seconds",
            "Time for the search of a batch.",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._verify = Histogram(
            "bergson_verify_seconds",
            "Time for the verification of a query's results.",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._tokens = Counter(
            "bergson_query_tokens", "Tokens of the completions that were answered.", registry=registry
        )
        self.jobs = Counter("bergson_jobs", "Jobs that ended.", ["kind", "state"], registry=registry)
        self.reclaimed = Counter(
            "bergson_reclaimed",
            "Work taken over from a worker that fell silent.",
            ["work"],
            registry=registry,
        )
        self.given_up = Counter(
            "bergson_given_up", "Work that was started too often and refused.", ["work"], registry=registry
        )
        for counter in (self.reclaimed, self.given_up):
            for work in ("job", "query"):
                counter.labels(work)
        self._resident = Gauge("bergson_resident_indexes", "Indexes in memory.", registry=registry)
        self._rate = Gauge(
            "bergson_job_tokens_per_second", "Rate of the job at hand, 0 without one.", registry=registry
        )

    def count_replies(self, replies: Sequence[Reply]) -> None:
        """Counts the replies to the queries of one batch, whose answers all tell the times of the batch."""
        if not replies:
            return
        for reply in replies:
            self.queries.labels(reply.problem.code if reply.problem else "ok").inc()
        self._batch_size.observe(len(replies))
        answers: list[Answer] = [reply.answer for reply in replies if reply.answer]
        self._tokens.inc(sum(answer.query.n_tokens for answer in answers))
        if answers:
            self._gradient.observe(answers[0].timing_ms.gradient / 1000)
            self._search.observe(answers[0].timing_ms.search / 1000)
        for answer in answers:
            if answer.verification is not None:
                self._verify.observe(answer.timing_ms.verify / 1000)

    def collect(self, resident: int, tokens_per_s: float | None) -> list[MetricFamily]:
        """All of it as a heartbeat carries it, with how many indexes are in memory and the rate of the job."""
        self._resident.set(resident)
        self._rate.set(tokens_per_s or 0)
        return [_family(metric) for metric in self._registry.collect()]


def read_memory_bytes(families: Iterable[MetricFamily]) -> int:
    """Resident memory of the process, mapped files included; 0 where the system does not tell."""
    found = (one.samples for one in families if one.name == "bergson_process_resident_memory_bytes")
    return sum(int(value) for samples in found for _, _, value in samples)


def _family(metric: Metric) -> MetricFamily:
    found: Iterable[tuple[str, dict[str, str], float]] = (
        (one.name.removeprefix(metric.name), one.labels, one.value) for one in metric.samples
    )
    samples = [sample for sample in found if sample[0] in METRIC_SUFFIXES]  # not the time of its creation
    return MetricFamily.model_validate(
        {"name": metric.name, "kind": metric.type, "help": metric.documentation, "samples": samples}
    )
