"""`GET /metrics`: what is counted, under which labels, and that it answers whatever else does not."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import RedisUnavailable
from service.http.metrics import WebMetrics
from tests.service.fake_broker import NOW, WORKER, FakeBroker
from tests.service.helpers import create_key, require_problem, sample_value, scrape
from worker.messages import Heartbeat
from worker.telemetry.metrics import WorkerMetrics


def test_a_request_is_counted_by_the_template_of_its_route(client: TestClient) -> None:
    for name in ("a", "b", "c"):
        client.get(f"/index/{name}/documents/x/{name}")
    client.get("/index/facts")
    found = scrape(client)
    route = "/index/{name}/documents/{document_id}"
    assert sample_value(found, "bergson_http_requests_total", method="GET", route=route, status="404") == 3
    assert sample_value(found, "bergson_http_request_duration_seconds_count", method="GET", route=route) == 3
    assert (
        sample_value(found, "bergson_http_requests_total", method="GET", route="/index/{name}", status="200")
        == 1
    )


def test_no_caller_can_make_a_new_label(client: TestClient) -> None:
    for k in range(20):
        client.get(f"/nothing/{k}")
        client.get(f"/static/{k}")
        client.request(f"BREW{k}", "/workers")
        client.get("/livez", headers={"Host": f"evil-{k}"})
    found = scrape(client)["bergson_http_requests"]
    assert {tuple(one.labels.values()) for one in found.samples} == {
        ("GET", "other", "404"),
        ("GET", "/static", "404"),
        ("other", "/workers", "405"),
        ("GET", "other", "400"),
    }


def test_the_load_of_the_queue_is_told(client: TestClient) -> None:
    found = scrape(client)
    assert sample_value(found, "bergson_redis_up") == 1
    assert sample_value(found, "bergson_workers") == 1
    assert sample_value(found, "bergson_queue_queries") == 3
    assert sample_value(found, "bergson_queue_oldest_query_age_seconds") == 1.5
    assert sample_value(found, "bergson_queue_jobs", state="queued") == 2
    assert sample_value(found, "bergson_queue_jobs", state="running") == 1


def test_without_redis_it_says_so_and_tells_what_it_has_itself(
    client: TestClient, broker: FakeBroker
) -> None:
    client.get("/livez")
    broker.error = RedisUnavailable("Redis does not answer")
    found = scrape(client)
    assert sample_value(found, "bergson_redis_up") == 0
    assert sample_value(found, "bergson_workers") is None
    assert sample_value(found, "bergson_http_requests_total", method="GET", route="/livez", status="200") == 1
    assert not [one for family in found.values() for one in family.samples if "worker" in one.labels]


def test_what_the_workers_sent_bears_their_names_and_goes_with_them(
    client: TestClient, broker: FakeBroker
) -> None:
    counted = WorkerMetrics()
    counted.jobs.labels("build", "succeeded").inc()
    other = WORKER.model_copy(
        update={"worker_id": 'w-"2"', "metrics": counted.collect(resident=2, tokens_per_s=50.0)}
    )
    broker.heartbeats = [WORKER, other]
    found = scrape(client)
    assert sample_value(found, "bergson_resident_indexes", worker="w-1") == 1
    assert sample_value(found, "bergson_resident_indexes", worker='w-"2"') == 2
    assert sample_value(found, "bergson_jobs_total", kind="build", state="succeeded", worker='w-"2"') == 1
    assert sample_value(found, "bergson_query_batch_size_bucket", le="+Inf", worker="w-1") == 0
    broker.heartbeats = [WORKER]
    assert sample_value(scrape(client), "bergson_resident_indexes", worker='w-"2"') is None


def test_memory_and_time_of_every_process_are_told(client: TestClient) -> None:
    found = scrape(client)
    for name in ("bergson_process_resident_memory_bytes", "bergson_process_cpu_seconds_total"):
        assert (sample_value(found, name) or 0) > 0, "this process"
        assert (sample_value(found, name, worker="w-1") or 0) > 0, "the worker"


def test_the_cache_is_counted(app: FastAPI, client: TestClient) -> None:
    metrics: WebMetrics = app.state.metrics
    metrics.cache_requests.labels("hit").inc()
    found = scrape(client)
    assert sample_value(found, "bergson_cache_requests_total", outcome="hit") == 1
    assert sample_value(found, "bergson_cache_requests_total", outcome="miss") == 0


def test_it_asks_for_a_key_like_everything_else_one_that_sees_no_index_is_enough(
    client: TestClient, tmp_path: Path
) -> None:
    headers = create_key(tmp_path, indexes=("-",))
    assert client.get("/index", headers=headers).json()["items"] == []
    require_problem(client.get("/metrics"), 401, "unauthorized")
    found = scrape(client, **headers)
    assert sample_value(found, "bergson_http_requests_total", method="GET", route="other", status="401") == 1


def test_the_list_of_workers_is_without_their_numbers(client: TestClient) -> None:
    assert WORKER.metrics
    (shown,) = client.get("/workers").json()["items"]
    assert "metrics" not in shown


@pytest.mark.parametrize("name", ["x_total", "bergson_a b", 'bergson_a{x="'])
def test_a_heartbeat_with_a_name_that_is_not_ours_is_refused(name: str) -> None:
    family = {"name": name, "kind": "gauge", "help": "", "samples": []}
    with pytest.raises(ValueError, match="name"):
        Heartbeat.model_validate(WORKER.model_dump() | {"started_at": NOW, "metrics": [family]})
