"""Workers: who is there to do the work."""

from fastapi import APIRouter

from service import examples
from service.dependencies import BrokerDep, CallerDep
from service.documentation import answered, problems
from service.schemas import WorkerList
from worker.messages import WorkerStatus

router = APIRouter(prefix="/workers", tags=["Workers"])


@router.get(
    "",
    summary="List workers",
    responses=answered(200, "Live workers.", examples.WORKERS) | problems("redis_unavailable"),
)
async def list_workers(broker: BrokerDep, caller: CallerDep) -> WorkerList:
    """Who is alive, on which device, what they do and which indexes they hold in memory."""
    beats = await broker.workers()
    shown: list[WorkerStatus] = [  # their metrics are at /metrics
        beat.model_copy(update={"resident": [*filter(caller.sees, beat.resident)]}) for beat in beats
    ]
    return WorkerList(items=shown)
