"""Jobs: list them, read one, follow it, cancel it."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from bergson_core.errors import BergsonError
from service.http.dependencies import AuthenticatorDep, BrokerDep, CallerDep, PageLimitQuery, RequestIdDep
from service.http.problems import make_problem
from service.openapi import examples
from service.openapi.metadata import (
    EVENT_STREAM_RESPONSE,
    JOB_ID_ERROR,
    JOB_ID_PATTERN,
    problem_responses,
    success_response,
)
from service.queue.jobs import job_not_found
from service.schemas import JobPage
from worker.messages import JobRecord, JobState

router = APIRouter(prefix="/jobs", tags=["Jobs"])

JobIdPath = Annotated[
    str,
    Path(
        pattern=JOB_ID_PATTERN,
        description="Id of the job, which the call that queued it returned.",
        examples=[examples.JOB_ID],
    ),
]
StateQuery = Annotated[JobState | None, Query(description="Only jobs in this state.", examples=["running"])]
CursorQuery = Annotated[
    str | None,
    Query(
        pattern=JOB_ID_PATTERN, description="`next_cursor` of the previous page.", examples=[examples.JOB_ID]
    ),
]
LastEventIdHeader = Annotated[
    str,
    Header(
        alias="Last-Event-ID",
        pattern=r"^\d{1,20}(-\d{1,20})?$",
        description="Id of the last event that was received; the stream continues after it.",
    ),
]


@router.get(
    "",
    summary="List jobs",
    responses=success_response(200, "A page of jobs.", examples.JOB_PAGE)
    | problem_responses("invalid_input", "redis_unavailable"),
)
async def list_jobs(
    broker: BrokerDep,
    caller: CallerDep,
    state: StateQuery = None,
    cursor: CursorQuery = None,
    limit: PageLimitQuery = 50,
) -> JobPage:
    """Lists jobs, newest first."""
    items, next_cursor = await broker.list_jobs(state, cursor, limit, is_visible=caller.can_see)
    return JobPage(items=items, next_cursor=next_cursor)


@router.get(
    "/{job_id}",
    summary="Get a job",
    responses=success_response(200, "The job.", examples.JOB)
    | problem_responses("job_not_found", "invalid_input", "redis_unavailable", refused=JOB_ID_ERROR),
)
async def get_job(job_id: JobIdPath, broker: BrokerDep, caller: CallerDep) -> JobRecord:
    """Returns the state and progress of a job. Each stage of a build counts from 0; `error` says why a job failed."""
    job = await broker.read_job(job_id)
    if not caller.can_see(job.index):
        raise job_not_found(job_id)
    return job


JobDep = Annotated[JobRecord, Depends(get_job)]
"""The job of the path, provided that the caller may see it."""


@router.delete(
    "/{job_id}",
    status_code=202,
    summary="Cancel a job",
    responses=success_response(202, "The job as it is now.", examples.JOB_CANCELLED)
    | problem_responses("job_not_found", "invalid_input", "redis_unavailable", refused=JOB_ID_ERROR),
)
async def cancel_job(job: JobDep, broker: BrokerDep) -> JobRecord:
    """Asks for a job to stop. A queued job never starts; a running one stops after its current batch.

    An unfinished index is never published, and its name becomes free again. A job that has ended stays as it is.
    """
    return await broker.cancel(job.job_id)


async def _count_follower(broker: BrokerDep) -> AsyncIterator[None]:
    with broker.count_follower():
        yield


@router.get(
    "/{job_id}/events",
    dependencies=[Depends(_count_follower)],
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=EVENT_STREAM_RESPONSE
    | problem_responses(
        "job_not_found", "invalid_input", "queue_full", "redis_unavailable", refused=JOB_ID_ERROR
    ),
)
async def follow_job(
    job: JobDep,
    broker: BrokerDep,
    authenticator: AuthenticatorDep,
    caller: CallerDep,
    request_id: RequestIdDep,
    last_event_id: LastEventIdHeader = "0",
) -> AsyncIterator[ServerSentEvent]:
    """Follows a job as a stream of server-sent events, each of which holds the whole record of the job as JSON.

    An event is named `state` when the state has changed, and `progress` otherwise. The stream ends after a final
    state; comments keep the connection alive when there is no news. An error, such as a revoked API key, ends the
    stream with an event `problem`. With the header `Last-Event-ID` a stream resumes after that event.
    """
    previous_state = None
    try:
        async for event_id, record in broker.iter_events(job.job_id, last_event_id):
            authenticator.require_active(caller)
            yield ServerSentEvent(
                data=record, event="progress" if record.state == previous_state else "state", id=event_id
            )
            previous_state = record.state
    except BergsonError as error:
        yield ServerSentEvent(data=make_problem(error.code, str(error), request_id), event="problem")
