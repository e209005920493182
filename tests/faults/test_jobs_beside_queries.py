"""Jobs, verifications and queries on one worker: none of them starves another, however steady the load."""

import time

import pytest

from tests.faults.support.invariants import hash_index, require_drained
from tests.faults.support.steady_queries import steady_queries
from tests.faults.support.system import wait_for_end, wait_until

pytestmark = pytest.mark.e2e


def test_jobs_verifications_and_queries_all_get_on_while_each_comes_without_end(start_system, long_form):
    system = start_system(cache_bytes=0)
    url = system.start_web()
    system.start_worker()
    verify = {"top": 2, "controls": 2}
    with system.client() as client:
        assert wait_for_end(client, client.build("facts", **system.build_body())).state == "succeeded"
        with (
            steady_queries(url, "facts", 8 if long_form else 4) as queries,
            steady_queries(url, "facts", 2 if long_form else 1, 120, verify=verify) as verified,
        ):
            wait_until(lambda: len(queries.answered) > 20, "queries are answered")
            started = time.monotonic()
            for number in range(20 if long_form else 1):
                job = wait_for_end(client, client.build(f"beside-{number}", **system.build_body()))
                assert job.state == "succeeded", job.error
                assert job.started_at - job.created_at < 10
            assert queries.between(started, time.monotonic())
            counts = len(queries.answered), len(verified.answered)
            wait_until(lambda: len(queries.answered) > counts[0] + 20, "queries are answered")
            wait_until(lambda: len(verified.answered) > counts[1], "verifications are answered")
        assert queries.errors == verified.errors == []
    directory = system.data_dir / "indexes"
    assert hash_index(directory / "beside-0") == hash_index(directory / "facts")
    with system.connect_redis() as redis:
        require_drained(redis)
