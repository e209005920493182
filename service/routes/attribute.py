"""Attribution: which training documents made the model say that?"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from service.http.bodies.strict_json import StrictJsonRoute
from service.http.dependencies import QueryHandlerDep, RateLimiterDep
from service.http.query_handler import run_while_connected
from service.openapi import behaviour_examples, examples
from service.openapi.metadata import (
    BATCH_FIELD_ERROR,
    QUERY_ERRORS,
    QUERY_FIELD_ERROR,
    problem_responses,
    success_response,
)
from service.schemas import AttributeRequest, AttributeResponse, BatchRequest, BatchResponse

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

    Mind the space: a completion usually begins with one. Where it seems to lack its space, `warnings` show how it was
    tokenised and what was probably meant; with `"join": "space"` the space is put there. Without a completion, the
    model generates the one to explain: the most likely token each time, whatever its generation_config says.

    With `messages` instead of `prompt` and `completion`, the query is a chat whose last message is the assistant's. It
    is rendered by the model's chat template as the chats of the index were, and explained by all that the assistant
    says in it. `span` selects a part of the last message.

    With `between`, an index over several checkpoints says why the later of two of them says the completion and the
    earlier one does not yet.

    With `instead_of`, the query is why the model says the completion rather than this: proponents made the completion
    more likely beside it, opponents made `instead_of` more likely. With `"objective": "log_odds"`, each token's
    log-odds are explained, so that tokens that the model is sure of count as much as others.

    With `behaviour`, the query is for a named set of queries that `POST /index/{name}/behaviours` has created: a
    document's score is the mean of its scores with them, less that with the control set, and less that of
    `instead_of_behaviour` if it is given. It cannot be rescored or verified, and there is no `notice`.

    With `rescore`, that many candidates run through the model again and are scored by their whole gradients, without
    the noise of the projection. They come first, and each result says in `exact` which score it has. Candidates for
    which the time is too short keep the score of the index; `rescored` counts them. Other queries go first, and each 32
    candidates count as a call.

    With `words` in `include`, each result says whether it states the completion, and which place it has among all
    documents by BM25: a document may state what it did not teach, and teach what it does not state. `order` puts the
    results in the order of words, or of words and influence together. The first such query of an index reads the words
    of all documents, which may take longer than `timeout_s`: what was read is kept, and the query can be sent again.

    With `verify`, the best documents are really unlearned one by one, and random documents as well, to see how much
    less likely the completion becomes. With `"together": true` in it, one more step is on all of them at once, beside
    random groups of as many documents. This takes longer, lets other queries go first, and counts as a call for each
    document.

    With `group_by`, the 1,000 best documents are folded into groups of near-duplicates, or of the same value of a
    metadata column. Each result is then the best document of its group, and `group` has the members and the sum of
    their scores.

    `percentile` says how a result compares with random documents of the index, and `notice` says so when none stands
    out. `interval` is where the score lies on average over all random projections, in nine of ten cases; an exact score
    has none. `strength` is `strong` if the score stands out and its whole interval is above the 99th percentile of
    random documents, `weak` if one of the two holds, and `none` if neither does. With `tokens` and `modules` in
    `include`, a score is split into what each token and each module of the document contributes; with `background`, the
    answer has a histogram of the scores of the random documents.

    The same query to an index that has not changed is answered from memory, within a millisecond. The header
    `Cache-Control: no-cache` has a worker compute the answer again.
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
