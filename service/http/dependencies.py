"""What views ask for by type: the broker, the settings, who asks, the request's id, parts of a page."""

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request, Response

from bergson_core.schemas.build import NAME_PATTERN
from service.auth.api_keys import Caller
from service.auth.authorization import KeyAuthenticator
from service.auth.rate_limits import RateLimiter
from service.http.metrics import WebMetrics
from service.http.problems import get_request_id
from service.http.query_handler import QueryHandler
from service.indexes.answer_cache import AnswerCache
from service.queue.broker import Broker
from service.schemas import JobAccepted
from service.settings import ServiceSettings
from worker.messages import JobRecord


def _broker(request: Request) -> Broker:
    return request.app.state.broker


def _settings(request: Request) -> ServiceSettings:
    return request.app.state.settings


def _caller(request: Request) -> Caller:
    return request.state.caller


def _keys(request: Request) -> KeyAuthenticator:
    return request.app.state.keys


def _metrics(request: Request) -> WebMetrics:
    return request.app.state.metrics


def _asking(request: Request) -> QueryHandler:
    state = request.app.state
    caller, request_id = request.state.caller, get_request_id(request)
    cache = AnswerCache(0) if "no-cache" in request.headers.get("Cache-Control", "") else state.cache
    return QueryHandler(state.broker, state.settings, cache, state.metrics, caller, request_id)


def _limits(request: Request) -> RateLimiter:
    return request.app.state.limits


QueryHandlerDep = Annotated[QueryHandler, Depends(_asking)]
RateLimiterDep = Annotated[RateLimiter, Depends(_limits)]
BrokerDep = Annotated[Broker, Depends(_broker)]
SettingsDep = Annotated[ServiceSettings, Depends(_settings)]
CallerDep = Annotated[Caller, Depends(_caller)]
AuthenticatorDep = Annotated[KeyAuthenticator, Depends(_keys)]
MetricsDep = Annotated[WebMetrics, Depends(_metrics)]
RequestIdDep = Annotated[str, Depends(get_request_id)]

IndexNamePath = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of the index.", examples=["facts"])]
_IdempotencyHeader = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="The same key with the same body gives the same job again: a retry does nothing twice.",
    ),
]


def _idempotency_key(caller: CallerDep, idempotency_key: _IdempotencyHeader = None) -> str | None:
    """Each caller's own: what two of them call the same is not the same."""
    return f"{caller.id}:{idempotency_key}" if idempotency_key and caller.id else idempotency_key


IdempotencyKeyDep = Annotated[str | None, Depends(_idempotency_key)]
PageLimitQuery = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]


def job_accepted(job: JobRecord, response: Response) -> JobAccepted:
    """The answer that a job is queued, with its place in the header `Location`."""
    response.headers["Location"] = f"/jobs/{job.job_id}"
    return JobAccepted(job_id=job.job_id, index=job.index or "", state=job.state)
