"""Live workers, and the models that they hold in memory."""

from fastapi import APIRouter

from service.auth.api_keys import Caller
from service.http.dependencies import BrokerDep, CallerDep
from service.openapi import examples
from service.openapi.metadata import problem_responses, success_response
from service.schemas import ModelList, ModelSummary, WorkerList
from worker.messages import WorkerStatus

router = APIRouter(tags=["Workers"])


@router.get(
    "/workers",
    summary="List workers",
    responses=success_response(200, "Live workers.", examples.WORKERS)
    | problem_responses("redis_unavailable"),
)
async def list_workers(broker: BrokerDep, caller: CallerDep) -> WorkerList:
    """Lists the live workers: the device of each, its state, and the indexes and models that it holds in memory."""
    return WorkerList(items=[_visible_part(worker, caller) for worker in await broker.list_workers()])


@router.get(
    "/models",
    summary="List models",
    responses=success_response(200, "Models in memory.", examples.MODELS)
    | problem_responses("redis_unavailable"),
)
async def list_models(broker: BrokerDep, caller: CallerDep) -> ModelList:
    """Lists the models in the memory of workers, and the indexes for which they are there.

    Any other model is loaded when it is needed.
    """
    summaries: dict[tuple[str, ...], ModelSummary] = {}
    for heartbeat in await broker.list_workers():
        worker = _visible_part(heartbeat, caller)
        for model in worker.models:
            key = (model.model, model.revision or "", model.dtype, model.sha256)
            previous = summaries.get(key)
            summaries[key] = ModelSummary(
                **model.model_dump(exclude={"indexes"}),
                workers=[*(previous.workers if previous else ()), worker.worker_id],
                indexes=sorted({*model.indexes, *(previous.indexes if previous else ())}),
            )
    return ModelList(items=[summaries[key] for key in sorted(summaries)])


def _visible_part(worker: WorkerStatus, caller: Caller) -> WorkerStatus:
    """Returns the status of a worker with the indexes that the caller may see, and their models."""
    models = [
        model.model_copy(update={"indexes": indexes})
        for model in worker.models
        if (indexes := [*filter(caller.can_see, model.indexes)]) or not caller.indexes
    ]
    resident = [*filter(caller.can_see, worker.resident)]
    return worker.model_copy(update={"resident": resident, "models": models})
