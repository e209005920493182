"""Workers and the models that they hold: who is there to do the work."""

from fastapi import APIRouter

from service.auth.api_keys import Caller
from service.http.dependencies import BrokerDep, CallerDep
from service.openapi import examples
from service.openapi.metadata import success_response, problem_responses
from service.schemas import ModelList, ModelSummary, WorkerList
from worker.messages import WorkerStatus

router = APIRouter(tags=["Workers"])


@router.get(
    "/workers",
    summary="List workers",
    responses=success_response(200, "Live workers.", examples.WORKERS) | problem_responses("redis_unavailable"),
)
async def list_workers(broker: BrokerDep, caller: CallerDep) -> WorkerList:
    """Who is alive, on which device, what they do, and which indexes and models they hold in memory."""
    return WorkerList(items=[_shown(beat, caller) for beat in await broker.list_workers()])


@router.get(
    "/models",
    summary="List models",
    responses=success_response(200, "Models in memory.", examples.MODELS) | problem_responses("redis_unavailable"),
)
async def list_models(broker: BrokerDep, caller: CallerDep) -> ModelList:
    """Which models are in the memory of which workers, and for which indexes. Any other is loaded when it is needed."""
    found: dict[tuple[str, ...], ModelSummary] = {}
    for beat in await broker.list_workers():
        for one in _shown(beat, caller).models:
            key = (one.model, one.revision or "", one.dtype, one.sha256)
            known = found.get(key)
            found[key] = ModelSummary(
                **one.model_dump(exclude={"indexes"}),
                workers=[*(known.workers if known else ()), beat.worker_id],
                indexes=sorted({*one.indexes, *(known.indexes if known else ())}),
            )
    return ModelList(items=[found[key] for key in sorted(found)])


def _shown(beat: WorkerStatus, caller: Caller) -> WorkerStatus:
    """What `caller` may see of it: indexes that are there for the caller, and their models."""
    models = [
        one.model_copy(update={"indexes": seen})
        for one in beat.models
        if (seen := [*filter(caller.can_see, one.indexes)]) or not caller.indexes
    ]
    resident = [*filter(caller.can_see, beat.resident)]
    return beat.model_copy(update={"resident": resident, "models": models})
