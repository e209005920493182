"""What a worker counts and measures.

A worker opens no port: its metrics travel in its heartbeat, and `GET /metrics` of the web process shows them with the
label `worker`. docs/observing.md says what each metric means. Any thread may count.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector

from worker.messages import METRIC_SUFFIXES, MetricFamily, Reply

DURATION_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds in seconds of the buckets of a duration."""
_BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class WorkerMetrics:
    """The metrics of one worker, which begin at 0."""

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
            buckets=_BATCH_SIZE_BUCKETS,
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
        self._rescore = Histogram(
            "bergson_rescore_seconds",
            "Time for the exact scores of a query's candidates.",
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
                counter.labels(work)  # so that the counter is shown before the first such event
        self._resident = Gauge("bergson_resident_indexes", "Indexes in memory.", registry=registry)
        self._rate = Gauge(
            "bergson_job_tokens_per_second",
            "Tokens per second of the current job, 0 without one.",
            registry=registry,
        )

    def count_replies(self, replies: Sequence[Reply]) -> None:
        """Counts the replies to the queries of one batch; every answer has the times of the batch."""
        if not replies:
            return
        for reply in replies:
            self.queries.labels(reply.problem.code if reply.problem else "ok").inc()
        self._batch_size.observe(len(replies))
        answers = [answer for reply in replies if (answer := reply.answer or reply.totals)]
        # A behaviour's tokens ran through the model when it was created.
        self._tokens.inc(sum(answer.query.n_tokens for answer in answers if not answer.query.behaviour))
        if answers:
            self._gradient.observe(answers[0].timing_ms.gradient / 1000)
            self._search.observe(answers[0].timing_ms.search / 1000)
        for answer in filter(None, (reply.answer for reply in replies)):
            if answer.rescored is not None:
                self._rescore.observe(answer.timing_ms.rescore / 1000)
            if answer.verification is not None:
                self._verify.observe(answer.timing_ms.verify / 1000)

    def collect(self, resident: int, tokens_per_s: float | None) -> list[MetricFamily]:
        """Returns all metrics in the form of a heartbeat.

        Args:
            resident: Number of indexes in memory.
            tokens_per_s: Rate of the current job, None without one.
        """
        self._resident.set(resident)
        self._rate.set(tokens_per_s or 0)
        return [_to_family(metric) for metric in self._registry.collect()]


def read_memory_bytes(families: Iterable[MetricFamily]) -> int:
    """Returns the resident memory of the process, mapped files included, or 0 if the system does not report it."""
    name = "bergson_process_resident_memory_bytes"
    values = (value for family in families if family.name == name for _, _, value in family.samples)
    return sum(map(int, values))


def _to_family(metric: Metric) -> MetricFamily:
    samples: Iterable[tuple[str, dict[str, str], float]] = (
        (sample.name.removeprefix(metric.name), sample.labels, sample.value) for sample in metric.samples
    )
    sent = [sample for sample in samples if sample[0] in METRIC_SUFFIXES]  # without the time of creation
    return MetricFamily.model_validate(
        {"name": metric.name, "kind": metric.type, "help": metric.documentation, "samples": sent}
    )
