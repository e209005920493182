"""Indexes: build one, list them, look at one."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Response
from fastapi.concurrency import run_in_threadpool

from bergson_core.errors import IndexNotFound
from bergson_core.specs import NAME_PATTERN
from service import catalog, examples
from service.dependencies import BrokerDep, LimitQuery, RequestIdDep, SettingsDep
from service.documentation import IN_BODY, IN_PATH, answered, problems
from service.schemas import IndexAccepted, IndexDetail, IndexPage, IndexRequest
from service.strict_json import StrictJsonRoute

router = APIRouter(prefix="/index", tags=["Indexes"], route_class=StrictJsonRoute)

NamePath = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of the index.", examples=["facts"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="The same key with the same body gives the same job again: a retry builds nothing twice.",
    ),
]
CursorQuery = Annotated[
    str, Query(pattern=NAME_PATTERN, description="`next_cursor` of the page before.", examples=["facts"])
]
_BODIES: dict[str, Any] = {
    "dataset": {"summary": "A dataset of the hub", "value": examples.INDEX_REQUEST},
    "recommended": {"summary": "What finds most for its bytes", "value": examples.INDEX_RECOMMENDED},
    "inline": {"summary": "Documents in the request", "value": examples.INDEX_INLINE},
}
_ACCEPTED = answered(202, "The build is queued.", examples.INDEX_ACCEPTED)
_ACCEPTED[202]["headers"] = {
    "Location": {"description": "The job: `/jobs/{job_id}`.", "schema": {"type": "string"}}
}


@router.post(
    "",
    status_code=202,
    summary="Build an index",
    responses=_ACCEPTED
    | problems(
        "invalid_input",
        "index_exists",
        "body_too_large",
        "unsupported_media_type",
        "redis_unavailable",
        refused=IN_BODY,
    ),
)
async def build_index(
    body: Annotated[IndexRequest, Body(openapi_examples=_BODIES)],
    response: Response,
    broker: BrokerDep,
    request_id: RequestIdDep,
    idempotency_key: IdempotencyKey = None,
) -> IndexAccepted:
    """Queue a build: the worker runs every training sample through the model once and keeps its gradient.

    Give a `dataset` or inline `documents`, and say in `columns` what is what. The defaults are good ones; for
    more precision try a larger `gradients.projection_dim` first, at a quadratic price in disk.
    The answer comes at once; follow the job at `Location`.
    """
    job = await broker.submit(body.name, body.spec(), request_id, idempotency_key)
    response.headers["Location"] = f"/jobs/{job.job_id}"
    return IndexAccepted(job_id=job.job_id, index=job.index, state=job.state)


@router.get(
    "",
    summary="List indexes",
    responses=answered(200, "A page of indexes.", examples.INDEX_PAGE)
    | problems("invalid_input", "redis_unavailable"),
)
async def list_indexes(
    broker: BrokerDep, settings: SettingsDep, cursor: CursorQuery | None = None, limit: LimitQuery = 50
) -> IndexPage:
    """Every index, by name: those that can be asked (`ready`) and those on their way (`building`)."""
    building = await broker.building()
    return await run_in_threadpool(catalog.page, settings.indexes_dir, building, cursor or "", limit)


@router.get(
    "/{name}",
    summary="Look at an index",
    responses=answered(200, "The index.", examples.INDEX_DETAIL)
    | problems("index_not_found", "invalid_input", "redis_unavailable", refused=IN_PATH),
)
async def get_index(name: NamePath, broker: BrokerDep, settings: SettingsDep) -> IndexDetail:
    """State, counts, size on disk, and the spec it was built from. While it is built: the id of the job."""
    try:
        return await run_in_threadpool(catalog.detail, settings.indexes_dir, name)
    except IndexNotFound:
        building = await broker.building()
        if name not in building:
            raise
        return catalog.being_built(name, building[name])
