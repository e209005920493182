"""How a web process stops: it finishes open requests, and is not ready meanwhile."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from bergson_core.schemas.build import BuildSpec
from service.client import Client
from tests.service.fake_broker import WORKER, make_answer, publish_manifest
from tests.service.helpers import PROCESS_TIMEOUT_S, start_service
from tests.worker.helpers import wait_until
from worker.messages import Reply
from worker.queue.embedded_redis import embedded_redis
from worker.queue.job_queue import WorkerQueue
from worker.queue.query_queue import QueryQueue
from worker.queue.redis_client import connect
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

pytestmark = pytest.mark.e2e


@pytest.fixture
def redis_url_with_worker(tmp_path: Path, spec: BuildSpec) -> Iterator[str]:
    """The URL of a Redis in which a worker seems to be alive for a minute; the index `facts` is published."""
    publish_manifest(tmp_path / "indexes", "facts", spec)
    with embedded_redis(tmp_path / "redis") as url, connect(url) as client:
        WorkerQueue(client, Settings(heartbeat_s=20), WORKER.worker_id).send_heartbeat(WORKER)
        yield url


def refuses_connections(address: str) -> bool:
    try:
        httpx.get(f"{address}/livez")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:  # connected, and reset or closed with the socket: the next one is refused
        return False
    return False


def test_an_open_query_is_answered_before_the_process_stops(
    tmp_path: Path, redis_url_with_worker: str
) -> None:
    with (
        start_service(tmp_path, REDIS_URL=redis_url_with_worker, BERGSON_SHUTDOWN_S="20") as (
            process,
            address,
        ),
        connect(redis_url_with_worker) as redis,
        ThreadPoolExecutor(1) as pool,
        Client(address, retry_s=0) as client,
    ):
        answer = pool.submit(client.attribute, "facts", "Ada was born in", " London")
        queries = QueryQueue(redis, Settings(), WorkerMetrics())
        (query,) = wait_until(queries.take)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses_connections(address))
        assert process.poll() is None and not answer.done()
        queries.send_replies(
            [(query, Reply(query_id=query.query_id, answer=make_answer(query.query, ["a"])))]
        )
        assert answer.result(PROCESS_TIMEOUT_S).results
        assert process.wait(PROCESS_TIMEOUT_S) == 0


def test_a_draining_process_still_answers_but_is_not_ready(
    tmp_path: Path, redis_url_with_worker: str
) -> None:
    with start_service(tmp_path, REDIS_URL=redis_url_with_worker, BERGSON_DRAIN_S="3") as (process, address):
        assert httpx.get(f"{address}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
        assert httpx.get(f"{address}/jobs").status_code == 200
        assert process.wait(PROCESS_TIMEOUT_S) == 0
        assert time.monotonic() - begun >= 2.9


def test_a_second_signal_stops_the_process_at_once(tmp_path: Path, redis_url_with_worker: str) -> None:
    with start_service(tmp_path, REDIS_URL=redis_url_with_worker, BERGSON_DRAIN_S="3600") as (
        process,
        address,
    ):
        assert httpx.get(f"{address}/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PROCESS_TIMEOUT_S) == 0
