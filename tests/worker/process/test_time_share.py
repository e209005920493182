"""A worker's time between queries and jobs, by a clock that only the two of them move."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from bergson_core.schemas.results import Progress
from worker.process import time_share
from worker.process.time_share import MAX_DEBT_S, TimeShare

PATIENCE_S = 0.25


@dataclass
class Worker:
    """A worker with queries that take `query_s` each; they wait all the time unless `queries_wait` says otherwise."""

    job_share: float = 0.5
    query_s: float = 0.1
    queries_wait: bool = True
    now: float = 100.0
    query_time_s: float = 0.0
    job_time_s: float = 0.0
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        loop: Any = self
        self.time_share = TimeShare(loop, self.job_share, PATIENCE_S)

    def run_once(self, block_s: float) -> bool:
        if not self.queries_wait:
            self.now += block_s
            return False
        self.now += self.query_s
        self.query_time_s += self.query_s
        self.steps.append("query")
        return True

    def run_job(self, batches: int, batch_s: float, progresses: bool = True) -> None:
        """Runs a job, which starts as soon as it is its turn."""
        while self.time_share.answer_queries(PATIENCE_S) and not self.time_share.is_jobs_turn:
            pass
        self.time_share.resume_job()
        for number in range(batches):
            self.now += batch_s
            self.job_time_s += batch_s
            self.steps.append("batch")
            progress = Progress(stage="gradients", done=number if progresses else 0)
            self.time_share.yield_to_queries(progress, lambda: False)
        self.time_share.pause_job()

    @property
    def measured_share(self) -> float:
        return self.job_time_s / (self.job_time_s + self.query_time_s)


@pytest.fixture
def make_worker(monkeypatch: pytest.MonkeyPatch):
    def make(**fields: Any) -> Worker:
        worker = Worker(**fields)
        monkeypatch.setattr(time_share.time, "monotonic", lambda: worker.now)
        return worker

    return make


@pytest.mark.parametrize("job_share", [0.1, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(
    ("query_s", "batch_s"), [(0.01, 0.4), (0.1, 0.1), (0.5, 0.02), (2.0, 0.3), (0.3, 0.9)]
)
def test_a_job_gets_its_share_while_queries_wait_all_the_time(make_worker, job_share, query_s, batch_s):
    worker = make_worker(job_share=job_share, query_s=query_s)
    worker.run_job(round(400 / batch_s), batch_s)
    assert worker.measured_share == pytest.approx(job_share, abs=0.02)


def test_several_short_jobs_get_their_share_together(make_worker):
    worker = make_worker(job_share=0.25)
    for _ in range(200):
        worker.run_job(3, 0.2)
    assert worker.measured_share == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("busy_s", [0, 10, 10_000])
def test_a_job_that_waits_starts_soon_however_long_queries_have_been_answered_before(make_worker, busy_s):
    worker = make_worker()
    while worker.query_time_s < busy_s:
        worker.time_share.answer_queries(PATIENCE_S)
        if worker.time_share.is_jobs_turn:
            worker.time_share.forgive_job_debt()
    before_s = worker.query_time_s
    worker.run_job(1, 0)
    assert worker.query_time_s - before_s <= 2 * PATIENCE_S + worker.query_s


def test_time_before_a_job_was_there_is_not_held_against_queries(make_worker):
    worker = make_worker()
    for _ in range(1000):
        worker.time_share.answer_queries(PATIENCE_S)
    worker.time_share.forgive_job_debt()
    worker.steps.clear()
    worker.run_job(6, 0.3)
    longest_run = max(len(run) for run in "".join("b" if s == "batch" else " " for s in worker.steps).split())
    assert longest_run <= 2


def test_queries_save_nothing_up_while_none_waits(make_worker):
    worker = make_worker(queries_wait=False)
    worker.run_job(1000, 0.5)
    worker.queries_wait = True
    worker.steps.clear()
    worker.run_job(4, 0.5)
    assert worker.steps.count("query") <= 4 * 5 + 2 * PATIENCE_S / worker.query_s + 2


@pytest.mark.parametrize("job_share", [0.1, 0.5])
def test_one_long_step_of_a_job_does_not_keep_it_from_its_next_step_for_long(make_worker, job_share):
    worker = make_worker(job_share=job_share)
    worker.run_job(1, 3600)
    assert worker.query_time_s <= MAX_DEBT_S + 2 * PATIENCE_S + 2 * worker.query_s


def test_one_long_query_does_not_keep_others_from_being_answered_for_long(make_worker):
    worker = make_worker(query_s=3600)
    worker.time_share.answer_queries(PATIENCE_S)
    worker.query_s = 0.1
    worker.steps.clear()
    worker.run_job(50, 0.5)
    assert worker.steps[: round(MAX_DEBT_S / 0.5) + 3].count("query") > 0


def test_queries_are_answered_all_the_time_beside_a_step_in_a_thread_of_its_own(make_worker):
    worker = make_worker(job_share=0.9)
    worker.run_job(500, 0.02, progresses=False)
    assert worker.measured_share < 0.1


def test_a_worker_that_stops_does_not_answer_all_that_queries_are_owed(make_worker):
    worker = make_worker()
    worker.time_share.resume_job()
    worker.now += 5
    worker.time_share.yield_to_queries(
        Progress(stage="gradients", done=1), lambda: worker.query_time_s > 0.25
    )
    assert worker.query_time_s == pytest.approx(0.3)
