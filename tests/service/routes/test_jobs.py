"""Jobs can be listed, read, followed from any event on, and cancelled."""

import asyncio
import json
from collections.abc import AsyncIterator

import fastapi.routing
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import RedisUnavailable
from bergson_core.schemas.build import BuildSpec
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import require_problem, serve_app
from tests.worker.helpers import make_build_job


@pytest.fixture
def job_id(broker: FakeBroker, spec: BuildSpec) -> str:
    return asyncio.run(broker.submit(make_build_job("news", spec))).job_id


def parse_events(text: str) -> list[dict[str, str]]:
    """Returns the events of a stream; a comment is an event with the name ':'."""
    parsed = []
    for block in text.strip().split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n")]
        parsed.append({name or ":": value for name, _, value in lines})
    return parsed


def test_an_unknown_query_parameter_is_refused_and_the_known_ones_are_named(client: TestClient) -> None:
    problem = require_problem(client.get("/jobs?stat=running"), 422, "invalid_input")
    assert problem.detail == "query parameter 'stat': expected state or cursor or limit"
    assert client.get("/livez?surprise=1").status_code == 422
    assert client.get("/docs?theme=dark").status_code == 200


def test_a_job_shows_its_state_and_progress(client: TestClient, broker: FakeBroker, job_id: str) -> None:
    broker.advance(job_id, "running", stage="gradients", done=5, total=10)
    job = client.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["progress"]["done"], job["progress"]["total"]) == ("running", 5, 10)


@pytest.mark.parametrize("call", ["GET /jobs/none", "DELETE /jobs/none", "GET /jobs/none/events"])
def test_an_unknown_job_is_not_found(client: TestClient, call: str) -> None:
    require_problem(client.request(*call.split()), 404, "job_not_found")


@pytest.mark.parametrize("job_id", ["a%0a", "a" * 65, "a.b", "a%20b"])
def test_a_malformed_job_id_is_refused(client: TestClient, job_id: str) -> None:
    require_problem(client.get(f"/jobs/{job_id}"), 422, "invalid_input")


def test_jobs_are_listed_newest_first_in_pages_and_by_state(
    client: TestClient, broker: FakeBroker, job_id: str, spec: BuildSpec
) -> None:
    second = asyncio.run(broker.submit(make_build_job("more", spec))).job_id
    broker.advance(job_id, "running")
    page = client.get("/jobs?limit=1").json()
    assert [job["job_id"] for job in page["items"]] == [second]
    rest = client.get("/jobs", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert ([job["job_id"] for job in rest["items"]], rest["next_cursor"]) == ([job_id], None)
    assert [job["index"] for job in client.get("/jobs?state=running").json()["items"]] == ["news"]
    require_problem(client.get("/jobs?state=sleeping"), 422, "invalid_input")


def test_a_job_can_be_cancelled(client: TestClient, job_id: str) -> None:
    response = client.delete(f"/jobs/{job_id}")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    assert client.get(f"/jobs/{job_id}").json()["state"] == "cancelled"


def test_cancelling_a_job_that_has_ended_changes_nothing(
    client: TestClient, broker: FakeBroker, job_id: str
) -> None:
    broker.advance(job_id, "succeeded")
    assert client.delete(f"/jobs/{job_id}").json()["state"] == "succeeded"


def test_events_distinguish_states_from_progress_and_end_with_the_job(
    client: TestClient, broker: FakeBroker, job_id: str
) -> None:
    broker.advance(job_id, "running", done=1)
    broker.advance(job_id, "running", done=2)
    broker.advance(job_id, "succeeded")
    response = client.get(f"/jobs/{job_id}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    stream = parse_events(response.text)
    assert [event["event"] for event in stream] == ["state", "state", "progress", "state"]
    assert [event["id"] for event in stream] == ["1-0", "2-0", "3-0", "4-0"]
    assert [json.loads(event["data"])["progress"]["done"] for event in stream] == [0, 1, 2, 0]


def test_events_resume_after_the_last_one_that_was_received(
    client: TestClient, broker: FakeBroker, job_id: str
) -> None:
    broker.advance(job_id, "running", done=1)
    broker.advance(job_id, "succeeded")
    response = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "2-0"})
    assert [event["id"] for event in parse_events(response.text)] == ["3-0"]


@pytest.mark.parametrize("last", ["$", "x", "1-2-3", "9" * 30])
def test_a_malformed_last_event_id_is_refused(client: TestClient, job_id: str, last: str) -> None:
    response = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": last})
    require_problem(response, 422, "invalid_input")


def test_an_error_during_a_stream_is_its_last_event(
    client: TestClient, broker: FakeBroker, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_after_first_event(job_id: str, last_id: str) -> AsyncIterator[tuple[str, object]]:
        yield "1-0", broker.records[job_id]
        raise RedisUnavailable("Redis went away")

    monkeypatch.setattr(broker, "iter_events", fail_after_first_event)
    stream = parse_events(client.get(f"/jobs/{job_id}/events").text)
    assert [event["event"] for event in stream] == ["state", "problem"]
    assert json.loads(stream[-1]["data"])["code"] == "redis_unavailable"


def test_a_quiet_stream_is_kept_alive_by_comments(
    app: FastAPI, broker: FakeBroker, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.02)

    with serve_app(app) as address:
        url = f"{address}/jobs/{job_id}/events"
        with httpx.stream("GET", url, trust_env=False, timeout=60) as response:
            lines = response.iter_lines()
            assert ": ping" in lines  # reads up to it
            broker.advance(job_id, "succeeded")
            stream = parse_events("\n".join(lines))
    assert json.loads(stream[-1]["data"])["state"] == "succeeded"
