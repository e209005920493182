"""Workers that are stopped for longer than their lease, and go on later or never."""

import signal
import time
from collections.abc import Callable

import pytest

from service.client import Client
from tests.faults.support.invariants import hash_index, require_drained
from tests.faults.support.system import System, SystemProcess, wait_for_end, wait_until
from tests.faults.support.worker_process import STAGES, Fault
from worker.messages import FINAL_STATES, JobRecord

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
StartSystem = Callable[..., System]


def build_in_worker(
    client: Client, system: System, name: str, worker: SystemProcess, other: SystemProcess
) -> JobRecord:
    """Starts a build in `worker`, which freezes in it, and lets `other` find it."""
    other.freeze()
    job = client.build(name, **system.build_body())
    wait_until(worker.is_frozen, f"the worker that builds {name} is frozen")
    other.resume()
    return job


def wait_until_put_off(client: Client, job: JobRecord, worker: SystemProcess) -> None:
    """Waits until a job waits for the process of a worker, and makes sure that it stays so for some leases."""
    waits_for = wait_until(lambda: client.job(job).waits_for, "the job waits")
    assert f"process {worker.pid} on " in waits_for
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        record = client.job(job)
        assert (record.state, record.error) == ("queued", None)
        assert record.deliveries <= 1
        time.sleep(0.2)


@pytest.mark.long
def test_a_worker_frozen_at_any_stage_past_its_lease_fails_no_job(start_system: StartSystem):
    system = start_system(lease_s=1)
    system.start_web()
    frozen = system.start_worker(*(Fault(stage, signal.SIGSTOP) for stage in STAGES))
    jobs: list[JobRecord] = []
    with system.client() as client:
        other, freezes = system.start_worker(), 0
        while freezes < len(STAGES):
            other.freeze()
            jobs.append(client.build(f"facts-{len(jobs)}", **system.build_body()))
            wait_until(frozen.is_frozen, "the worker is frozen in the job")
            other.resume()
            # The worker may meet further faults in the same job, once it has handed this one back and taken it again.
            while not has_ended(client, jobs[-1]) or frozen.is_frozen():
                if frozen.is_frozen():
                    freezes += 1
                    # At some moments the worker does not hold the lock of the index, so that the other does the job.
                    wait_until(
                        lambda: client.job(jobs[-1]).waits_for or has_ended(client, jobs[-1]), "it is noticed"
                    )
                    if not has_ended(client, jobs[-1]):
                        wait_until_put_off(client, jobs[-1], frozen)
                    frozen.resume()
                time.sleep(0.05)
            record = client.job(jobs[-1])
            assert (record.state, record.error, record.waits_for) == ("succeeded", None, None)
        assert wait_for_end(client, client.build("undisturbed", **system.build_body())).state == "succeeded"
    expected = hash_index(system.data_dir / "indexes" / "undisturbed")
    for job in jobs:
        assert hash_index(system.data_dir / "indexes" / str(job.index)) == expected, job.index
    with system.connect_redis() as redis:
        require_drained(redis)


def has_ended(client: Client, job: JobRecord) -> bool:
    return client.job(job).state in FINAL_STATES


@pytest.mark.long
def test_a_job_whose_frozen_worker_never_comes_back_goes_on_once_that_is_killed(start_system: StartSystem):
    system = start_system(lease_s=1)
    system.start_web()
    frozen = system.start_worker(Fault("gradients", signal.SIGSTOP))
    with system.client() as client:
        other = system.start_worker()
        job = build_in_worker(client, system, "facts", frozen, other)
        wait_until_put_off(client, job, frozen)
        # Meanwhile other jobs are done.
        assert wait_for_end(client, client.build("undisturbed", **system.build_body())).state == "succeeded"
        frozen.kill()
        record = wait_for_end(client, job)
    assert (record.state, record.deliveries) == ("succeeded", 2)
    indexes = system.data_dir / "indexes"
    assert hash_index(indexes / "facts") == hash_index(indexes / "undisturbed")


@pytest.mark.long
def test_a_job_that_waits_for_a_frozen_worker_is_cancelled_and_its_name_built_again(
    start_system: StartSystem,
):
    system = start_system(lease_s=1)
    system.start_web()
    frozen = system.start_worker(Fault("preconditioner", signal.SIGSTOP))
    with system.client() as client:
        other = system.start_worker()
        job = build_in_worker(client, system, "facts", frozen, other)
        wait_until_put_off(client, job, frozen)
        client.cancel(job)
        assert wait_for_end(client, job).state == "cancelled"
        again = client.build("facts", **system.build_body(gradients={"projection_dim": 5}))
        wait_until_put_off(client, again, frozen)
        frozen.resume()
        assert wait_for_end(client, again).state == "succeeded"
        body = system.build_body(gradients={"projection_dim": 5})
        assert wait_for_end(client, client.build("undisturbed", **body)).state == "succeeded"
    indexes = system.data_dir / "indexes"
    assert hash_index(indexes / "facts") == hash_index(indexes / "undisturbed")
