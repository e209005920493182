"""What views ask for by type: the broker, the settings, the request's id, parts of a page."""

from typing import Annotated

from fastapi import Depends, Query, Request

from service.broker import Broker
from service.problems import request_id_of
from service.settings import ServiceSettings


def _broker(request: Request) -> Broker:
    return request.app.state.broker


def _settings(request: Request) -> ServiceSettings:
    return request.app.state.settings


BrokerDep = Annotated[Broker, Depends(_broker)]
SettingsDep = Annotated[ServiceSettings, Depends(_settings)]
RequestIdDep = Annotated[str, Depends(request_id_of)]

LimitQuery = Annotated[int, Query(ge=1, le=200, description="Items on a page.")]
