"""Behaviours of an index: named sets of queries, which are created by a job, listed, read and deleted."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Path
from fastapi.concurrency import run_in_threadpool

from bergson_core.errors import IndexBusy, IndexNotFound
from bergson_core.schemas.behaviours.results import BehaviourDetail, BehaviourList
from bergson_core.schemas.behaviours.spec import BehaviourSpec
from bergson_core.schemas.build import NAME_PATTERN
from bergson_core.storage import behaviours
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import BrokerDep, CallerDep, IndexNamePath, JobSubmitterDep, SettingsDep
from service.indexes import catalog
from service.openapi import behaviour_examples
from service.openapi.metadata import (
    BEHAVIOUR_FIELD_ERROR,
    INDEX_NAME_ERROR,
    JOB_ACCEPTED_RESPONSE,
    problem_responses,
    success_response,
)
from service.schemas import JobAccepted
from worker.messages import BehaviourJob

router = APIRouter(prefix="/index/{name}/behaviours", tags=["Behaviours"], route_class=StrictJsonRoute)

BehaviourNamePath = Annotated[
    str, Path(pattern=NAME_PATTERN, description="Name of the behaviour.", examples=["refusals"])
]
_BODIES: dict[str, Any] = {
    "control": {"summary": "With a control set", "value": behaviour_examples.BEHAVIOUR_REQUEST},
    "chats": {"summary": "Chats", "value": behaviour_examples.BEHAVIOUR_CHATS},
}


@router.post(
    "",
    status_code=202,
    summary="Create a behaviour",
    responses=JOB_ACCEPTED_RESPONSE
    | problem_responses(
        "invalid_input",
        "index_not_found",
        "behaviour_exists",
        "index_busy",
        "index_corrupt",
        "body_too_large",
        "unsupported_media_type",
        "queue_full",
        "redis_unavailable",
        refused=BEHAVIOUR_FIELD_ERROR,
    ),
)
async def create_behaviour(
    name: IndexNamePath,
    body: Annotated[BehaviourSpec, Body(openapi_examples=_BODIES)],
    settings: SettingsDep,
    broker: BrokerDep,
    jobs: JobSubmitterDep,
) -> JobAccepted:
    """Queues the creation of a behaviour: its queries run through the model once. Later queries ask for it by its name.

    The name goes into the field `behaviour` of `POST /attribute` and of `POST /index/{name}/totals`. The score of a
    document is the mean of its scores with the queries, minus the mean of its scores with the control set. All queries
    are checked before the first one is computed. If one is wrong, the job fails with its number. A behaviour stays
    valid when documents are added, taken down or compacted, and works with every profile.
    """
    try:
        directory = await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    except IndexNotFound:
        if job_id := (await broker.active_jobs()).get(name):
            raise IndexBusy(f"index {name!r} is being built: see GET /jobs/{job_id}") from None
        raise
    await run_in_threadpool(behaviours.require_new_behaviour, directory, body.name)
    return await jobs.submit(
        BehaviourJob(job_id=uuid4().hex, index=name, spec=body, request_id=jobs.request_id)
    )


@router.get(
    "",
    summary="List behaviours",
    responses=success_response(200, "The behaviours of the index.", behaviour_examples.BEHAVIOUR_LIST)
    | problem_responses("index_not_found", "index_corrupt", "invalid_input", refused=INDEX_NAME_ERROR),
)
def list_behaviours(name: IndexNamePath, settings: SettingsDep) -> BehaviourList:
    """Lists the behaviours of an index in the order of their names, without their queries."""
    directory = catalog.require_index(settings.indexes_dir, name)
    return BehaviourList(items=behaviours.list_behaviours(directory))


@router.get(
    "/{behaviour}",
    summary="Get a behaviour",
    responses=success_response(200, "The behaviour.", behaviour_examples.BEHAVIOUR)
    | problem_responses(
        "index_not_found", "behaviour_not_found", "index_corrupt", "invalid_input", refused=INDEX_NAME_ERROR
    ),
)
def get_behaviour(
    name: IndexNamePath, behaviour: BehaviourNamePath, settings: SettingsDep, caller: CallerDep
) -> BehaviourDetail:
    """Returns a behaviour with its queries, and the generation of the index at which it was created."""
    directory = catalog.require_index(settings.indexes_dir, name)
    if not caller.text:
        return BehaviourDetail(**dict(behaviours.read_record(directory, behaviour).summary()))
    return behaviours.read_detail(directory, behaviour)


@router.delete(
    "/{behaviour}",
    status_code=204,
    summary="Delete a behaviour",
    responses={204: {"description": "The behaviour is deleted. From now on, no query can ask for it."}}
    | problem_responses(
        "index_not_found",
        "behaviour_not_found",
        "invalid_input",
        "disk_full",
        "read_only",
        refused=INDEX_NAME_ERROR,
    ),
)
def delete_behaviour(name: IndexNamePath, behaviour: BehaviourNamePath, settings: SettingsDep) -> None:
    """Deletes a behaviour for good. No worker is needed for this, and jobs on the index go on."""
    behaviours.delete_behaviour(catalog.require_index(settings.indexes_dir, name), behaviour)
