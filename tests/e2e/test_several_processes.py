"""Several web processes and workers form one system."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.client import Client
from tests.e2e.helpers import build_request
from tests.worker.helpers import wait_until

pytestmark = pytest.mark.e2e


def test_web_processes_answer_for_each_other_and_the_system_survives_the_end_of_one_of_each_kind(
    start_service, sources, monkeypatch
):
    first = start_service()
    monkeypatch.setenv("REDIS_URL", first.redis_url)
    second = start_service()
    with Client(first.url) as client, Client(second.url) as other_client, ThreadPoolExecutor(8) as pool:
        job = client.build("facts", **build_request(sources))
        waiting = [pool.submit(waiter.wait, job) for waiter in (client, other_client)]
        assert {future.result(60).state for future in waiting} == {"succeeded"}
        workers = wait_until(lambda: len(alive := other_client.workers()) == 2 and alive)

        answers = [
            pool.submit(asker.attribute, "facts", "Person 3", " lives.")
            for asker in (client, other_client) * 20
        ]
        assert len({future.result(60).results[0].id for future in answers}) == 1

        top_id = answers[0].result().results[0].id
        other_client.take_down("facts", top_id)
        assert top_id not in {row.id for row in client.attribute("facts", "Person 3", " lives.").results}

        second.processes["web service"].terminate()
        own_worker = first.processes["worker 1"]
        os.kill(next(worker.pid for worker in workers if worker.pid == own_worker.pid), signal.SIGTERM)
        wait_until(lambda: len(client.workers()) == 1)
        assert client.attribute("facts", "Person 4", " lives.").results
        assert second.processes["web service"].wait(30) == own_worker.wait(30) == 0
