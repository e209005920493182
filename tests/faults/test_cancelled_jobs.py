"""Jobs that are cancelled at any moment: what they started has ended, and their name is free at once."""

import random
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bergson_core.errors import Cancelled, IndexNotFound
from service.client import Client
from tests.faults.support.invariants import hash_index, require_drained
from tests.faults.support.system import System, wait_for_end, wait_until
from tests.faults.support.worker_process import Fault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
StartSystem = Callable[..., System]

STAGES = ("start", "load", "read", "statistics", "gradients", "preconditioner", "search", "measure")
"""The stages of a build in which a request to cancel it still prevents its publication."""
SLOW: dict[str, Any] = {"gradients": {"projection_dim": 32}}
"""Changes of a build that make its preconditioner take seconds."""


def build_undisturbed(system: System, client: Client, **changes: Any) -> dict[str, str]:
    """Builds an index that nothing disturbs, and returns the hashes of its files."""
    job = client.build("undisturbed", **system.build_body(**changes))
    assert wait_for_end(client, job).state == "succeeded"
    return hash_index(system.data_dir / "indexes" / "undisturbed")


@pytest.mark.long
def test_a_build_cancelled_at_any_stage_is_gone_and_is_built_again_under_its_name(
    start_system: StartSystem,
):
    system = start_system(lease_s=20)
    system.start_web()
    # A request to cancel is noticed after the next report, so that `start` is not followed by another stage.
    stages = (*STAGES[1:] * 10, *STAGES[:1] * 10)
    texts = [{"id": str(k), "text": f"Person {k % 7} lives in city {k % 5}."} for k in range(40)]
    body = system.build_body(dataset=None, documents=texts, columns={"id": "id"})
    facts = system.data_dir / "indexes" / "facts"
    with system.client() as client:
        undisturbed = system.start_worker()
        assert wait_for_end(client, client.build("facts", **body)).state == "succeeded"
        expected = hash_index(facts)
        client.delete_index("facts")
        undisturbed.kill()
        worker = system.start_worker(*(Fault(stage, signal.SIGSTOP) for stage in stages))
        for stage in stages:
            job = client.build("facts", **body)
            wait_until(worker.is_frozen, f"the worker is in {stage}")
            client.cancel(job)
            worker.resume()
            assert wait_for_end(client, job).state == "cancelled", stage
            assert not facts.exists(), stage
            assert not list((system.data_dir / "uploads").glob("*")), stage
        assert wait_for_end(client, client.build("facts", **body)).state == "succeeded"
        assert hash_index(facts) == expected
    with system.connect_redis() as redis:
        require_drained(redis)


@pytest.mark.long
def test_a_build_cancelled_amid_a_long_decomposition_writes_nothing_into_the_next_one(
    start_system: StartSystem,
):
    system = start_system()
    system.start_web()
    system.start_worker()
    facts = system.data_dir / "indexes" / "facts"
    with system.client() as client:
        expected = build_undisturbed(system, client)
        for _ in range(10):
            job = client.build("facts", **system.build_body(**SLOW))
            wait_until(
                lambda job=job: client.job(job).progress.stage == "preconditioner", "matrices are decomposed"
            )
            client.cancel(job)
            assert wait_for_end(client, job).state == "cancelled"
            assert wait_for_end(client, client.build("facts", **system.build_body())).state == "succeeded"
            time.sleep(1)
            assert hash_index(facts) == expected
            client.delete_index("facts")


@pytest.mark.long
def test_builds_cancelled_at_random_moments_leave_nothing_behind(
    start_system: StartSystem, seeded: random.Random
):
    system = start_system()
    system.start_web()
    system.start_worker()
    with system.client() as client:
        started = time.monotonic()
        expected = build_undisturbed(system, client)
        duration_s = time.monotonic() - started
        for _ in range(30):
            job = client.build("facts", **system.build_body())
            time.sleep(seeded.uniform(0, 0.8 * duration_s))
            client.cancel(job)
            state = wait_for_end(client, job).state
            directory = system.data_dir / "indexes" / "facts"
            if state == "cancelled":
                assert not directory.exists()
            else:
                assert hash_index(directory) == expected
                client.delete_index("facts")
    with system.connect_redis() as redis:
        require_drained(redis)


