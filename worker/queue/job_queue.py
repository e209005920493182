"""The worker's side of the queue of jobs: takes jobs in turn, renews their leases, and records how they end.

Whoever takes a job has it for a lease, which the worker renews now and then. A job whose lease has ended is taken by
another worker, before those that wait; the first worker's fencing token is then too old to change anything. Lanes take
turns: after each job of a lane one job of every other lane is taken. `worker.queue.query_queue` takes queries, and says
why turns and leases are our own; `worker.queue.redis_keys` explains the keys.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, cast

import redis
from pydantic import ValidationError

from bergson_core.errors import InvalidInput, LeaseLost
from bergson_core.schemas.results import Estimate, Progress
from worker.messages import (
    FINAL_STATES,
    JOB_ADAPTER,
    MAX_MESSAGE_BYTES,
    Heartbeat,
    Job,
    JobRecord,
    JobResult,
    JobState,
)
from worker.problem import Problem
from worker.queue import lua_scripts
from worker.queue.job_records import (
    Transition,
    next_token,
    parse_record,
    parse_token,
    save_job_arguments,
)
from worker.queue.query_queue import QueryQueue, describe_unreadable
from worker.queue.redis_errors import UnexpectedReply, check_replies, require_list
from worker.queue.redis_keys import (
    BUILDING,
    JOB_LANE_PREFIX,
    JOB_LANES,
    JOB_LEASES,
    WORKERS,
    job_key,
    worker_key,
)
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

_BUSY_PAUSE_S: Final = 2.0
"""Seconds after which a job is looked at again that waits for another process to let its index go."""

_GIVEN_UP = (
    "given up after {} starts: each time the worker died or fell silent before the job was done. "
    "The logs of the workers say why; submit the job again once the cause is fixed"
)


@dataclass
class ClaimedJob:
    """A job that this worker has taken."""

    job: Job
    record: JobRecord
    token: int
    """Fencing token with which this worker changes the job."""
    renewed_at: float
    """When the lease last started, in seconds of the monotonic clock."""
    cancelled: bool = False
    """Whether somebody has asked to cancel the job."""
    lost: bool = False
    """Whether another worker has the job, or the job is gone."""

    def require_lease(self, lease_s: float) -> None:
        """Raises `LeaseLost` if another worker has the job, or may have it because the lease has ended."""
        if self.lost:
            raise _lost(self.record.job_id)
        if time.monotonic() - self.renewed_at > lease_s:
            raise LeaseLost(f"job {self.record.job_id}: Redis did not renew the lease within {lease_s:g} s")


class WorkerQueue:
    """What a worker does in Redis: it announces itself, takes jobs and records their ends; `queries` takes queries.

    All methods raise `redis.RedisError` if Redis does not answer; all but `take_job` may then be called again. Methods
    that change a job raise `LeaseLost` if this worker no longer has it.

    Args:
        client: Connections to Redis.
        settings: Durations and limits of the queue.
        worker_id: Name of this worker, unique among all workers.
    """

    def __init__(self, client: redis.Redis, settings: Settings, worker_id: str):
        self.worker_id = worker_id
        self.metrics = WorkerMetrics()
        self.queries = QueryQueue(client, settings, self.metrics)
        self._redis = client
        self._settings = settings
        self._take_script = client.register_script(lua_scripts.TAKE_JOB)
        self._save_script = client.register_script(lua_scripts.SAVE_JOB)
        self._renew_script = client.register_script(lua_scripts.RENEW_JOB)

    @check_replies()
    def send_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Registers this worker and stores its heartbeat, which expires after `heartbeat_ttl_s`."""
        with self._redis.pipeline() as pipe:
            pipe.sadd(WORKERS, self.worker_id)
            ttl_ms = round(1000 * self._settings.heartbeat_ttl_s)
            pipe.set(worker_key(self.worker_id), heartbeat.model_dump_json(), px=ttl_ms)
            pipe.execute()

    def deregister(self) -> None:
        """Removes this worker and its heartbeat, so that it no longer counts as alive."""
        self._redis.delete(worker_key(self.worker_id))
        self._redis.srem(WORKERS, self.worker_id)

    @check_replies()
    def take_job(
        self,
        find_obstacle: Callable[[JobRecord], str | None] = lambda record: None,
        discard: Callable[[JobRecord], object] = lambda record: None,
    ) -> ClaimedJob | None:
        """Takes the next job: one whose lease has ended or that was handed back, or else a waiting one. Never blocks.

        A job that is to be cancelled, cannot be read, or was started too often is ended here instead. A job with an
        obstacle is put off for a moment, which does not count as a start; other jobs are taken meanwhile.

        Args:
            find_obstacle: Returns why a job cannot be started now, or None.
            discard: Called before a job is ended that was started before: it removes what the job has left.

        Returns:
            The job, for `lease_s` seconds in this worker's hands, or None if there is none to start.
        """
        while True:
            now = time.monotonic()
            job_id = self._take_script(keys=[JOB_LEASES, JOB_LANES], args=[self._lease_ms, JOB_LANE_PREFIX])
            if job_id is None:
                return None
            if not isinstance(job_id, str):
                raise UnexpectedReply(f"expected the id of a job, got {type(job_id).__name__}")
            try:
                if claim := self._start_job(job_id, now, find_obstacle, discard):
                    return claim
            except LeaseLost:
                logger.info("job %r changed hands while it was taken", job_id)

    @check_replies()
    def renew(self, claim: ClaimedJob) -> None:
        """Restarts the lease of a job."""
        now = time.monotonic()
        try:
            self._set_lease(claim.record.job_id, claim.token, self._settings.lease_s)
        except LeaseLost:
            claim.lost = True
            raise
        claim.renewed_at = now

    @check_replies()
    def publish_progress(self, claim: ClaimedJob, progress: Progress) -> None:
        """Records how far a job is, and sets `claim.cancelled` if somebody has asked to cancel it."""
        claim.record = claim.record.model_copy(update={"progress": progress})
        claim.cancelled = self._save_job(claim.record, claim.token, claim.token, "keep")

    @check_replies()
    def finish(
        self,
        claim: ClaimedJob,
        state: JobState,
        problem: Problem | None = None,
        result: JobResult | None = None,
    ) -> None:
        """Ends a job.

        Args:
            claim: The job.
            state: Its final state.
            problem: Why it failed.
            result: What a job has found that changes nothing.
        """
        field = "estimate" if isinstance(result, Estimate) else "unlearning"
        self._end_job(claim.record.model_copy(update={field: result}), claim.token, state, problem)

    @check_replies()
    def hand_back(self, claim: ClaimedJob) -> None:
        """Lets another worker resume a job at once; this start of the job does not count as a delivery."""
        update = {"state": "queued", "deliveries": claim.record.deliveries - 1}
        self._save_job(claim.record.model_copy(update=update), claim.token, next_token(claim.token), "back")

    @check_replies()
    def is_left_behind(self, claim: ClaimedJob) -> bool:
        """Returns whether a job that this worker has lost was cancelled, and no other job has its index since."""
        record, _, _ = self._read_record(claim.record.job_id)
        is_cancelled = record is not None and record.state == "cancelled"
        return is_cancelled and claim.record.index not in self.list_active_indexes()

    @check_replies()
    def list_active_indexes(self) -> Collection[str]:
        """Returns the names of the indexes that a queued or running job builds or changes."""
        return cast("dict[str, str]", self._redis.hgetall(BUILDING)).keys()

    @property
    def _lease_ms(self) -> int:
        return round(1000 * self._settings.lease_s)

    def _start_job(
        self,
        job_id: str,
        now: float,
        find_obstacle: Callable[[JobRecord], str | None],
        discard: Callable[[JobRecord], object],
    ) -> ClaimedJob | None:
        record, token, cancel = self._read_record(job_id)
        if record is None or record.state in FINAL_STATES or record.job_id != job_id:
            # A late reply to another command looks like this, so a job is not dropped before it is read again.
            record, token, cancel = self._read_record(job_id)
        if record is None or record.state in FINAL_STATES or record.job_id != job_id:
            self._drop_job(job_id)
            return None
        if cancel:
            discard(record)
            return self._end_job(record, token, "cancelled", None)
        if obstacle := find_obstacle(record):
            return self._put_off(record, token, obstacle)
        if record.deliveries >= self._settings.max_deliveries:
            self.metrics.given_up.labels("job").inc()
            if record.kind != "build":  # a build's finished work is kept for the next build of the same spec
                discard(record)
            problem = Problem(code="internal", detail=_GIVEN_UP.format(record.deliveries))
            return self._end_job(record, token, "failed", problem)
        # A job that was handed back is queued, and is not counted as taken over from a silent worker.
        self.metrics.reclaimed.labels("job").inc(record.state == "running")
        started_at = record.started_at or time.time()
        update = {"state": "running", "started_at": started_at, "deliveries": record.deliveries + 1}
        record, new_token = record.model_copy(update=update | {"waits_for": None}), next_token(token)
        self._save_job(record, token, new_token, "keep")
        # The message is read after the start has been counted, because reading it may kill the worker.
        job = self._read_job(record)
        if isinstance(job, Problem):
            return self._end_job(record, new_token, "failed", job)
        return ClaimedJob(job, record, new_token, renewed_at=now)

    def _put_off(self, record: JobRecord, token: int, obstacle: str) -> None:
        """Has a job looked at again after a pause.

        Its token stays. So the worker that started it last may still go on with it, if that was only stopped for a
        while, or hand it back.
        """
        waiting = record.model_copy(update={"state": "queued", "waits_for": obstacle})
        if waiting != record:
            logger.warning("job %s waits: %s", record.job_id, obstacle)
            self._save_job(waiting, token, token, "keep")
        self._set_lease(record.job_id, token, _BUSY_PAUSE_S)

    def _set_lease(self, job_id: str, token: int, lease_s: float) -> None:
        arguments = [token, round(1000 * lease_s), job_id]
        if not self._renew_script(keys=[job_key(job_id), JOB_LEASES], args=arguments):
            raise _lost(job_id)

    def _read_record(self, job_id: str) -> tuple[JobRecord | None, int, bool]:
        """Returns a job's record, its token and whether to cancel it; the record is None if the job is malformed."""
        try:
            fields = self._redis.hmget(job_key(job_id), ["record", "token", "cancel"])
            raw, token, cancel = require_list(fields, length=3)
            return parse_record(raw), parse_token(token), bool(cancel)
        except ValueError:
            return None, 0, False
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None, 0, False

    def _read_job(self, record: JobRecord) -> Job | Problem:
        """Returns the job of a record, or why its message cannot be used."""
        key, raw = job_key(record.job_id), ""
        try:
            if cast("int", self._redis.hstrlen(key, "message")) <= MAX_MESSAGE_BYTES:
                raw = cast("str | None", self._redis.hget(key, "message")) or ""
            job = JOB_ADAPTER.validate_json(raw)
        except ValidationError as error:
            return Problem(code=InvalidInput.code, detail=describe_unreadable(raw, error))
        if (job.job_id, job.index) != (record.job_id, record.index):
            return Problem(
                code=InvalidInput.code, detail="the message belongs to another job than the record"
            )
        return job

    def _drop_job(self, job_id: str) -> None:
        logger.warning("job %r dropped: it is unknown or has ended", job_id)
        building = cast("dict[str, str]", self._redis.hgetall(BUILDING))
        for index in (name for name, builder in building.items() if builder == job_id):
            self._redis.hdel(BUILDING, index)
        self._redis.zrem(JOB_LEASES, job_id)

    def _end_job(self, record: JobRecord, token: int, state: JobState, problem: Problem | None) -> None:
        update = {"state": state, "error": problem, "finished_at": time.time()}
        self._save_job(record.model_copy(update=update), token, next_token(token), "end")
        self.metrics.jobs.labels(record.kind, state).inc()

    def _save_job(self, record: JobRecord, token: int, new_token: int, transition: Transition) -> bool:
        """Saves a record; returns whether somebody has asked to cancel the job."""
        arguments = save_job_arguments(record, token, new_token, transition, self._settings)
        outcome = self._save_script(**arguments)
        if outcome not in (-1, 0, 1):
            raise UnexpectedReply(f"expected -1, 0 or 1, got {type(outcome).__name__}")
        if outcome == -1:
            raise _lost(record.job_id)
        return outcome == 1


def _lost(job_id: str) -> LeaseLost:
    return LeaseLost(f"job {job_id} was taken over by another worker, has ended, or is gone from Redis")
