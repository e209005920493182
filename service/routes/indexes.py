"""Indexes: build one, list them, look at one, delete one."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from bergson_core.errors import Forbidden, IndexBusy, IndexNotFound
from bergson_core.schemas.build import NAME_PATTERN
from bergson_core.schemas.results import Estimate
from bergson_core.storage.deletion import delete_index
from service.http.dependencies import (
    BrokerDep,
    CallerDep,
    IdempotencyKeyDep,
    PageLimitQuery,
    IndexNamePath,
    RequestIdDep,
    SettingsDep,
    job_accepted,
)
from service.http.query_handler import run_while_connected
from service.http.strict_json import StrictJsonRoute
from service.indexes import canary_log, catalog
from service.openapi import examples
from service.openapi.metadata import JOB_ACCEPTED_RESPONSE, BUILD_FIELD_ERROR, INDEX_NAME_ERROR, success_response, problem_responses
from service.schemas import EstimateRequest, IndexDetail, IndexPage, IndexRequest, JobAccepted
from worker.messages import BuildJob, EstimateJob

router = APIRouter(prefix="/index", tags=["Indexes"], route_class=StrictJsonRoute)

CursorQuery = Annotated[
    str, Query(pattern=NAME_PATTERN, description="`next_cursor` of the page before.", examples=["facts"])
]
_BODIES: dict[str, Any] = {
    "dataset": {"summary": "A dataset of the hub", "value": examples.INDEX_REQUEST},
    "recommended": {"summary": "What finds most for its bytes", "value": examples.INDEX_RECOMMENDED},
    "inline": {"summary": "Documents in the request", "value": examples.INDEX_INLINE},
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
        "redis_unavailable",
        refused=BUILD_FIELD_ERROR,
    ),
)
async def build_index(
    body: Annotated[IndexRequest, Body(openapi_examples=_BODIES)],
    response: Response,
    broker: BrokerDep,
    caller: CallerDep,
    request_id: RequestIdDep,
    idempotency_key: IdempotencyKeyDep,
) -> JobAccepted:
    """Queue a build: the worker runs every training sample through the model once and keeps its gradient.

    Give a `dataset` or inline `documents`, and say in `columns` what is what. The defaults are good ones; for
    more precision try a larger `gradients.projection_dim` first, at a quadratic price in disk.
    The answer comes at once; follow the job at `Location`.
    """
    if not caller.can_see(body.name):
        raise Forbidden(f"this key is for indexes named {' or '.join(caller.indexes)}, not {body.name!r}")
    job = BuildJob(job_id=uuid4().hex, index=body.name, spec=body.build_spec(), request_id=request_id)
    return job_accepted(await broker.submit(job, idempotency_key, caller.id), response)


@router.post(
    "/estimate",
    summary="Estimate a build",
    responses=success_response(200, "What the build would take.", examples.ESTIMATE)
    | problem_responses(
        "invalid_input",
        "body_too_large",
        "unsupported_media_type",
        "no_worker",
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
    """What `POST /index` with this body would take: documents, tokens, disk, memory, time.

    A worker tries the build on some of the documents, in a process of its own, and measures it: that takes about a
    minute where a batch takes some seconds. It is listed as a job meanwhile, and cancelled when the time is up.
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
    """Every index, by name: those that can be asked (`ready`) and those on their way (`building`)."""
    building = await broker.active_jobs()
    root = settings.indexes_dir
    return await run_in_threadpool(catalog.read_index_page, root, building, cursor or "", limit, caller.can_see)


@router.get(
    "/{name}",
    summary="Look at an index",
    responses=success_response(200, "The index.", examples.INDEX_DETAIL)
    | problem_responses("index_not_found", "invalid_input", "redis_unavailable", refused=INDEX_NAME_ERROR),
)
async def get_index(name: IndexNamePath, broker: BrokerDep, settings: SettingsDep) -> IndexDetail:
    """State, counts, size on disk, and the spec it was built from. While it is built: the id of the job."""
    try:
        return await run_in_threadpool(catalog.read_index_detail, settings.indexes_dir, name)
    except IndexNotFound:
        building = await broker.active_jobs()
        if name not in building:
            raise
        return catalog.make_building_detail(name, building[name])


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete an index",
    responses={204: {"description": "It is gone from disk, and from memory as soon as a worker looks."}}
    | problem_responses("index_not_found", "index_busy", "invalid_input", "redis_unavailable", refused=INDEX_NAME_ERROR),
)
async def remove_index(name: IndexNamePath, broker: BrokerDep, settings: SettingsDep) -> None:
    """Remove an index for good. One that a job is at work on is refused: cancel the job first."""
    if job_id := (await broker.active_jobs()).get(name):
        raise IndexBusy(f"job {job_id} is at work on {name!r}: wait for it, or cancel it")
    directory = await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    await run_in_threadpool(delete_index, directory)
    await run_in_threadpool(canary_log.delete_runs, settings, name)
