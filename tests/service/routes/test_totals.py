"""`POST /index/{name}/totals` has a worker sum the scores of all documents by a metadata column."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import BehaviourNotFound, BergsonError, DeadlineExceeded, IndexBusy, NoWorker
from bergson_core.schemas.filters import Range
from bergson_core.schemas.totals.spec import TotalsSpec
from service.client import Client
from service.openapi import totals_examples
from service.schemas import TotalsResponse
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header, require_problem, serve_app

PATH = "/index/facts/totals"
BODY = totals_examples.TOTALS_REQUEST


@pytest.mark.parametrize("body", [BODY, totals_examples.TOTALS_CONTRAST, totals_examples.TOTALS_BEHAVIOUR])
def test_the_documented_bodies_are_answered(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post(PATH, json=body, headers={"X-Request-ID": "mine"})
    assert response.status_code == 200
    totals = TotalsResponse.model_validate_json(response.text)
    assert (totals.request_id, totals.index, totals.by) == ("mine", "facts", "source")
    assert [group.value for group in totals.groups] == ["wiki", None, "forum"]


def test_the_question_reaches_the_worker_with_the_index_of_the_path(
    client: TestClient, broker: FakeBroker
) -> None:
    body = totals_examples.TOTALS_CONTRAST | {"top": 7, "timeout_s": 2.5, "partial": True}
    assert client.post(PATH, json=body, headers={"X-Request-ID": "mine"}).status_code == 200
    ((query, request_id, timeout_s),) = broker.queries
    assert (query.index, query.completion, query.instead_of) == ("facts", " London", " Paris")
    assert query.filter == {"year": Range(gte=1990)}
    assert (query.top_k, query.include, query.partial) == (1, (), True)
    assert (request_id, timeout_s) == ("mine", 2.5)
    assert broker.totals_specs == [TotalsSpec(by="source", top=7, threshold=2.0)]
    assert broker.lanes_and_priorities == [("", "interactive")]


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"by": None}, "by"),
        ({"by": ""}, "by"),
        ({"by": 3}, "by"),
        ({"top": 0}, "top"),
        ({"top": 101}, "top"),
        ({"top": "10"}, "top"),
        ({"threshold": -0.5}, "threshold"),
        ({"threshold": 101}, "threshold"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"prompt": None}, "prompt"),
        ({"completion": ""}, "completion"),
        ({"instead_of": " London"}, "instead_of"),
        ({"behaviour": "refusals"}, "prompt"),
        ({"instead_of_behaviour": "refusals"}, "instead_of_behaviour"),
        ({"span": [5, 99]}, "span"),
        ({"filter": {}}, "filter"),
        ({"index": "facts"}, "index"),
        ({"top_k": 10}, "top_k"),
        ({"direction": "both"}, "direction"),
        ({"verify": {}}, "verify"),
        ({"group_by": "source"}, "group_by"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_refused_by_its_name(
    client: TestClient, broker: FakeBroker, change: dict[str, Any], loc: str
) -> None:
    problem = require_problem(client.post(PATH, json=BODY | change), 422, "invalid_input")
    assert [error.loc for error in problem.errors or []] == [["body", loc]]
    assert not broker.queries


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeadlineExceeded("no answer within 30 s"), 504),
        (NoWorker("no worker is alive"), 503),
        (IndexBusy("it is being built"), 409),
        (BehaviourNotFound("there is none"), 404),
    ],
)
def test_what_the_worker_met_is_a_problem(
    client: TestClient, broker: FakeBroker, error: BergsonError, status: int
) -> None:
    broker.error = error
    require_problem(client.post(PATH, json=BODY), status, error.code)


def test_a_timeout_beyond_the_settings_is_refused(client: TestClient, broker: FakeBroker) -> None:
    assert (
        "timeout_s"
        in require_problem(client.post(PATH, json=BODY | {"timeout_s": 300.5}), 422, "invalid_input").detail
    )
    client.post(PATH, json=BODY)
    assert [timeout_s for *_, timeout_s in broker.queries] == [30]


def test_a_key_that_sees_no_text_may_not_ask(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    header = make_key_header(settings.data_dir, text=False)
    problem = require_problem(client.post(PATH, json=BODY, headers=header), 403, "forbidden")
    assert "this key sees no metadata" in problem.detail
    assert not broker.queries


def test_an_index_that_a_key_may_not_see_does_not_exist(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    header = make_key_header(settings.data_dir, indexes=["other"])
    require_problem(client.post(PATH, json=BODY, headers=header), 404, "index_not_found")
    assert not broker.queries


def test_they_count_as_ten_calls(client: TestClient, settings: ServiceSettings) -> None:
    header = make_key_header(settings.data_dir, rate="19/minute")
    assert client.post(PATH, json=BODY, headers=header).status_code == 200
    require_problem(client.post(PATH, json=BODY, headers=header), 429, "rate_limited")
    slow = make_key_header(settings.data_dir, name="bob", rate="9/minute")
    assert (
        "totals as ten"
        in require_problem(client.post(PATH, json=BODY, headers=slow), 422, "invalid_input").detail
    )


def test_the_client_asks_for_a_completion_and_for_a_behaviour(app: FastAPI, broker: FakeBroker) -> None:
    with serve_app(app) as url, Client(url, retry_s=0) as client:
        totals = client.totals("facts", "Ada was born in", " London", by="source", top=5, timeout_s=7)
        assert totals.groups[0].interval == (3.1, 4.7)
        assert client.totals("facts", behaviour="refusals", by="source").by == "source"
    (query, _, timeout_s), (other, *_) = broker.queries
    assert (query.prompt, query.completion, timeout_s) == ("Ada was born in", " London", 7)
    assert (other.behaviour, other.prompt) == ("refusals", None)
    assert [spec.top for spec in broker.totals_specs] == [5, 20]
