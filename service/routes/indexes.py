"""Indexes: build one, estimate a build, list them, read one, delete one."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Query, Request
from fastapi.concurrency import run_in_threadpool

from bergson_core.errors import Forbidden, IndexBusy, IndexNotFound
from bergson_core.schemas.build import NAME_PATTERN
from bergson_core.schemas.results import Estimate
from bergson_core.storage.deletion import delete_index
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import (
    BrokerDep,
    CallerDep,
    IndexNamePath,
    JobSubmitterDep,
    PageLimitQuery,
    RequestIdDep,
    SettingsDep,
)
from service.http.query_handler import run_while_connected
from service.index_schemas import IndexDetail, IndexPage
from service.indexes import canary_log, catalog
from service.openapi import examples
from service.openapi.metadata import (
    BUILD_FIELD_ERROR,
    INDEX_NAME_ERROR,
    JOB_ACCEPTED_RESPONSE,
    problem_responses,
    success_response,
)
from service.schemas import EstimateRequest, IndexRequest, JobAccepted
from worker.messages import BuildJob, EstimateJob

router = APIRouter(prefix="/index", tags=["Indexes"], route_class=StrictJsonRoute)

CursorQuery = Annotated[
    str, Query(pattern=NAME_PATTERN, description="`next_cursor` of the previous page.", examples=["facts"])
]
_BODIES: dict[str, Any] = {
    "dataset": {"summary": "A dataset of the Hugging Face Hub", "value": examples.INDEX_REQUEST},
    "preset": {"summary": "A preset, with a smaller projection", "value": examples.INDEX_PRESET},
    "checkpoints": {"summary": "Several checkpoints of a run", "value": examples.INDEX_CHECKPOINTS},
    "inline": {"summary": "Documents in the request", "value": examples.INDEX_INLINE},
    "pairs": {"summary": "Preference pairs, with a reference model", "value": examples.INDEX_PAIRS},
}
_ESTIMATES: dict[str, Any] = {"dataset": {"summary": "A build", "value": examples.INDEX_REQUEST}}


@router.post(
    "",
    status_code=202,
    summary="Build an index",
    responses=JOB_ACCEPTED_RESPONSE
    | problem_responses(
        "invalid_input",
        "index_exists",
        "body_too_large",
        "unsupported_media_type",
        "queue_full",
        "redis_unavailable",
        refused=BUILD_FIELD_ERROR,
    ),
)
async def build_index(
    body: Annotated[IndexRequest, Body(openapi_examples=_BODIES)],
    caller: CallerDep,
    jobs: JobSubmitterDep,
) -> JobAccepted:
    """Queues a build. A worker runs every training document through the model once and stores its gradient.

    Give either a `dataset` or inline `documents`, and name their columns in `columns`. The defaults suit most cases.
    For more precision, try a larger `gradients.projection_dim` first; the size on disk grows with its square.
    A `preset` fills in whatever `gradients` and `scoring` leave out. The job and the index show the values that it has
    filled in, and a request that states these values is the same request.
    The response comes at once; follow the job at `Location`.
    """
    if not caller.can_see(body.name):
        raise Forbidden(
            f"this key is limited to indexes named {' or '.join(caller.indexes)}, not {body.name!r}"
        )
    return await jobs.submit(
        BuildJob(job_id=uuid4().hex, index=body.name, spec=body.build_spec(), request_id=jobs.request_id)
    )


@router.post(
    "/estimate",
    summary="Estimate a build",
    responses=success_response(200, "The cost of the build.", examples.ESTIMATE)
    | problem_responses(
        "invalid_input",
        "body_too_large",
        "unsupported_media_type",
        "no_worker",
        "queue_full",
        "redis_unavailable",
        "deadline_exceeded",
        refused=BUILD_FIELD_ERROR,
    ),
)
async def estimate_index(
    body: Annotated[EstimateRequest, Body(openapi_examples=_ESTIMATES)],
    request: Request,
    broker: BrokerDep,
    caller: CallerDep,
    request_id: RequestIdDep,
) -> Estimate:
    """Estimates what `POST /index` with this body would cost: documents, tokens, disk, memory, time.

    A worker tries the build on some of the documents, in a separate process, and measures it. This takes about a
    minute if a batch takes a few seconds. Meanwhile the estimate is listed as a job, which is cancelled after
    `timeout_s` seconds.
    """
    job = EstimateJob(job_id=uuid4().hex, spec=body.build_spec(), request_id=request_id)
    return await run_while_connected(request, broker.estimate(job, body.timeout_s, caller.id))


@router.get(
    "",
    summary="List indexes",
    responses=success_response(200, "A page of indexes.", examples.INDEX_PAGE)
    | problem_responses("invalid_input", "redis_unavailable"),
)
async def list_indexes(
    broker: BrokerDep,
    settings: SettingsDep,
    caller: CallerDep,
    cursor: CursorQuery | None = None,
    limit: PageLimitQuery = 50,
) -> IndexPage:
    """Lists all indexes in the order of their names: those that answer queries (`ready`) and those being built
    (`building`).
    """
    root, active_jobs = settings.indexes_dir, await broker.active_jobs()
    return await run_in_threadpool(
        catalog.read_index_page, root, active_jobs, cursor or "", limit, caller.can_see
    )


@router.get(
    "/{name}",
    summary="Get an index",
    responses=success_response(200, "The index.", examples.INDEX_DETAIL)
    | problem_responses("index_not_found", "invalid_input", "redis_unavailable", refused=INDEX_NAME_ERROR),
)
async def get_index(name: IndexNamePath, broker: BrokerDep, settings: SettingsDep) -> IndexDetail:
    """Returns the state, the counts, the size on disk and the spec of an index; during its build, the id of the job."""
    try:
        return await run_in_threadpool(catalog.read_index_detail, settings.indexes_dir, name)
    except IndexNotFound:
        active_jobs = await broker.active_jobs()
        if name not in active_jobs:
            raise
        return catalog.make_building_detail(name, active_jobs[name])


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete an index",
    responses={204: {"description": "The index is deleted. Workers drop it from memory at their next look."}}
    | problem_responses(
        "index_not_found", "index_busy", "invalid_input", "redis_unavailable", refused=INDEX_NAME_ERROR
    ),
)
async def remove_index(name: IndexNamePath, broker: BrokerDep, settings: SettingsDep) -> None:
    """Deletes an index for good, or what a build that failed has left under this name.

    This is refused while a job works on the index: cancel the job first.
    """
    if job_id := (await broker.active_jobs()).get(name):
        raise IndexBusy(f"job {job_id} is changing {name!r}: wait for this job, or cancel it")
    await run_in_threadpool(delete_index, settings.indexes_dir / name)
    await run_in_threadpool(canary_log.delete_runs, settings, name)
