"""Health: for a supervisor and a load balancer."""

from fastapi import APIRouter

from bergson_core.errors import NoWorker
from service import examples
from service.dependencies import BrokerDep
from service.documentation import answered, problems
from service.schemas import Live, Ready

router = APIRouter(tags=["Health"])


@router.get("/livez", summary="Is the process up?", responses=answered(200, "It is.", examples.LIVE))
async def livez() -> Live:
    """Answers as long as the process does; looks at nothing else. Restart it where this fails."""
    return Live()


@router.get(
    "/readyz",
    summary="Can it work?",
    responses=answered(200, "It can.", examples.READY) | problems("redis_unavailable", "no_worker"),
)
async def readyz(broker: BrokerDep) -> Ready:
    """Redis answers and a worker is alive. Send no traffic where this fails."""
    await broker.ping()
    if not (alive := await broker.workers()):
        raise NoWorker("no worker is alive: start one with `python -m worker`")
    return Ready(workers=len(alive))
