"""Health checks for supervisors and load balancers, and the metrics for Prometheus."""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from bergson_core.errors import NoWorker, RedisUnavailable, Unavailable
from service.http.dependencies import BrokerDep, CallerDep, MetricsDep, SettingsDep
from service.http.metrics import CONTENT_TYPE
from service.indexes.canary_log import iter_last_runs
from service.openapi import examples
from service.openapi.metadata import METRICS_RESPONSE, problem_responses, success_response
from service.queue.broker import NO_WORKER
from service.queue.redis_calls import PROBE_WAIT_S
from service.schemas import Live, Ready

router = APIRouter(tags=["Health"])


@router.get(
    "/livez",
    summary="Check that the process is up",
    responses=success_response(200, "The process is up.", examples.LIVE),
)
async def livez() -> Live:
    """Succeeds as long as the process runs, and checks nothing else. Restart the process when this fails."""
    return Live()


@router.get(
    "/readyz",
    summary="Check that the service can work",
    responses=success_response(200, "The service can work.", examples.READY)
    | problem_responses("redis_unavailable", "no_worker", "unavailable"),
)
async def readyz(request: Request, broker: BrokerDep) -> Ready:
    """Succeeds when Redis answers and accepts writes, a worker is alive and this process is not stopping.

    Send the process no traffic while this fails.
    """
    if request.app.state.stopping:
        raise Unavailable("this web process is stopping: send the request to another")
    await broker.ping()
    workers = await broker.list_workers(PROBE_WAIT_S)
    if not workers:
        raise NoWorker(NO_WORKER)
    return Ready(workers=len(workers))


@router.get(
    "/metrics", summary="Get the metrics", response_class=PlainTextResponse, responses=METRICS_RESPONSE
)
async def metrics(
    broker: BrokerDep, metrics: MetricsDep, settings: SettingsDep, caller: CallerDep
) -> PlainTextResponse:
    """Returns the metrics of this process, of the queue and of all live workers, in the text format of Prometheus.

    This also works without Redis: then `bergson_redis_up` is 0, and metrics that come from Redis are left out. Canaries
    (`bergson canary`) are shown of the indexes that the API key may see.
    """
    try:
        load = await broker.read_load()
    except RedisUnavailable:
        load = None
    canaries = await run_in_threadpool(lambda: list(iter_last_runs(settings, caller.can_see)))
    return PlainTextResponse(metrics.render(load, canaries), media_type=CONTENT_TYPE)
