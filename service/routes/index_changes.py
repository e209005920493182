"""Jobs that change an index as a whole: the fit of a profile, compaction."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body
from fastapi.concurrency import run_in_threadpool

from bergson_core.schemas.query import ProfileSpec
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import IndexNamePath, JobSubmitterDep, SettingsDep
from service.indexes import catalog
from service.openapi import examples
from service.openapi.metadata import (
    INDEX_NAME_ERROR,
    JOB_ACCEPTED_RESPONSE,
    PROFILE_FIELD_ERROR,
    problem_responses,
)
from service.schemas import JobAccepted
from worker.messages import CompactJob, ProfileJob

router = APIRouter(prefix="/index/{name}", tags=["Indexes"], route_class=StrictJsonRoute)

_PROFILES: dict[str, Any] = {
    "inline": {"summary": "Queries in the request", "value": examples.PROFILE_INLINE},
    "dataset": {"summary": "A dataset of queries", "value": examples.PROFILE_DATASET},
}
_ERRORS = ("index_not_found", "index_busy", "queue_full", "redis_unavailable")


@router.post(
    "/profiles",
    status_code=202,
    summary="Fit a profile to a task",
    responses=JOB_ACCEPTED_RESPONSE
    | problem_responses(
        "invalid_input", "body_too_large", "unsupported_media_type", *_ERRORS, refused=PROFILE_FIELD_ERROR
    ),
)
async def fit_profile(
    name: IndexNamePath,
    body: Annotated[ProfileSpec, Body(openapi_examples=_PROFILES)],
    settings: SettingsDep,
    jobs: JobSubmitterDep,
) -> JobAccepted:
    """Queues the fit of a profile, which mixes the second moment of the task's query gradients into the preconditioner.

    The model runs on the sample of queries only, and the rows of the index are read once. Queries then use the profile
    by its name, in the field `profile` of `POST /attribute`. An index with sign rows has no profiles.
    """
    await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    return await jobs.submit(
        ProfileJob(job_id=uuid4().hex, index=name, spec=body, request_id=jobs.request_id)
    )


@router.post(
    "/compact",
    status_code=202,
    summary="Remove documents that were taken down",
    responses=JOB_ACCEPTED_RESPONSE | problem_responses("invalid_input", *_ERRORS, refused=INDEX_NAME_ERROR),
)
async def compact(name: IndexNamePath, settings: SettingsDep, jobs: JobSubmitterDep) -> JobAccepted:
    """Queues a compaction, which rewrites the shards with documents that were taken down, without their bytes.

    The index answers queries meanwhile.
    """
    await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    return await jobs.submit(CompactJob(job_id=uuid4().hex, index=name, request_id=jobs.request_id))
