"""Changes of an index as a whole: a profile for a task, compaction."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Response
from fastapi.concurrency import run_in_threadpool

from bergson_core.schemas.query import ProfileSpec
from service.http.dependencies import (
    BrokerDep,
    CallerDep,
    IdempotencyKeyDep,
    IndexNamePath,
    RequestIdDep,
    SettingsDep,
    job_accepted,
)
from service.http.strict_json import StrictJsonRoute
from service.indexes import catalog
from service.openapi import examples
from service.openapi.metadata import JOB_ACCEPTED_RESPONSE, INDEX_NAME_ERROR, PROFILE_FIELD_ERROR, problem_responses
from service.schemas import JobAccepted
from worker.messages import CompactJob, ProfileJob

router = APIRouter(prefix="/index/{name}", tags=["Indexes"], route_class=StrictJsonRoute)

_PROFILES: dict[str, Any] = {
    "inline": {"summary": "Queries in the request", "value": examples.PROFILE_INLINE},
    "dataset": {"summary": "A dataset of queries", "value": examples.PROFILE_DATASET},
}
_REFUSALS = ("index_not_found", "index_busy", "redis_unavailable")


@router.post(
    "/profiles",
    status_code=202,
    summary="Fit a profile to a task",
    responses=JOB_ACCEPTED_RESPONSE
    | problem_responses("invalid_input", "body_too_large", "unsupported_media_type", *_REFUSALS, refused=PROFILE_FIELD_ERROR),
)
async def fit_profile(
    name: IndexNamePath,
    body: Annotated[ProfileSpec, Body(openapi_examples=_PROFILES)],
    response: Response,
    broker: BrokerDep,
    settings: SettingsDep,
    caller: CallerDep,
    request_id: RequestIdDep,
    idempotency_key: IdempotencyKeyDep,
) -> JobAccepted:
    """Queue the fit of a profile: the preconditioner mixed with the second moment of a sample of the task's queries.

    The model runs on the queries alone; the rows are read once. Name it as `profile` in `POST /attribute`. Sign rows
    have no profiles.
    """
    await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    job = ProfileJob(job_id=uuid4().hex, index=name, spec=body, request_id=request_id)
    return job_accepted(await broker.submit(job, idempotency_key, caller.id), response)


@router.post(
    "/compact",
    status_code=202,
    summary="Remove what was taken down",
    responses=JOB_ACCEPTED_RESPONSE | problem_responses("invalid_input", *_REFUSALS, refused=INDEX_NAME_ERROR),
)
async def compact(
    name: IndexNamePath,
    response: Response,
    broker: BrokerDep,
    settings: SettingsDep,
    caller: CallerDep,
    request_id: RequestIdDep,
    idempotency_key: IdempotencyKeyDep,
) -> JobAccepted:
    """Queue a compaction: shards that hold documents that were taken down are written anew without their bytes.

    The index is asked as before meanwhile.
    """
    await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    job = CompactJob(job_id=uuid4().hex, index=name, request_id=request_id)
    return job_accepted(await broker.submit(job, idempotency_key, caller.id), response)
