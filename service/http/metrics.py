"""What `GET /metrics` shows: what this process counts, how much waits in Redis, what the workers sent, the canaries.

Every label has few values: routes are templates (`/jobs/{job_id}`), no key is named, and an index by its canary only.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from service.indexes.canary_log import CanaryRun
from service.queue.queue_load import QueueLoad
from worker.messages import Heartbeat
from worker.telemetry.metrics import DURATION_BUCKETS_S

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER_LABEL = "other"


class WebMetrics:
    """The numbers of one web process, from 0 on. `cache` counts by `outcome`: hit or miss."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector("bergson", registry=registry)
        self._requests = Counter(
            "bergson_http_requests", "Requests.", ["method", "route", "status"], registry=registry
        )
        self._durations = Histogram(
            "bergson_http_request_duration_seconds",
            "Time from the first byte of a request to the last of its response.",
            ["method", "route"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.cache_requests = Counter(
            "bergson_cache_requests", "Looks into the cache of answers.", ["outcome"], registry=registry
        )
        for outcome in ("hit", "miss"):
            self.cache_requests.labels(outcome)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        method = scope["method"] if scope["method"] in _KNOWN_METHODS else _OTHER_LABEL
        route = route_template(scope)
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)

    def render(self, load: QueueLoad | None, canaries: Sequence[CanaryRun] = ()) -> bytes:
        """All there is to tell, in the text format of Prometheus; `load` is None where Redis does not answer."""
        workers = load.workers if load else ()
        return generate_latest(
            _MergedCollector([*self._registry.collect(), *_queue_metrics(load), *_canary_metrics(canaries)], workers)
        )


def route_template(scope: Scope) -> str:
    """The template of the path of a request that was routed; one value for all that lead nowhere."""
    if isinstance(scope.get("endpoint"), StaticFiles):
        return "/static"
    return getattr(scope.get("route"), "path_format", _OTHER_LABEL)


class _MergedCollector(Collector):
    """`own`, and the samples of `workers` with the label `worker`: one family for what both have."""

    def __init__(self, own: Iterable[Metric], workers: Iterable[Heartbeat]):
        self._families = {metric.name: metric for metric in own}
        for metric in self._families.values():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
        for beat in workers:
            for family in beat.metrics:
                metric = self._families.setdefault(family.name, Metric(family.name, family.help, family.kind))
                for suffix, labels, value in family.samples:
                    metric.add_sample(family.name + suffix, labels | {"worker": beat.worker_id}, value)

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


def _queue_metrics(load: QueueLoad | None) -> list[Metric]:
    up = GaugeMetricFamily(
        "bergson_redis_up", "1 where Redis answers, 0 where not.", value=float(load is not None)
    )
    alive = GaugeMetricFamily("bergson_workers", "Live workers.")
    queries = GaugeMetricFamily("bergson_queue_queries", "Queries that wait or are worked on.")
    age = GaugeMetricFamily(
        "bergson_queue_oldest_query_age_seconds",
        "Wait of the oldest that no worker has taken; 0 without one.",
    )
    jobs = GaugeMetricFamily("bergson_queue_jobs", "Jobs that have not ended.", labels=["state"])
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

    at = gauge("timestamp_seconds", "Unix time of the last run of `bergson canary`.")
    mrr = gauge("mrr", "Its mean reciprocal rank, among the ten best.")
    recall = gauge("recall_at_10", "Share of the ten best rows that its answers had.")
    latency = gauge("latency_seconds", "Time from its requests to their answers.", "quantile")
    for run in runs:
        at.add_metric([run.index], run.at)
        for family, value in ((mrr, run.mrr), (recall, run.recall_at_10)):
            if value is not None:
                family.add_metric([run.index], value)
        latency.add_metric([run.index, "0.5"], run.latency_p50_s)
        latency.add_metric([run.index, "0.95"], run.latency_p95_s)
    return [at, mrr, recall, latency]
