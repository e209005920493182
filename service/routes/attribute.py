"""Attribution: which training documents made the model say that?"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.concurrency import run_in_threadpool

from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import QueryHandlerDep, RateLimiterDep
from service.http.query_handler import run_while_connected
from service.indexes import catalog
from service.openapi import behaviour_examples, examples
from service.openapi.metadata import (
    BATCH_FIELD_ERROR,
    INDEXES_FIELD_ERROR,
    QUERY_ERRORS,
    QUERY_FIELD_ERROR,
    problem_responses,
    success_response,
)
from service.schemas import (
    AttributeRequest,
    AttributeResponse,
    BatchRequest,
    BatchResponse,
    SideBySideRequest,
)

router = APIRouter(prefix="/attribute", tags=["Attribution"], route_class=StrictJsonRoute)

_QUERIES: dict[str, Any] = {
    "proponents": {
        "summary": "Documents that made the completion more likely",
        "value": examples.ATTRIBUTE_REQUEST,
    },
    "both": {
        "summary": "Documents that made it more likely or less likely",
        "value": examples.ATTRIBUTE_BOTH,
    },
    "filtered": {"summary": "Some of the documents only", "value": examples.ATTRIBUTE_FILTERED},
    "excluding": {"summary": "All documents but some", "value": examples.ATTRIBUTE_EXCLUDING},
    "generated": {"summary": "A completion that the model generates", "value": examples.ATTRIBUTE_GENERATED},
    "contrast": {"summary": "Why this rather than that", "value": examples.ATTRIBUTE_CONTRAST},
    "between": {
        "summary": "What taught the later of two checkpoints",
        "value": examples.ATTRIBUTE_BETWEEN,
    },
    "log_odds": {"summary": "The log-odds of the completion", "value": examples.ATTRIBUTE_LOG_ODDS},
    "rescored": {"summary": "The best documents by exact scores", "value": examples.ATTRIBUTE_RESCORED},
    "words": {"summary": "Which documents state the completion", "value": examples.ATTRIBUTE_WORDS},
    "fused": {"summary": "The best by influence and by words", "value": examples.ATTRIBUTE_FUSED},
    "verified": {"summary": "The best documents unlearned", "value": examples.ATTRIBUTE_VERIFIED},
    "together": {"summary": "The best documents unlearned together", "value": examples.ATTRIBUTE_TOGETHER},
    "grouped": {"summary": "Near-duplicates as one result", "value": examples.ATTRIBUTE_GROUPED},
    "background": {
        "summary": "How random documents score beside the results",
        "value": examples.ATTRIBUTE_BACKGROUND,
    },
    "parts": {"summary": "Scores split by token and by module", "value": examples.ATTRIBUTE_PARTS},
    "span": {"summary": "A part of the completion", "value": examples.ATTRIBUTE_SPAN},
    "join": {
        "summary": "A completion whose leading space is put there",
        "value": examples.ATTRIBUTE_JOIN,
    },
    "behaviour": {"summary": "A behaviour that is kept", "value": behaviour_examples.ATTRIBUTE_BEHAVIOUR},
    "chat": {"summary": "What the assistant says in a chat", "value": examples.ATTRIBUTE_CHAT},
}
_BATCHES: dict[str, Any] = {"two": {"summary": "Two queries", "value": examples.BATCH_REQUEST}}
_SIDE_BY_SIDE: dict[str, Any] = {
    "corpora": {"summary": "Two corpora of one model", "value": examples.SIDE_BY_SIDE_REQUEST}
}


@router.post(
    "",
    summary="Query an index",
    responses=success_response(200, "The documents, most influential first.", examples.VERIFIED_RESPONSE)
    | problem_responses(*QUERY_ERRORS, refused=QUERY_FIELD_ERROR),
)
async def attribute(
    body: Annotated[AttributeRequest, Body(openapi_examples=_QUERIES)],
    request: Request,
    handler: QueryHandlerDep,
    rate_limiter: RateLimiterDep,
) -> AttributeResponse:
    """Finds the training documents that made the model say `completion` after `prompt`.

    A worker computes the gradient of the completion's loss and compares it with that of every document in the index.
    Proponents (high scores) made the completion more likely, opponents (low scores) made it less likely. A text that is
    too long for the model is refused, and never cut silently.

    A completion usually begins with a space. If a completion seems to lack its space, `warnings` show how it was
    tokenised and what was probably meant. `"join": "space"` adds the space. Without a completion, the model generates
    one: the most likely token at each step, regardless of its generation_config.

    * `messages`: explains a chat instead of a prompt and a completion. The last message is the assistant's. The chat is
      rendered by the model's chat template, as the chats of the index were, and all messages of the assistant are
      explained; `span` selects a part of the last one.
    * `behaviour`: explains a named set of queries of `POST /index/{name}/behaviours`. The score of a document is the
      mean of its scores with the queries, minus the mean with the control set, and minus the score of
      `instead_of_behaviour` if it is given. It works without `rescore` and `verify`, and has no `notice`.
    * `instead_of`: asks why the model says the completion rather than this one. Proponents made the completion more
      likely relative to it, opponents made `instead_of` more likely.
    * `objective`: with `log_odds`, explains the log-odds of each token, so that tokens that the model is sure of count
      as much as others.
    * `between`: asks an index over several checkpoints why the later of two says the completion and the earlier one
      does not.
    * `rescore`: scores this many candidates again by their whole gradients, without the noise of the projection. They
      come first, and `exact` says which score a result has. Candidates without enough time keep the score of the index;
      `rescored` counts them. Other queries go first, and each 32 candidates count as a call.
    * `verify`: unlearns the best documents one by one, and random documents for comparison, and measures how much less
      likely the completion becomes. `"together": true` adds one step on all of them at once, and on random groups of
      the same size. Other queries go first, and each document counts as a call.
    * `group_by`: puts the 1,000 best documents into groups of near-duplicates, or of the same value of a metadata
      column. Each result is the best document of its group, and `group` has the members and the sum of their scores,
      with an interval and a strength.
    * `include`: `words`: whether each result states the completion, and its place among all documents by BM25.
      `tokens`, `modules`: the parts of the score by token and by module. `background`: a histogram of the scores of
      random documents.
    * `order`: orders the results by words, or by words and influence together. The first query with words reads the
      words of all documents. If this takes longer than `timeout_s`, send the query again: what was read is kept.

    `percentile` compares a result with random documents of the index, and `notice` says that no result stands out.
    `interval` contains the mean of the score over all random projections in nine of ten cases; an exact score has none.
    `strength` is `strong` if the score stands out and its whole interval is above the 99th percentile of random
    documents, `weak` if only one of the two holds, and `none` if neither does.

    A repeated query to an index that has not changed is answered from memory, within a millisecond. With the header
    `Cache-Control: no-cache`, a worker computes the answer again.
    """
    query, timeout_s = body.query(), handler.settings.resolve_timeout_s(body.timeout_s)
    await rate_limiter.count_calls(handler.caller, query.extra_calls)
    answer = await run_while_connected(request, handler.answer(query, timeout_s))
    return AttributeResponse.from_answer(answer, handler.request_id)


@router.post(
    "/batch",
    summary="Send many queries",
    responses=success_response(
        200, "For each query, in order, an answer or a problem.", examples.BATCH_RESPONSE
    )
    | problem_responses(
        "invalid_input",
        "body_too_large",
        "unsupported_media_type",
        "redis_unavailable",
        refused=BATCH_FIELD_ERROR,
    ),
)
async def attribute_batch(
    body: Annotated[BatchRequest, Body(openapi_examples=_BATCHES)],
    request: Request,
    handler: QueryHandlerDep,
    rate_limiter: RateLimiterDep,
) -> BatchResponse:
    """Answers up to 256 queries at once.

    Each counts as a call, and each document to verify, or 32 candidates to rescore, as one more. Single
    queries go first, so that a batch does not keep anybody waiting for long.
    """
    timeout_s = handler.settings.resolve_timeout_s(body.timeout_s)
    extra_calls = sum(query.extra_calls for query in body.queries)
    await rate_limiter.count_calls(handler.caller, len(body.queries) - 1 + extra_calls)
    results = await run_while_connected(request, handler.answer_batch(body.queries, timeout_s))
    return BatchResponse(results=results)


@router.post(
    "/indexes",
    summary="Query several indexes",
    responses=success_response(
        200, "For each index, in order, an answer or a problem.", examples.BATCH_RESPONSE
    )
    | problem_responses(*QUERY_ERRORS, refused=INDEXES_FIELD_ERROR),
)
async def attribute_indexes(
    body: Annotated[SideBySideRequest, Body(openapi_examples=_SIDE_BY_SIDE)],
    request: Request,
    handler: QueryHandlerDep,
    rate_limiter: RateLimiterDep,
) -> BatchResponse:
    """Asks 2 to 16 indexes the same query, and returns their answers side by side.

    All fields are those of `POST /attribute`, with `indexes` in place of `index`. Each answer has its own scores,
    percentiles, strengths and notice. The answers are not merged, because the scores of different indexes have
    different scales: `strength` and `notice` say which index has documents that stand out. For the mean over
    checkpoints of a run, build one index with `models`.

    If an index does not exist, or the API key may not see it, the whole request is refused. An error that concerns one
    index alone, such as a metadata column that it does not keep, is a problem in its place. Each index counts as a
    call.
    """
    queries, timeout_s = body.queries(), handler.settings.resolve_timeout_s(body.timeout_s)
    for query in queries:
        handler.restrict_to_permissions(query)
        await run_in_threadpool(catalog.require_index, handler.settings.indexes_dir, query.index)
    extra_calls = sum(query.extra_calls for query in queries)
    await rate_limiter.count_calls(handler.caller, len(queries) - 1 + extra_calls)
    work = handler.answer_batch(queries, timeout_s, "interactive")
    return BatchResponse(results=await run_while_connected(request, work))
