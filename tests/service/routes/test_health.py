"""/livez checks only the process; /readyz checks Redis and the workers as well."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import RedisUnavailable
from tests.service.fake_broker import WORKER, FakeBroker
from tests.service.helpers import require_problem


def test_the_process_is_live_even_without_redis(client: TestClient, broker: FakeBroker) -> None:
    broker.error = RedisUnavailable("Redis does not answer")
    assert client.get("/livez").json() == {"status": "ok"}


def test_the_service_is_ready_with_redis_and_a_worker(client: TestClient) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "workers": 1}


def test_the_service_is_not_ready_without_redis(client: TestClient, broker: FakeBroker) -> None:
    broker.error = RedisUnavailable("Redis does not answer")
    require_problem(client.get("/readyz"), 503, "redis_unavailable")


def test_the_service_is_not_ready_without_a_worker(client: TestClient, broker: FakeBroker) -> None:
    broker.heartbeats = []
    require_problem(client.get("/readyz"), 503, "no_worker")


def test_a_stopping_process_is_not_ready_but_still_answers(app: FastAPI, client: TestClient) -> None:
    app.state.stopping = True
    require_problem(client.get("/readyz"), 503, "unavailable")
    assert client.get("/livez").status_code == client.get("/index").status_code == 200


def test_workers_are_listed_as_they_report(client: TestClient) -> None:
    assert client.get("/workers").json() == {"items": [WORKER.model_dump(exclude={"metrics"})]}
