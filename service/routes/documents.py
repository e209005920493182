"""The documents of an index: add some, read one, take one down."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Depends, Path
from fastapi.concurrency import run_in_threadpool

from bergson_core.schemas.build import AppendSpec
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import CallerDep, IndexNamePath, JobSubmitterDep, SettingsDep
from service.http.whole_paths import require_utf8_path
from service.index_schemas import DocumentDetail
from service.indexes import catalog
from service.openapi import examples
from service.openapi.metadata import (
    DOCUMENTS_FIELD_ERROR,
    INDEX_NAME_ERROR,
    JOB_ACCEPTED_RESPONSE,
    problem_responses,
    success_response,
)
from service.schemas import JobAccepted
from worker.messages import AppendJob

router = APIRouter(
    prefix="/index/{name}/documents",
    tags=["Documents"],
    route_class=StrictJsonRoute,
    dependencies=[Depends(require_utf8_path)],
)

DocumentIdPath = Annotated[
    str,
    # Documents of older indexes have ids that no build accepts any more; they can be read and taken down by them.
    Path(min_length=1, description="Id of the document, percent-encoded.", examples=["doc-17"]),
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
        "queue_full",
        "redis_unavailable",
        refused=DOCUMENTS_FIELD_ERROR,
    ),
)
async def append_documents(
    name: IndexNamePath,
    body: Annotated[AppendSpec, Body(openapi_examples=_BODIES)],
    settings: SettingsDep,
    jobs: JobSubmitterDep,
) -> JobAccepted:
    """Queues an append. Only the new documents run through the model, and the index answers queries meanwhile.

    The documents are read with the columns of the index. If the index has documents with some of the ids already, the
    append is refused, with a list of those ids. You may state the model and the settings of the index; any others are
    refused.
    """
    await run_in_threadpool(catalog.require_valid_append, settings.indexes_dir, name, body)
    return await jobs.submit(AppendJob(job_id=uuid4().hex, index=name, spec=body, request_id=jobs.request_id))


@router.get(
    "/{document_id:path}",
    summary="Get a document",
    responses=success_response(200, "The document.", examples.DOCUMENT)
    | problem_responses(
        "index_not_found", "document_not_found", "invalid_input", "index_corrupt", refused=INDEX_NAME_ERROR
    ),
)
def get_document(
    name: IndexNamePath, document_id: DocumentIdPath, settings: SettingsDep, caller: CallerDep
) -> DocumentDetail:
    """Returns the text, the metadata and the loss of a training document.

    A document that was cut into chunks is returned as a whole, with the ids of its chunks; each of these is a document
    as well.
    """
    document = catalog.read_document(settings.indexes_dir, name, document_id)
    return document if caller.text else document.without_text()


@router.delete(
    "/{document_id:path}",
    status_code=204,
    summary="Take a document down",
    responses={204: {"description": "From now on, no answer shows the document."}}
    | problem_responses(
        "index_not_found",
        "document_not_found",
        "invalid_input",
        "index_busy",
        "index_corrupt",
        "disk_full",
        "read_only",
        refused=INDEX_NAME_ERROR,
    ),
)
def take_document_down(name: IndexNamePath, document_id: DocumentIdPath, settings: SettingsDep) -> None:
    """Hides a document from every answer, at once and for good, with all of its chunks. No worker is needed for this.

    `POST /index/{name}/compact` removes the document's bytes. Its id may be used again.
    """
    catalog.take_down_document(settings.indexes_dir, name, document_id)
