"""The documents of an index: add some, look at one, take one down."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Path, Response
from fastapi.concurrency import run_in_threadpool

from bergson_core.schemas.build import AppendSpec
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
from service.openapi.metadata import JOB_ACCEPTED_RESPONSE, DOCUMENTS_FIELD_ERROR, INDEX_NAME_ERROR, success_response, problem_responses
from service.schemas import DocumentDetail, JobAccepted
from worker.messages import AppendJob

router = APIRouter(prefix="/index/{name}/documents", tags=["Documents"], route_class=StrictJsonRoute)

IdPath = Annotated[
    str,
    Path(min_length=1, max_length=4096, description="Id of the document.", examples=["doc-17"]),
]
_BODIES: dict[str, Any] = {
    "inline": {"summary": "Documents in the request", "value": examples.APPEND_INLINE},
    "dataset": {"summary": "A dataset", "value": examples.APPEND_DATASET},
}


@router.post(
    "",
    status_code=202,
    summary="Add documents",
    responses=JOB_ACCEPTED_RESPONSE
    | problem_responses(
        "invalid_input",
        "index_not_found",
        "ids_exist",
        "index_busy",
        "body_too_large",
        "unsupported_media_type",
        "redis_unavailable",
        refused=DOCUMENTS_FIELD_ERROR,
    ),
)
async def append_documents(
    name: IndexNamePath,
    body: Annotated[AppendSpec, Body(openapi_examples=_BODIES)],
    response: Response,
    broker: BrokerDep,
    settings: SettingsDep,
    caller: CallerDep,
    request_id: RequestIdDep,
    idempotency_key: IdempotencyKeyDep,
) -> JobAccepted:
    """Queue an append: the new documents alone run through the model, and the index is asked as before meanwhile.

    They are read with the columns of the index. Ids that it has already are refused with their list. Model and
    settings may be stated; others than those of the index are refused.
    """
    await run_in_threadpool(catalog.require_valid_append, settings.indexes_dir, name, body)
    job = AppendJob(job_id=uuid4().hex, index=name, spec=body, request_id=request_id)
    return job_accepted(await broker.submit(job, idempotency_key, caller.id), response)


@router.get(
    "/{document_id:path}",
    summary="Look at a document",
    responses=success_response(200, "The document.", examples.DOCUMENT)
    | problem_responses("index_not_found", "document_not_found", "invalid_input", "index_corrupt", refused=INDEX_NAME_ERROR),
)
async def get_document(
    name: IndexNamePath, document_id: IdPath, settings: SettingsDep, caller: CallerDep
) -> DocumentDetail:
    """Text, metadata and loss of a training sample."""
    found = await run_in_threadpool(catalog.read_document, settings.indexes_dir, name, document_id)
    return found if caller.text else found.without_text()


@router.delete(
    "/{document_id:path}",
    status_code=204,
    summary="Take a document down",
    responses={204: {"description": "No answer shows it any more, from now on."}}
    | problem_responses("index_not_found", "document_not_found", "invalid_input", "index_corrupt", refused=INDEX_NAME_ERROR),
)
async def take_document_down(name: IndexNamePath, document_id: IdPath, settings: SettingsDep) -> None:
    """Hide a document from every answer, at once and for good; no worker is needed for it.

    Its bytes are removed by `POST /index/{name}/compact`. Its id may be used again.
    """
    await run_in_threadpool(catalog.take_document_down, settings.indexes_dir, name, document_id)
