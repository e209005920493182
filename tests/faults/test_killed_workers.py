"""Jobs of every kind whose worker is killed, frozen, stopped or told to cancel, at each of their moments.

All moments of a kind are tried at the same time, each by a job on an index of its own, and a crew of workers works on
them. In the short form some of the moments are drawn.
"""

import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from random import Random

import pytest

from tests.faults.support.crew import Crew
from tests.faults.support.invariants import require_drained, require_no_leftovers, require_one_end
from tests.faults.support.system import System, wait_until
from tests.faults.support.worker_process import HOLD, MOMENTS, Fault, plan_fault
from tests.faults.support.workload import BASE, PATIENCE_S, Workload
from worker.messages import JobRecord

pytestmark = pytest.mark.e2e

LEASE_S = 0.6
KINDS = tuple(kind for kind in MOMENTS if kind != "estimate")


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]) -> Iterator[Workload]:
    """A system with what undisturbed jobs of all kinds leave."""
    directory = tmp_path_factory.mktemp("killed")
    with System(directory, require("redis-server"), lease_s=LEASE_S, max_deliveries=20) as system:
        system.start_web()
        with system.client() as client:
            workload = Workload(system, client)
            with Crew(system, 1) as crew:
                crew.run([workload.build_base])
                crew.run([partial(workload.expect, kind) for kind in KINDS])
            yield workload


@pytest.fixture
def choose_moments(long_form: bool, seeded: Random) -> Callable[[Sequence[str]], list[str]]:
    """Returns all of some moments, or in the short form one of them."""

    def choose(moments: Sequence[str]) -> list[str]:
        return list(moments) if long_form else [seeded.choice(moments)]

    return choose


def test_the_table_has_the_moments_that_an_undisturbed_job_reaches(workload):
    reached: dict[str, dict[str, None]] = defaultdict(dict)
    for line in (workload.system.plan / "reached").read_text().splitlines():
        _, name, moment = line.split()
        reached[name][moment] = None
    for kind in KINDS:
        assert tuple(reached[f"undisturbed-{kind}"]) == MOMENTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_whose_worker_is_killed_leaves_what_an_undisturbed_job_leaves(
    workload, kind, choose_moments, record
):
    moments = choose_moments(MOMENTS[kind])
    with Crew(workload.system, 2) as crew:
        disturb_jobs(workload, crew, kind, moments, signal.SIGKILL)
    record(promise="a job survives the death of its worker", runs=len(moments), kills=len(moments))


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_frozen_past_its_lease_publishes_nothing_over_its_successor(
    workload, kind, choose_moments, record
):
    moments = choose_moments(MOMENTS[kind])
    with Crew(workload.system, 2, freeze_s=2.5 * LEASE_S) as crew:
        disturb_jobs(workload, crew, kind, moments, signal.SIGSTOP)
    require_published_by_latest_worker(
        workload.system, [f"{kind}-{moment}-{signal.SIGSTOP:d}" for moment in moments]
    )
    record(promise="a frozen worker changes nothing any more", runs=len(moments), kills=len(moments))


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_stopped_hands_its_job_to_another_without_waiting_for_the_lease(
    workload, kind, choose_moments, record
):
    moments = choose_moments(MOMENTS[kind])
    # A job that waited for its lease would not end before the test gives up.
    with Crew(workload.system, 2, lease_s=600) as crew:
        records = disturb_jobs(workload, crew, kind, moments, signal.SIGTERM)
    assert {ended.deliveries for ended in records} == {1}
    record(promise="a stopped worker hands its job on at once", runs=len(moments), kills=len(moments))


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_is_cancelled_leaves_nothing_and_can_be_made_again(workload, kind, choose_moments, record):
    moments = choose_moments(MOMENTS[kind])
    with Crew(workload.system, 2) as crew:
        crew.run([partial(cancel_and_repeat, workload, kind, moment) for moment in moments])
        require_quiet(workload, crew)
    record(promise="a cancelled job leaves nothing", runs=len(moments), kills=len(moments))


@pytest.mark.long
def test_an_estimate_whose_workers_are_killed_is_made_by_the_next_one_and_leaves_nothing(workload, record):
    # The trial build of an estimate imports torch again, each time.
    system, moments = workload.system, MOMENTS["estimate"]
    planned = [plan_fault(system.plan, "estimate", Fault(moment)) for moment in moments]
    with Crew(system, 1) as crew:
        (estimate,) = crew.run([workload.estimate], timeout_s=600)
        require_quiet(workload, crew)
    record(promise="a job survives the death of its worker", runs=1, kills=len(moments))
    assert estimate.documents == 40
    assert not any(path.exists() for path in planned)
    assert [*(system.directory / "tmp").iterdir()] == []


def disturb_jobs(
    workload: Workload, crew: Crew, kind: str, moments: Sequence[str], number: int
) -> list[JobRecord]:
    """Lets the worker of one job for each moment meet a signal there; returns the records of the ended jobs.

    Fails unless each of them has succeeded once, and has left what an undisturbed job leaves.
    """
    system, names = workload.system, [f"{kind}-{moment}-{number:d}" for moment in moments]
    planned = [
        plan_fault(system.plan, name, Fault(moment, number))
        for name, moment in zip(names, moments, strict=True)
    ]
    jobs: list[JobRecord] = []

    def run(name: str) -> None:
        jobs.append(workload.wait(workload.submit(kind, name)))
        assert workload.hash(name) == workload.expect(kind), name

    crew.run([partial(run, name) for name in names])
    wait_until(lambda: not any(path.exists() for path in planned), "all faults have happened")
    require_quiet(workload, crew)
    for name in names:  # once more, since a worker that was resumed may have gone on meanwhile
        assert workload.hash(name) == workload.expect(kind), name
    with system.connect_redis() as redis:
        return [require_one_end(redis, job.job_id) for job in jobs]


def cancel_and_repeat(workload: Workload, kind: str, moment: str) -> None:
    """Cancels a job at a moment; unless it is published all the same, it leaves nothing, and is then made again."""
    client, name = workload.client, f"{kind}-{moment}-cancelled"
    plan_fault(workload.system.plan, name, Fault(moment, HOLD))
    held = workload.system.plan / f"{name}.held"
    job = workload.submit(kind, name)
    wait_until(held.exists, f"the job of {name} gets there", PATIENCE_S)
    client.cancel(job)
    held.unlink()
    ended = workload.wait(job)
    # Nothing is reported between the flush and the publication, so that it is too late then.
    if MOMENTS[kind].index(moment) < MOMENTS[kind].index("flush"):
        assert ended.state == "cancelled", name
        assert workload.hash(name) == ({} if kind in ("build", "inline") else workload.hash(BASE)), name
        job = workload.submit(kind, name)
        ended = workload.wait(job)
    assert ended.state == "succeeded", (name, ended)
    assert workload.hash(name) == workload.expect(kind), name


def require_quiet(workload: Workload, crew: Crew) -> None:
    """Ends the crew once nothing waits any more, and fails if something is left behind."""
    with workload.system.connect_redis() as redis:
        require_drained(redis, 2 * PATIENCE_S)
    crew.finish()
    require_no_leftovers(workload.system.data_dir)


def require_published_by_latest_worker(system: System, names: Collection[str]) -> None:
    """Fails if an index was published by another worker than the one that had taken its job last."""
    latest: dict[str, str] = {}
    for line in (system.plan / "reached").read_text().splitlines():
        pid, name, moment = line.split()
        if moment == "take":
            latest[name] = pid
        assert moment != "tidy" or name not in names or latest[name] == pid, name
