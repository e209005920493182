"""What views ask for by type: the broker, the settings, the request's id, parts of a page."""

from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request, Response

from bergson_core.specs import NAME_PATTERN
from service.broker import Broker
from service.problems import request_id_of
from service.schemas import JobAccepted
from service.settings import ServiceSettings
from worker.messages import JobRecord


def _broker(request: Request) -> Broker:
    return request.app.state.broker


def _settings(request: Request) -> ServiceSettings:
    return request.app.state.settings


BrokerDep = Annotated[Broker, Depends(_broker)]
SettingsDep = Annotated[ServiceSettings, Depends(_settings)]
RequestIdDep = Annotated[str, Depends(request_id_of)]

NamePath = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of the index.", examples=["facts"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="The same key with the same body gives the same job again: a retry does nothing twice.",
    ),
]
LimitQuery = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]


def accepted(job: JobRecord, response: Response) -> JobAccepted:
    """The answer that a job is queued, with its place in the header `Location`."""
    response.headers["Location"] = f"/jobs/{job.job_id}"
    return JobAccepted(job_id=job.job_id, index=job.index or "", state=job.state)
