"""Previews of unlearning: what one step on some documents together would do to a list of queries."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body
from fastapi.concurrency import run_in_threadpool

from bergson_core.errors import Forbidden, InvalidInput
from bergson_core.schemas.unlearning.spec import UnlearnSpec
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import CallerDep, IndexNamePath, JobSubmitterDep, SettingsDep
from service.indexes import catalog
from service.openapi import examples
from service.openapi.metadata import JOB_ACCEPTED_RESPONSE, UNLEARN_FIELD_ERROR, problem_responses
from service.schemas import JobAccepted
from worker.messages import UnlearnJob

router = APIRouter(prefix="/index/{name}", tags=["Attribution"], route_class=StrictJsonRoute)

_PREVIEWS: dict[str, Any] = {
    "ids": {"summary": "Documents by their ids, with a control query", "value": examples.UNLEARN_IDS},
    "filter": {"summary": "All documents that meet a filter", "value": examples.UNLEARN_FILTER},
}


@router.post(
    "/unlearn",
    status_code=202,
    summary="Preview what unlearning documents would do",
    responses=JOB_ACCEPTED_RESPONSE
    | problem_responses(
        "invalid_input",
        "index_not_found",
        "document_not_found",
        "index_corrupt",
        "body_too_large",
        "unsupported_media_type",
        "queue_full",
        "redis_unavailable",
        refused=UNLEARN_FIELD_ERROR,
    ),
)
async def preview_unlearning(
    name: IndexNamePath,
    body: Annotated[UnlearnSpec, Body(openapi_examples=_PREVIEWS)],
    settings: SettingsDep,
    caller: CallerDep,
    jobs: JobSubmitterDep,
) -> JobAccepted:
    """Queues a preview: what would the model say less often without these documents, and what else would change?

    A worker takes one step of gradient ascent on all of the documents together, measures the log-probability of each
    query and control query before and after it, and restores every weight bit for bit. Nothing is saved, and the index
    does not change. The step is that of `verify` in `POST /attribute`, with the same learning rate by default: the sum
    of the steps on the single documents. A large group is a large step; the control queries show whether it is too
    large.

    Once the job has succeeded, `GET /jobs/{job_id}` has the result in `unlearning`. Queries are answered between the
    passes through the model, and jobs that change the index do not wait. The setting `BERGSON_MAX_UNLEARNED_DOCUMENTS`
    limits the number of documents. Documents of a filter are counted when the job runs.
    """
    if body.filter is not None and not caller.text:
        raise Forbidden("this key sees no metadata: name the documents by `ids`")
    if body.ids is None:
        await run_in_threadpool(catalog.require_index, settings.indexes_dir, name)
    else:
        if len(body.ids) > settings.max_unlearned_documents:
            raise InvalidInput(
                f"ids: expected at most {settings.max_unlearned_documents:,} documents "
                f"(BERGSON_MAX_UNLEARNED_DOCUMENTS), got {len(body.ids):,}"
            )
        await run_in_threadpool(catalog.require_documents, settings.indexes_dir, name, body.ids)
    return await jobs.submit(
        UnlearnJob(job_id=uuid4().hex, index=name, spec=body, request_id=jobs.request_id)
    )