@pytest.mark.long
def test_sigterm_at_any_stage_hands_a_build_back_that_goes_on_to_the_same_bytes(
    start_system: StartSystem,
):
    system = start_system()
    system.start_web()
    with system.client() as client:
        for stage in STAGES:
            worker = system.start_worker(Fault(stage, signal.SIGTERM))
            job = client.build(f"facts-{stage}", **system.build_body())
            worker.wait()
            record = client.job(job)
            assert (record.state, record.deliveries) == ("queued", 0), stage
        system.start_worker()
        for stage in STAGES:
            wait_until(
                lambda stage=stage: (
                    f"facts-{stage}" in {index.name for index in client.indexes() if index.rows}
                ),
                f"facts-{stage} is built",
            )
        expected = build_undisturbed(system, client)
    for stage in STAGES:
        assert hash_index(system.data_dir / "indexes" / f"facts-{stage}") == expected, stage


def find_scratch_directories(system: System) -> list[Path]:
    """Returns the temporary directories of the estimates of this system."""
    specs = Path(tempfile.gettempdir()).glob("bergson-scratch-*/spec.json")
    return [path.parent for path in specs if str(system.directory) in path.read_text()]


def test_the_trial_of_an_estimate_ends_with_its_job_and_with_its_worker(
    start_system: StartSystem, seeded: random.Random, long_form: bool
):
    system, ends = start_system(), ["cancel", "kill"]
    system.start_web()
    with system.client() as client, ThreadPoolExecutor(1) as thread:
        for end in ends if long_form else [seeded.choice(ends)]:
            worker = system.start_worker()
            estimate = thread.submit(client.estimate, timeout_s=300, **system.build_body())
            (trial,) = wait_until(
                lambda worker=worker: psutil.Process(worker.pid).children(), "the trial runs"
            )
            wait_until(lambda: find_scratch_directories(system), "the trial has a directory")
            (job,) = client.jobs("running")
            if end == "kill":
                worker.kill()
            client.cancel(job)
            wait_until(lambda trial=trial: not trial.is_running(), "the trial has ended")
            if end == "kill":
                worker = system.start_worker()
            wait_until(lambda: not find_scratch_directories(system), "the directory is removed")
            with pytest.raises(Cancelled):
                estimate.result()
            assert wait_for_end(client, job).state == "cancelled"
            worker.kill()


LEFTOVERS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "a lock": (".lock",),
    "half of a stamp": (".lock", ".building.json.0123.tmp"),
    "no stamp": ("shards/00000/gradients.bin", "statistics/done"),
    "a stamp that cannot be read": ("building.json",),
    "documents of a stream": (".documents.arrow.tmp",),
    "files of somebody else": ("notes.txt",),
}


@pytest.mark.long
def test_whatever_stands_under_a_name_can_be_built_over_or_deleted(start_system: StartSystem):
    system = start_system()
    system.start_web()
    system.start_worker()
    with system.client() as client:
        for number, files in enumerate(LEFTOVERS.values()):
            for name in (f"build-{number}", f"delete-{number}"):
                directory = system.data_dir / "indexes" / name
                directory.mkdir(parents=True)
                for file in files:
                    (directory / file).parent.mkdir(parents=True, exist_ok=True)
                    (directory / file).write_text("x")
            client.delete_index(f"delete-{number}")
            with pytest.raises(IndexNotFound):
                client.delete_index(f"delete-{number}")
            job = client.build(f"build-{number}", **system.build_body())
            record = wait_for_end(client, job)
            if "notes.txt" in files:  # no build removes them, but whoever asks for it
                assert record.error is not None and record.error.code == "index_exists"
                client.delete_index(f"build-{number}")
            else:
                assert record.state == "succeeded", record
