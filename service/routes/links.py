"""Links: an answer is kept, and shown again by its link."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from bergson_core.errors import IndexNotFound, LinkNotFound
from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import CallerDep, QueryHandlerDep, RateLimiterDep, SettingsDep
from service.http.query_handler import QueryHandler, run_while_connected
from service.http.whole_paths import require_utf8_path
from service.indexes import catalog
from service.links.kept_answer import LINK_ID_PATTERN, KeptAnswer, count_documents, keep_answer, show_answer
from service.links.link_store import LinkStore, make_link_id
from service.openapi import link_examples
from service.openapi.metadata import (
    LINK_FIELD_ERROR,
    LINK_ID_ERROR,
    QUERY_ERRORS,
    problem_responses,
    success_response,
)
from service.schemas import AttributeResponse, Link, LinkRequest

router = APIRouter(
    prefix="/links",
    tags=["Attribution"],
    route_class=StrictJsonRoute,
    dependencies=[Depends(require_utf8_path)],
)

LinkIdPath = Annotated[
    str, Path(pattern=LINK_ID_PATTERN, description="Id of the link.", examples=[link_examples.LINK_ID])
]
_REQUESTS: dict[str, Any] = {
    "query": {"summary": "A query whose answer is kept", "value": link_examples.LINK_REQUEST}
}
_CREATED = success_response(201, "The link, with the answer.", link_examples.LINK)
_CREATED[201]["headers"] = {
    "Location": {
        "description": "Address of the link: `/links/{link_id}`, below the prefix of a proxy if there is one.",
        "schema": {"type": "string"},
    }
}


@router.post(
    "",
    status_code=201,
    summary="Keep an answer",
    responses=_CREATED
    | problem_responses(
        *QUERY_ERRORS,
        "disk_full",
        "read_only",
        refused=LINK_FIELD_ERROR,
    ),
)
async def make_link(
    body: Annotated[LinkRequest, Body(openapi_examples=_REQUESTS)],
    request: Request,
    response: Response,
    handler: QueryHandlerDep,
    rate_limiter: RateLimiterDep,
) -> Link:
    """Answers a query as `POST /attribute` does, and keeps the answer under a link that others can open.

    The service computes the answer itself, so nobody can make a link to a false answer. A query that was asked just
    before is answered from the cache. It costs as many calls as the query.

    The link is kept for `BERGSON_KEEP_LINKS_S`, and shows the same scores even after the index has changed. The texts
    of documents are not kept, but read from the index each time, so a document that was taken down is not shown. The
    scores of a chat's tokens are not kept. Opening the link needs a key that may see the index.
    """
    store = LinkStore(handler.settings)
    store.require_enabled()
    query, timeout_s = body.request.query(), handler.settings.resolve_timeout_s(body.request.timeout_s)
    await rate_limiter.count_calls(handler.caller, query.extra_calls)
    answer = await run_while_connected(request, handler.answer(query, timeout_s))
    answer = AttributeResponse.from_answer(answer, handler.request_id)
    kept = await run_in_threadpool(_keep, store, handler, body, answer)
    link = await run_in_threadpool(_show, kept, handler)
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/links/{kept.id}"
    return link


@router.get(
    "/{link_id}",
    summary="Open a link",
    responses=success_response(200, "The link, with what its answer may still show.", link_examples.LINK)
    | problem_responses(
        "link_not_found", "forbidden", "invalid_input", "index_corrupt", refused=LINK_ID_ERROR
    ),
)
def get_link(link_id: LinkIdPath, handler: QueryHandlerDep) -> Link:
    """Returns a kept request and its answer.

    `stale` says that the index has changed since, so the same request may have another answer now. Documents that the
    index no longer has are left out, and `removed` counts them. If the index was deleted, `answer` is null.
    """
    kept = _read_visible(LinkStore(handler.settings), link_id, handler.caller)
    if not handler.caller.text:
        handler.restrict_to_permissions(kept.request.query())
    return _show(kept, handler)


@router.delete(
    "/{link_id}",
    status_code=204,
    summary="Remove a link",
    responses={204: {"description": "The link is gone."}}
    | problem_responses(
        "link_not_found", "forbidden", "invalid_input", "disk_full", "read_only", refused=LINK_ID_ERROR
    ),
)
def remove_link(link_id: LinkIdPath, settings: SettingsDep, caller: CallerDep) -> None:
    """Removes a link that this key has made. A key of scope `write` may remove any link."""
    store = LinkStore(settings)
    _read_visible(store, link_id, caller)
    store.remove(link_id, caller)


def _read_visible(store: LinkStore, link_id: str, caller: CallerDep) -> KeptAnswer:
    """Returns what a link keeps. One of an index that the caller may not see is treated as one that does not exist."""
    kept = store.read(link_id)
    if not caller.can_see(kept.request.index):
        raise LinkNotFound.for_id(link_id)
    return kept


def _keep(
    store: LinkStore, handler: QueryHandler, body: LinkRequest, answer: AttributeResponse
) -> KeptAnswer:
    now, settings = time.time(), handler.settings
    expires_at = now + settings.keep_links_s
    kept = keep_answer(
        make_link_id(expires_at),
        body.request,
        answer,
        settings.indexes_dir / body.request.index,
        fingerprint=catalog.read_index_detail(settings.indexes_dir, body.request.index).fingerprint,
        created_at=now,
        expires_at=expires_at,
    )
    store.write(kept, handler.caller)
    return kept


def _show(kept: KeptAnswer, handler: QueryHandler) -> Link:
    index, settings = kept.request.index, handler.settings
    answer, generation, is_same = None, None, False
    try:
        detail = catalog.read_index_detail(settings.indexes_dir, index)
        answer = show_answer(kept, settings.indexes_dir / index, with_texts=handler.caller.text)
        generation = detail.generation
        is_same = (detail.generation, detail.fingerprint) == (kept.answer.generation, kept.fingerprint)
    except IndexNotFound:
        pass
    return Link(
        id=kept.id,
        request=kept.request.model_dump(mode="json", exclude_unset=True),
        index=index,
        generation=kept.answer.generation,
        fingerprint=kept.fingerprint,
        created_at=kept.created_at,
        expires_at=kept.expires_at,
        stale=not is_same,
        current_generation=generation,
        removed=0 if answer is None else count_documents(kept.answer) - count_documents(answer),
        answer=answer,
    )
