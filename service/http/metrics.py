"""The metrics of `GET /metrics`: those of this process, of the queue in Redis, of the workers and of the canaries.

Every label has few values: a route is its template (`/jobs/{job_id}`), API keys are no label, and an index is one only
for its canary.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from service.http.packaged_files import PackagedFiles
from service.indexes.canary_log import CanaryRun
from service.queue.queue_load import QueueLoad
from worker.messages import Heartbeat
from worker.telemetry.metrics import DURATION_BUCKETS_S

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER_LABEL = "other"


class WebMetrics:
    """The metrics of one web process, which start at 0.

    `cache_requests` counts look-ups in the cache of answers by their `outcome`, `hit` or `miss`.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector("bergson", registry=registry)
        self._requests = Counter(
            "bergson_http_requests",
            "Requests, by method, route and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            "bergson_http_request_duration_seconds",
            "Time from the first byte of a request to the last of its response.",
            ["method", "route"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.cache_requests = Counter(
            "bergson_cache_requests",
            "Look-ups in the cache of answers, by outcome.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("hit", "miss"):
            self.cache_requests.labels(outcome)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts a request that has ended.

        Args:
            scope: The ASGI scope of the request, after it was routed.
            status: HTTP status of the response.
            seconds: Time from the first byte of the request to the last one of the response.
        """
        method = scope["method"] if scope["method"] in _KNOWN_METHODS else _OTHER_LABEL
        route = route_template(scope)
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)

    def render(self, load: QueueLoad | None, canaries: Sequence[CanaryRun] = ()) -> bytes:
        """Returns all metrics in the text format of Prometheus.

        Args:
            load: The load of the queue with the live workers; None when Redis does not answer.
            canaries: The last canary run of each index.
        """
        workers = load.workers if load else ()
        return generate_latest(
            _MergedCollector(
                [*self._registry.collect(), *_queue_metrics(load), *_canary_metrics(canaries)], workers
            )
        )


def route_template(scope: Scope) -> str:
    """Returns the template of a request's path; all paths without a route have one and the same value."""
    if isinstance(scope.get("endpoint"), PackagedFiles):
        return "/static"
    return getattr(scope.get("route"), "path_format", _OTHER_LABEL)


class _MergedCollector(Collector):
    """The metrics of this process, and those of the workers with a label `worker`.

    Metrics of the same name become one family, as the text format demands.
    """

    def __init__(self, own_metrics: Iterable[Metric], workers: Iterable[Heartbeat]):
        self._families = {metric.name: metric for metric in own_metrics}
        for metric in self._families.values():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        for beat in workers:
            for family in beat.metrics:
                metric = self._families.setdefault(family.name, Metric(family.name, family.help, family.kind))
                for suffix, labels, value in family.samples:
                    metric.add_sample(family.name + suffix, labels | {"worker": beat.worker_id}, value)

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


def _queue_metrics(load: QueueLoad | None) -> list[Metric]:
    up = GaugeMetricFamily("bergson_redis_up", "1 if Redis answers, 0 if not.", value=float(load is not None))
    alive = GaugeMetricFamily("bergson_workers", "Live workers.")
    queries = GaugeMetricFamily("bergson_queue_queries", "Queries that wait or are worked on.")
    age = GaugeMetricFamily(
        "bergson_queue_oldest_query_age_seconds",
        "Time that the oldest query without a worker has waited; 0 if there is none.",
    )
    jobs = GaugeMetricFamily("bergson_queue_jobs", "Jobs that have not ended, by state.", labels=["state"])
    if load is not None:
        alive.add_metric([], len(load.workers))
        queries.add_metric([], load.queries)
        age.add_metric([], load.oldest_query_age_s)
        jobs.add_metric(["queued"], load.jobs_queued)
        jobs.add_metric(["running"], load.jobs_running)
    return [up, alive, queries, age, jobs]


def _canary_metrics(runs: Sequence[CanaryRun]) -> list[Metric]:
    def gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"bergson_canary_{name}", help, labels=["index", *labels])

    timestamp = gauge("timestamp_seconds", "Unix time of the last run of `bergson canary`.")
    mrr = gauge("mrr", "Mean reciprocal rank of the last canary run, among the ten best results.")
    recall = gauge("recall_at_10", "Share of the ten best rows that the answers of the last canary run had.")
    latency = gauge("latency_seconds", "Time from request to answer in the last canary run.", "quantile")
    for run in runs:
        timestamp.add_metric([run.index], run.at)
        for family, value in ((mrr, run.mrr), (recall, run.recall_at_10)):
            if value is not None:
                family.add_metric([run.index], value)
        latency.add_metric([run.index, "0.5"], run.latency_p50_s)
        latency.add_metric([run.index, "0.95"], run.latency_p95_s)
    return [timestamp, mrr, recall, latency]
