"""`GET /metrics`: what it counts, under which labels, and that it works without Redis."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import RedisUnavailable
from service.http.metrics import WebMetrics
from tests.service.fake_broker import NOW, WORKER, FakeBroker
from tests.service.helpers import make_key_header, require_problem, sample_value, scrape
from worker.messages import Heartbeat
from worker.telemetry.metrics import WorkerMetrics


def test_a_request_is_counted_by_the_template_of_its_route(client: TestClient) -> None:
    for name in ("a", "b", "c"):
        client.get(f"/index/{name}/documents/x/{name}")
    client.get("/index/facts")
    families = scrape(client)
    route = "/index/{name}/documents/{document_id}"
    assert sample_value(families, "bergson_http_requests_total", method="GET", route=route, status="404") == 3
    assert (
        sample_value(families, "bergson_http_request_duration_seconds_count", method="GET", route=route) == 3
    )
    assert (
        sample_value(
            families, "bergson_http_requests_total", method="GET", route="/index/{name}", status="200"
        )
        == 1
    )


def test_no_request_can_create_a_new_label(client: TestClient) -> None:
    for k in range(20):
        client.get(f"/nothing/{k}")
        client.get(f"/static/{k}")
        client.request(f"BREW{k}", "/workers")
        client.get("/index", headers={"Host": f"evil-{k}"})
    family = scrape(client)["bergson_http_requests"]
    assert {tuple(sample.labels.values()) for sample in family.samples} == {
        ("GET", "other", "404"),
        ("GET", "/static", "404"),
        ("other", "/workers", "405"),
        ("GET", "other", "400"),
    }


def test_the_load_of_the_queue_is_exported(client: TestClient) -> None:
    families = scrape(client)
    assert sample_value(families, "bergson_redis_up") == 1
    assert sample_value(families, "bergson_workers") == 1
    assert sample_value(families, "bergson_queue_queries") == 3
    assert sample_value(families, "bergson_queue_oldest_query_age_seconds") == 1.5
    assert sample_value(families, "bergson_queue_jobs", state="queued") == 2
    assert sample_value(families, "bergson_queue_jobs", state="running") == 1


def test_without_redis_the_metrics_of_the_process_are_still_exported(
    client: TestClient, broker: FakeBroker
) -> None:
    client.get("/livez")
    broker.error = RedisUnavailable("Redis does not answer")
    families = scrape(client)
    assert sample_value(families, "bergson_redis_up") == 0
    assert sample_value(families, "bergson_workers") is None
    assert (
        sample_value(families, "bergson_http_requests_total", method="GET", route="/livez", status="200") == 1
    )
    samples = [sample for family in families.values() for sample in family.samples]
    assert not [sample for sample in samples if "worker" in sample.labels]


def test_metrics_of_workers_have_their_ids_and_disappear_with_them(
    client: TestClient, broker: FakeBroker
) -> None:
    metrics = WorkerMetrics()
    metrics.jobs.labels("build", "succeeded").inc()
    other = WORKER.model_copy(
        update={"worker_id": 'w-"2"', "metrics": metrics.collect(resident=2, tokens_per_s=50.0)}
    )
    broker.heartbeats = [WORKER, other]
    families = scrape(client)
    assert sample_value(families, "bergson_resident_indexes", worker="w-1") == 1
    assert sample_value(families, "bergson_resident_indexes", worker='w-"2"') == 2
    assert sample_value(families, "bergson_jobs_total", kind="build", state="succeeded", worker='w-"2"') == 1
    assert sample_value(families, "bergson_query_batch_size_bucket", le="+Inf", worker="w-1") == 0
    broker.heartbeats = [WORKER]
    assert sample_value(scrape(client), "bergson_resident_indexes", worker='w-"2"') is None


def test_memory_and_time_of_every_process_are_exported(client: TestClient) -> None:
    families = scrape(client)
    for name in ("bergson_process_resident_memory_bytes", "bergson_process_cpu_seconds_total"):
        assert (sample_value(families, name) or 0) > 0, "this process"
        assert (sample_value(families, name, worker="w-1") or 0) > 0, "the worker"


def test_cache_look_ups_are_counted(app: FastAPI, client: TestClient) -> None:
    metrics: WebMetrics = app.state.metrics
    metrics.cache_requests.labels("hit").inc()
    families = scrape(client)
    assert sample_value(families, "bergson_cache_requests_total", outcome="hit") == 1
    assert sample_value(families, "bergson_cache_requests_total", outcome="miss") == 0


def test_metrics_need_a_key_and_one_that_sees_no_index_is_enough(client: TestClient, tmp_path: Path) -> None:
    headers = make_key_header(tmp_path, indexes=("-",))
    assert client.get("/index", headers=headers).json()["items"] == []
    require_problem(client.get("/metrics"), 401, "unauthorized")
    families = scrape(client, **headers)
    assert (
        sample_value(families, "bergson_http_requests_total", method="GET", route="other", status="401") == 1
    )


def test_the_list_of_workers_does_not_show_their_metrics(client: TestClient) -> None:
    assert WORKER.metrics
    (worker,) = client.get("/workers").json()["items"]
    assert "metrics" not in worker


@pytest.mark.parametrize("name", ["x_total", "bergson_a b", 'bergson_a{x="'])
def test_a_heartbeat_with_a_foreign_or_malformed_metric_name_is_refused(name: str) -> None:
    family = {"name": name, "kind": "gauge", "help": "", "samples": []}
    with pytest.raises(ValueError, match="name"):
        Heartbeat.model_validate(WORKER.model_dump() | {"started_at": NOW, "metrics": [family]})
