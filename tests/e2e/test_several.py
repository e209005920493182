"""Several web and worker processes of one system."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.client import Client
from tests.e2e.conftest import build_request
from tests.worker.helpers import until

pytestmark = pytest.mark.e2e


def test_web_processes_answer_for_each_other_and_the_system_outlives_one_of_each(start, sources):
    first, second = start(), start()  # on the same data, and so on the same Redis
    with Client(first.url) as one, Client(second.url) as other, ThreadPoolExecutor(8) as pool:
        job = one.build("facts", **build_request(sources))
        followed = [pool.submit(client.wait, job) for client in (one, other)]
        assert {record.result(60).state for record in followed} == {"succeeded"}
        workers = until(lambda: len(found := other.workers()) == 2 and found)

        asked = [
            pool.submit(client.attribute, "facts", "Person 3", " lives.") for client in (one, other) * 20
        ]
        assert len({one.result(60).results[0].id for one in asked}) == 1

        other.take_down("facts", gone := asked[0].result().results[0].id)
        assert gone not in {row.id for row in one.attribute("facts", "Person 3", " lives.").results}

        second.processes["web service"].terminate()
        os.kill(
            next(beat.pid for beat in workers if beat.pid == first.processes["worker 1"].pid), signal.SIGTERM
        )
        until(lambda: len(one.workers()) == 1)
        assert one.attribute("facts", "Person 4", " lives.").results
        assert second.processes["web service"].wait(30) == first.processes["worker 1"].wait(30) == 0
