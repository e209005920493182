"""The worker's side of the queue. Everything that is kept in Redis is listed here; only commands of Redis 6.2.

    bergson:query:{query_id}      hash    message = `Query`, deliveries = how many workers took it; deleted when it is
                                          answered, forgotten a minute after its deadline
    bergson:queries:{priority}:waiting  zset  query_id by its turn
    bergson:queries:{priority}:since    zset  the same by the time in ms at which it came
    bergson:queries:{priority}:turns    hash  lane:{key id} = turn of the last query of each API key, started = turn of
                                          the last query that was taken; deleted when none waits
    bergson:queries:taken         zset    query_id by the time in ms at which its lease ends
    bergson:queries:bell          list    an entry for each new query: idle workers wait for it
    bergson:replies:{web_id}      stream  answers for one web process: reply = `Reply`; its reader deletes them;
                                          forgotten a minute after the last one
    bergson:job:{job_id}          hash    message = `Job` with any inline documents (until it ended),
                                          record = `JobRecord`, token = the fencing token, lane = the API key that
                                          it came by, cancel = 1 if wanted; forgotten `keep_jobs_s` after the end
    bergson:job:{job_id}:events   stream  the latest 256 or so of its records: record = `JobRecord`
    bergson:jobs:lanes            list    the API keys by which jobs wait; the first one's turn is next
    bergson:jobs:lane:{key id}    list    job_id of those that wait, in the order in which they came
    bergson:jobs:taken            zset    job_id by the time in ms at which its lease ends
    bergson:jobs:created          zset    job_id by the time it was submitted; forgotten jobs go when listed
    bergson:building              hash    index name → id of the job that builds or changes it, from submission until
                                          it has ended
    bergson:idempotency:{sha256}  hash    job_id, body = sha256 of what was submitted; forgotten after a day
    bergson:workers               set     worker_id of the workers of late; dead ones go when listed
    bergson:worker:{worker_id}    string  `Heartbeat`, for as long as it counts
    bergson:rate:{…}              string  two for each API key with a rate: its calls in this span of time and
                                          in the one before (`service.auth.rate_limits`); forgotten after two spans

Queries are taken by `worker.queue.query_queue`. Whoever takes a job has it for as long as a lease, which is started anew now and
then; one whose lease has ended is taken by another worker, before those that wait. No torch here.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any, cast

import redis
from pydantic import ValidationError

from bergson_core.errors import InvalidInput, LeaseLost
from bergson_core.schemas.results import Estimate, Progress
from worker.messages import FINAL_STATES, JOB_ADAPTER, MAX_MESSAGE_BYTES, Heartbeat, Job, JobRecord, JobState, Problem
from worker.queue import lua_scripts
from worker.queue.query_queue import QueryQueue, describe_unreadable
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

JOB_LANES = "bergson:jobs:lanes"
JOB_LANE_PREFIX = "bergson:jobs:lane:"
JOB_LEASES = "bergson:jobs:taken"
JOBS_BY_CREATION = "bergson:jobs:created"
BUILDING = "bergson:building"
IDEMPOTENCY_PREFIX = "bergson:idempotency:"
WORKERS = "bergson:workers"
RATE_PREFIX = "bergson:rate"

MAX_JOB_EVENTS = 256

_GIVEN_UP = (
    "given up after {} starts: each time its worker died or fell silent before it was done. "
    "The logs of the workers say why; submit it again when that is mended"
)


def job_key(job_id: str) -> str:
    return f"bergson:job:{job_id}"


def events_key(job_id: str) -> str:
    return f"bergson:job:{job_id}:events"


def worker_key(worker_id: str) -> str:
    return f"bergson:worker:{worker_id}"


@dataclass
class ClaimedJob:
    """A job in this worker's hands. `renewed_at` is in seconds of the monotonic clock."""

    job: Job
    record: JobRecord
    token: int
    renewed_at: float
    cancelled: bool = False
    lost: bool = False

    def require_lease(self, lease_s: float) -> None:
        """Raises `LeaseLost` where another worker has the job, or may have it by now."""
        if self.lost:
            raise _lost(self.record.job_id)
        if time.monotonic() - self.renewed_at > lease_s:
            raise LeaseLost(f"job {self.record.job_id}: Redis did not renew the lease within {lease_s:g} s")


