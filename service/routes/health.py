"""Health: for a supervisor and a load balancer."""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from bergson_core.errors import NoWorker, RedisUnavailable, Unavailable
from service.http.dependencies import BrokerDep, CallerDep, MetricsDep, SettingsDep
from service.http.metrics import CONTENT_TYPE
from service.indexes.canary_log import iter_last_runs
from service.openapi import examples
from service.openapi.metadata import METRICS_RESPONSE, success_response, problem_responses
from service.schemas import Live, Ready

router = APIRouter(tags=["Health"])


@router.get("/livez", summary="Is the process up?", responses=success_response(200, "It is.", examples.LIVE))
async def livez() -> Live:
    """Answers as long as the process does; looks at nothing else. Restart it where this fails."""
    return Live()


@router.get(
    "/readyz",
    summary="Can it work?",
    responses=success_response(200, "It can.", examples.READY)
    | problem_responses("redis_unavailable", "no_worker", "unavailable"),
)
async def readyz(request: Request, broker: BrokerDep) -> Ready:
    """Redis answers, a worker is alive, and this process is not stopping. Send no traffic where this fails."""
    if request.app.state.stopping:
        raise Unavailable("this web process is stopping: ask another")
    await broker.ping()
    if not (alive := await broker.list_workers()):
        raise NoWorker("no worker is alive: start one with `python -m worker`")
    return Ready(workers=len(alive))


@router.get("/metrics", summary="What can be measured", response_class=PlainTextResponse, responses=METRICS_RESPONSE)
async def metrics(
    broker: BrokerDep, metrics: MetricsDep, settings: SettingsDep, caller: CallerDep
) -> PlainTextResponse:
    """The numbers of this process, of the queue and of all live workers, in the text format of Prometheus.

    It answers without Redis as well: `bergson_redis_up` is 0 then, and what is in Redis is left out. Of the canaries
    (`bergson canary`) a key sees those of its indexes.
    """
    try:
        load = await broker.read_load()
    except RedisUnavailable:
        load = None
    canaries = await run_in_threadpool(lambda: list(iter_last_runs(settings, caller.can_see)))
    return PlainTextResponse(metrics.render(load, canaries), media_type=CONTENT_TYPE)
