"""The metrics of a worker, as its heartbeat carries them."""

from collections.abc import Callable, Mapping
from typing import cast

import pytest
from redis import Redis

from bergson_core.schemas.results import Progress
from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import expire_leases, read_record, read_replies, send_query, submit_job, wait_until
from worker.messages import Heartbeat
from worker.process.runner import Runner
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_keys import QUERY_LEASES
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def read_samples(metrics: WorkerMetrics | Heartbeat) -> Samples:
    """Returns each sample by its full name and its labels."""
    families = metrics.metrics if isinstance(metrics, Heartbeat) else metrics.collect(0, None)
    return {
        (family.name + suffix, tuple(sorted(labels.items()))): value
        for family in families
        for suffix, labels, value in family.samples
    }


def value_of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def wait_for_heartbeat(redis: Redis, enough: Callable[[Samples], bool]) -> Samples:
    """Returns the samples in the heartbeat of the only worker, once they are `enough`."""

    def read_heartbeat() -> Samples | None:
        for key in cast("list[str]", redis.keys("bergson:worker:*")):
            raw = cast("str | None", redis.get(key))
            samples = read_samples(Heartbeat.model_validate_json(raw)) if raw else {}
            if samples and enough(samples):
                return samples
        return None

    return wait_until(read_heartbeat)


def test_a_batch_is_measured_once_and_each_of_its_queries_counted(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Callable[[], Runner]
):
    publish_index(settings.indexes_dir / "facts")
    send_query(redis, "q-1", query=make_query("long text"))
    for name in ("q-2", "q-3"):
        send_query(redis, name)
    start_worker()
    samples = wait_for_heartbeat(  # the index is opened first, and the batch counted last
        redis,
        lambda samples: (
            value_of(samples, "bergson_resident_indexes")
            == value_of(samples, "bergson_search_seconds_count")
            == 1
        ),
    )
    assert value_of(samples, "bergson_queries_total", outcome="ok") == 2
    assert value_of(samples, "bergson_queries_total", outcome="too_long") == 1
    assert value_of(samples, "bergson_query_batch_size_count") == 1
    assert value_of(samples, "bergson_query_batch_size_sum") == 3
    assert value_of(samples, "bergson_gradient_seconds_sum") == pytest.approx(0.002)
    assert value_of(samples, "bergson_search_seconds_sum") == pytest.approx(0.001)
    assert (
        value_of(samples, "bergson_gradient_seconds_count")
        == value_of(samples, "bergson_search_seconds_count")
        == 1
    )
    assert value_of(samples, "bergson_query_tokens_total") == 2
    assert value_of(samples, "bergson_process_resident_memory_bytes") > 2**20


def test_a_job_is_counted_by_how_it_ended(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Callable[[], Runner]
):
    def fail(number: int) -> None:
        raise RuntimeError

    submit_job(redis, "j-1", "one")
    start_worker()
    wait_until(lambda: read_record(redis, "j-1").finished_at)
    core.during = fail
    submit_job(redis, "j-2", "two")
    samples = wait_for_heartbeat(
        redis, lambda samples: value_of(samples, "bergson_jobs_total", kind="build", state="failed") == 1
    )
    assert value_of(samples, "bergson_jobs_total", kind="build", state="succeeded") == 1
    assert value_of(samples, "bergson_reclaimed_total", work="job") == 0


def test_work_of_a_silent_worker_is_counted_as_reclaimed_and_in_the_end_as_given_up(
    redis: Redis, make_queue: Callable[[str], WorkerQueue], settings: Settings
):
    submit_job(redis)
    send_query(redis)
    workers = [make_queue(f"w-{k}") for k in range(4)]
    for queue in workers:
        queue.take_job()
        queue.queries.take()
        expire_leases(redis)
        expire_leases(redis, QUERY_LEASES)
    by_worker = [read_samples(queue.metrics) for queue in workers]
    assert [value_of(samples, "bergson_reclaimed_total", work="job") for samples in by_worker] == [0, 1, 1, 0]
    assert [value_of(samples, "bergson_given_up_total", work="job") for samples in by_worker] == [0, 0, 0, 1]
    assert [value_of(samples, "bergson_reclaimed_total", work="query") for samples in by_worker] == [
        0,
        1,
        0,
        0,
    ]
    assert [value_of(samples, "bergson_given_up_total", work="query") for samples in by_worker] == [
        0,
        0,
        1,
        0,
    ]
    assert (
        value_of(by_worker[2], "bergson_queries_total", outcome="internal") == len(read_replies(redis)) == 1
    )
    assert value_of(by_worker[3], "bergson_jobs_total", kind="build", state="failed") == 1


def test_a_job_that_was_handed_back_is_not_reclaimed(redis: Redis, make_queue: Callable[[str], WorkerQueue]):
    submit_job(redis)
    first, second = make_queue("w-1"), make_queue("w-2")
    claim = first.take_job()
    assert claim is not None
    first.hand_back(claim)
    assert second.take_job() is not None
    assert value_of(read_samples(second.metrics), "bergson_reclaimed_total", work="job") == 0


def test_the_rate_of_the_current_job_is_measured(
    redis: Redis, core: FakeCore, start_worker: Callable[[], Runner], monkeypatch: pytest.MonkeyPatch
):
    publish_progress = WorkerQueue.publish_progress
    monkeypatch.setattr(
        WorkerQueue,
        "publish_progress",
        lambda self, claim, progress: publish_progress(
            self, claim, Progress(**progress.model_dump() | {"tokens_per_s": 7.0})
        ),
    )
    core.total, core.batch_s = 100, 0.3
    submit_job(redis)
    runner = start_worker()
    wait_for_heartbeat(redis, lambda samples: value_of(samples, "bergson_job_tokens_per_second") == 7)
    runner.stop()


def test_a_heartbeat_carries_no_times_of_creation():
    assert not [name for name, _ in read_samples(WorkerMetrics()) if name.endswith("_created")]