class WorkerQueue:
    """Takes jobs, renews their leases, and hands in what came of them; `queries` does the same for queries.

    All methods raise `redis.RedisError` where Redis does not answer; all but `take_job` may then be called again.
    """

    def __init__(self, client: redis.Redis, settings: Settings, worker_id: str):
        self.worker_id = worker_id
        self.metrics = WorkerMetrics()
        self._redis = client
        self._settings = settings
        self.queries = QueryQueue(client, settings, self.metrics)
        self._take_script = client.register_script(lua_scripts.TAKE_JOB)
        self._save_script = client.register_script(lua_scripts.SAVE_JOB)
        self._renew_script = client.register_script(lua_scripts.RENEW_JOB)

    def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Says that this worker lives."""
        with self._redis.pipeline() as pipe:
            pipe.sadd(WORKERS, self.worker_id)
            ttl_ms = round(1000 * self._settings.heartbeat_ttl_s)
            pipe.set(worker_key(self.worker_id), heartbeat.model_dump_json(), px=ttl_ms)
            pipe.execute()

    def deregister(self) -> None:
        """Says that this worker is gone."""
        self._redis.delete(worker_key(self.worker_id))
        self._redis.srem(WORKERS, self.worker_id)

    # Jobs

    def take_job(self) -> ClaimedJob | None:
        """The next job: one whose worker is silent or handed it back, or else a new one. Never waits.

        A job that is to be cancelled, cannot be read, or was started too often, is ended here instead.
        """
        now = time.monotonic()
        job_id = self._take_script(keys=[JOB_LEASES, JOB_LANES], args=[self._lease_ms, JOB_LANE_PREFIX])
        if job_id is None:
            return None
        try:
            return self._claim(cast("str", job_id), now)
        except LeaseLost:
            logger.info("job %r changed hands while it was taken", job_id)
            return None

    def renew(self, claim: ClaimedJob) -> None:
        """Starts the lease anew. Raises `LeaseLost` where another worker has the job, or Redis has lost it."""
        now, job_id = time.monotonic(), claim.record.job_id
        if not self._renew_script(
            keys=[job_key(job_id), JOB_LEASES], args=[claim.token, self._lease_ms, job_id]
        ):
            claim.lost = True
            raise _lost(claim.record.job_id)
        claim.renewed_at = now

    def publish_progress(self, claim: ClaimedJob, progress: Progress) -> None:
        """Publishes how far the job is, and learns whether it is to be cancelled. Raises `LeaseLost`."""
        claim.record = claim.record.model_copy(update={"progress": progress})
        claim.cancelled = self._save(claim.record, claim.token, claim.token, "keep")

    def finish(
        self,
        claim: ClaimedJob,
        state: JobState,
        problem: Problem | None = None,
        estimate: Estimate | None = None,
    ) -> None:
        """Ends the job. Raises `LeaseLost`."""
        self._end(claim.record.model_copy(update={"estimate": estimate}), claim.token, state, problem)

    def hand_back(self, claim: ClaimedJob) -> None:
        """Lets another worker resume the job at once; this start of it does not count. Raises `LeaseLost`."""
        update = {"state": "queued", "deliveries": claim.record.deliveries - 1}
        self._save(claim.record.model_copy(update=update), claim.token, claim.token + 1, "back")

    @property
    def _lease_ms(self) -> int:
        return round(1000 * self._settings.lease_s)

    def _claim(self, job_id: str, now: float) -> ClaimedJob | None:
        record, held, cancel = self._read(job_id)
        if record is None or record.state in FINAL_STATES or record.job_id != job_id:
            self._drop(job_id)
            return None
        if cancel:
            return self._end(record, held, "cancelled", None)
        if record.deliveries >= self._settings.max_deliveries:
            self.metrics.given_up.labels("job").inc()
            problem = Problem(code="internal", detail=_GIVEN_UP.format(record.deliveries))
            return self._end(record, held, "failed", problem)
        self.metrics.reclaimed.labels("job").inc(record.state == "running")  # one that came back is queued
        started_at = record.started_at or time.time()
        update = {"state": "running", "started_at": started_at, "deliveries": record.deliveries + 1}
        record = record.model_copy(update=update)
        self._save(record, held, held + 1, "keep")
        job = self._job(record)  # after its start is counted: a message may kill who reads it
        if isinstance(job, Problem):
            return self._end(record, held + 1, "failed", job)
        return ClaimedJob(job, record, held + 1, renewed_at=now)

    def _read(self, job_id: str) -> tuple[JobRecord | None, int, bool]:
        """A job's record, its token, and whether it is to be cancelled; no record where it makes no sense."""
        try:
            found = self._redis.hmget(job_key(job_id), ["record", "token", "cancel"])
            raw, token, cancel = cast("list[str | None]", found)
            return parse_record(raw), int(token or 0), bool(cancel)
        except ValueError:
            return None, 0, False
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None, 0, False

    def _job(self, record: JobRecord) -> Job | Problem:
        """The job of this record, or why there is none."""
        key, raw = job_key(record.job_id), ""
        try:
            if cast("int", self._redis.hstrlen(key, "message")) <= MAX_MESSAGE_BYTES:
                raw = cast("str | None", self._redis.hget(key, "message")) or ""
            job = JOB_ADAPTER.validate_json(raw)
        except ValidationError as error:
            return Problem(code=InvalidInput.code, detail=describe_unreadable(raw, error))
        if (job.job_id, job.index) != (record.job_id, record.index):
            return Problem(code=InvalidInput.code, detail="the message is of another job than the record")
        return job

    def _drop(self, job_id: str) -> None:
        logger.warning("job %r is unknown or over: dropped", job_id)
        building = cast("dict[str, str]", self._redis.hgetall(BUILDING))
        for index in (name for name, builder in building.items() if builder == job_id):
            self._redis.hdel(BUILDING, index)
        self._redis.zrem(JOB_LEASES, job_id)

    def _end(self, record: JobRecord, token: int, state: JobState, problem: Problem | None) -> None:
        update = {"state": state, "error": problem, "finished_at": time.time()}
        self._save(record.model_copy(update=update), token, token + 1, "end")
        self.metrics.jobs.labels(record.kind, state).inc()

    def _save(self, record: JobRecord, token: int, new_token: int, what: str) -> bool:
        arguments = save_job_arguments(record, token, new_token, what, self._settings.keep_jobs_s)
        outcome = cast("int", self._save_script(**arguments))
        if outcome < 0:
            raise _lost(record.job_id)
        return outcome == 1


def save_job_arguments(record: JobRecord, token: int, new_token: int, what: str, keep_s: int) -> dict[str, Any]:
    """Arguments of `scripts.SAVE`, for workers and for the web process."""
    job_id, index = record.job_id, record.index or ""
    return {
        "keys": [job_key(job_id), events_key(job_id), JOB_LEASES, BUILDING, JOB_LANES],
        "args": [
            *(token, new_token, record.model_dump_json(), what),
            *(index, job_id, keep_s, MAX_JOB_EVENTS, JOB_LANE_PREFIX),
        ],
    }


def _lost(job_id: str) -> LeaseLost:
    return LeaseLost(f"job {job_id} was taken over by another worker, has ended, or is gone from Redis")


def parse_record(raw: str | None) -> JobRecord | None:
    """The record that was written, or None where there is none that this version reads."""
    try:
        return JobRecord.model_validate_json(raw) if raw else None
    except ValidationError as error:
        logger.warning("job record cannot be read: %s", error)
        return None
