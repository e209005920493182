"""What a worker counts, as it stands in its heartbeat."""

from collections.abc import Callable, Mapping
from typing import cast

import pytest
from redis import Redis

from bergson_core.schemas.results import Progress
from tests.worker.fakes import FakeCore, publish, question
from tests.worker.helpers import let_lapse, record_of, replies, send, submit, until
from worker.messages import Heartbeat
from worker.process.runner import Runner
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_keys import QUERY_LEASES
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

Numbers = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def numbers(metrics: WorkerMetrics | Heartbeat) -> Numbers:
    """Each sample by its whole name and its labels."""
    families = metrics.metrics if isinstance(metrics, Heartbeat) else metrics.collect(0, None)
    return {
        (family.name + suffix, tuple(sorted(labels.items()))): value
        for family in families
        for suffix, labels, value in family.samples
    }


def of(found: Numbers, name: str, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


def beaten(redis: Redis, enough: Callable[[Numbers], bool]) -> Numbers:
    """The numbers in the heartbeat of the only worker, once they are `enough`."""

    def look() -> Numbers | None:
        for key in cast("list[str]", redis.keys("bergson:worker:*")):
            raw = cast("str | None", redis.get(key))
            found = numbers(Heartbeat.model_validate_json(raw)) if raw else {}
            if found and enough(found):
                return found
        return None

    return until(look)


def test_a_batch_is_measured_once_and_each_of_its_queries_counted(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Callable[[], Runner]
):
    publish(settings.indexes_dir / "facts")
    send(redis, "q-1", query=question("long text"))
    for name in ("q-2", "q-3"):
        send(redis, name)
    start_worker()
    found = beaten(  # looked at first, and counted last
        redis,
        lambda found: of(found, "bergson_resident_indexes") == of(found, "bergson_search_seconds_count") == 1,
    )
    assert of(found, "bergson_queries_total", outcome="ok") == 2
    assert of(found, "bergson_queries_total", outcome="too_long") == 1
    assert of(found, "bergson_query_batch_size_count") == 1
    assert of(found, "bergson_query_batch_size_sum") == 3
    assert of(found, "bergson_gradient_seconds_sum") == pytest.approx(0.002)
    assert of(found, "bergson_search_seconds_sum") == pytest.approx(0.001)
    assert of(found, "bergson_gradient_seconds_count") == of(found, "bergson_search_seconds_count") == 1
    assert of(found, "bergson_query_tokens_total") == 2
    assert of(found, "bergson_process_resident_memory_bytes") > 2**20


def test_a_job_is_counted_by_how_it_ended(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Callable[[], Runner]
):
    def fail(number: int) -> None:
        raise RuntimeError

    submit(redis, "j-1", "one")
    start_worker()
    until(lambda: record_of(redis, "j-1").finished_at)
    core.during = fail
    submit(redis, "j-2", "two")
    found = beaten(redis, lambda found: of(found, "bergson_jobs_total", kind="build", state="failed") == 1)
    assert of(found, "bergson_jobs_total", kind="build", state="succeeded") == 1
    assert of(found, "bergson_reclaimed_total", work="job") == 0


def test_work_of_a_silent_worker_is_counted_as_reclaimed_and_in_the_end_as_given_up(
    redis: Redis, make_queue: Callable[[str], WorkerQueue], settings: Settings
):
    submit(redis)
    send(redis)
    workers = [make_queue(f"w-{k}") for k in range(4)]
    for queue in workers:
        queue.take_job()
        queue.queries.take()
        let_lapse(redis)
        let_lapse(redis, QUERY_LEASES)
    found = [numbers(queue.metrics) for queue in workers]
    assert [of(one, "bergson_reclaimed_total", work="job") for one in found] == [0, 1, 1, 0]
    assert [of(one, "bergson_given_up_total", work="job") for one in found] == [0, 0, 0, 1]
    assert [of(one, "bergson_reclaimed_total", work="query") for one in found] == [0, 1, 0, 0]
    assert [of(one, "bergson_given_up_total", work="query") for one in found] == [0, 0, 1, 0]
    assert of(found[2], "bergson_queries_total", outcome="internal") == len(replies(redis)) == 1
    assert of(found[3], "bergson_jobs_total", kind="build", state="failed") == 1


def test_a_job_that_was_handed_back_is_not_reclaimed(redis: Redis, make_queue: Callable[[str], WorkerQueue]):
    submit(redis)
    first, second = make_queue("w-1"), make_queue("w-2")
    claim = first.take_job()
    assert claim is not None
    first.hand_back(claim)
    assert second.take_job() is not None
    assert of(numbers(second.metrics), "bergson_reclaimed_total", work="job") == 0


def test_the_rate_of_the_job_at_hand_is_told(
    redis: Redis, core: FakeCore, start_worker: Callable[[], Runner], monkeypatch: pytest.MonkeyPatch
):
    tell = WorkerQueue.publish_progress
    monkeypatch.setattr(
        WorkerQueue,
        "publish_progress",
        lambda self, claim, progress: tell(
            self, claim, Progress(**progress.model_dump() | {"tokens_per_s": 7.0})
        ),
    )
    core.total, core.batch_s = 100, 0.3
    submit(redis)
    runner = start_worker()
    beaten(redis, lambda found: of(found, "bergson_job_tokens_per_second") == 7)
    runner.stop()


def test_the_time_of_creation_is_not_carried():
    assert not [name for name, _ in numbers(WorkerMetrics()) if name.endswith("_created")]
