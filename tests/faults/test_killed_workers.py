"""Workers that are killed in the middle of a build."""

import signal

import pytest

from tests.faults.support.invariants import hash_index, require_drained
from tests.faults.support.system import wait_for_end, wait_until
from tests.faults.support.worker_process import STAGES, Fault

pytestmark = pytest.mark.e2e


def test_a_worker_killed_at_any_stage_costs_nothing(start_system, record):
    system = start_system()
    system.start_web()
    with system.client() as client:
        for stage in STAGES:
            worker = system.start_worker(Fault(stage, signal.SIGKILL))
            job = client.build(f"killed-{stage}", **system.build_body())
            worker.wait()
            successor = system.start_worker()
            assert wait_for_end(client, job).state == "succeeded"
            assert client.index(f"killed-{stage}").rows == 40
            successor.kill()
        undisturbed = system.start_worker()
        wait_for_end(client, client.build("undisturbed", **system.build_body()))
        undisturbed.terminate()
        undisturbed.wait()
    expected = hash_index(system.data_dir / "indexes" / "undisturbed")
    for stage in STAGES:
        assert hash_index(system.data_dir / "indexes" / f"killed-{stage}") == expected, stage
    with system.connect_redis() as redis:
        require_drained(redis)
    record(promise="a job survives the kill of its worker", runs=len(STAGES), kills=len(STAGES))
    wait_until(lambda: not undisturbed.is_alive(), "the worker ends")
