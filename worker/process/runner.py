"""The main loop of a worker: it answers queries, and runs jobs, which yield to queries between their batches.

An error becomes a problem of its query or job (`worker.process.error_boundary`), and the worker lives on. While Redis
does not answer, the worker waits for it. `Runner.stop` ends the loop after the current batch and hands a running build
back to the queue.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from redis import RedisError

from bergson_core.errors import Cancelled, IndexBusy, LeaseLost
from bergson_core.schemas.results import Progress
from bergson_core.storage.index_lock import find_writer
from worker.messages import Heartbeat, JobRecord, JobResult
from worker.problem import Problem
from worker.process import job_handlers
from worker.process.error_boundary import run_guarded
from worker.process.heartbeat import HeartbeatThread
from worker.process.index_cache import IndexCache
from worker.process.leftovers import list_index_directories, remove_leftovers
from worker.process.query_loop import QueryLoop
from worker.process.time_share import TimeShare
from worker.queue.job_queue import ClaimedJob, WorkerQueue
from worker.queue.redis_errors import unavailable_error
from worker.queue.redis_retry import MAX_PAUSE_S, retry_redis
from worker.settings import Settings
from worker.telemetry import instrumentation
from worker.telemetry.instrumentation import Outcome
from worker.telemetry.metrics import read_memory_bytes

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.25
"""Progress is published at most this often."""
_REDIS_PAUSE_S = 1.0
"""A build does not try Redis again before this time, so that an outage does not slow it down."""
_LEFTOVERS_INTERVAL_S = 600.0
"""An idle worker looks this often for what killed jobs and workers have left, and once after each job."""
_FINAL_STAGE = "done"
"""The stage that a build reports once its index is published."""


class Runner:
    """One worker.

    Args:
        queue: The queue to take work from.
        settings: Settings of the worker.
        device: Name of the device that the worker computes on, shown in its heartbeat.
    """

    def __init__(self, queue: WorkerQueue, settings: Settings, device: str):
        self._queue, self._settings, self._device = queue, settings, device
        self._index_cache = IndexCache(
            settings.indexes_dir, settings.resident_indexes, settings.executor, settings.max_query_tokens
        )
        self._heartbeat_thread = HeartbeatThread(queue, settings, self._make_heartbeat)
        self._query_loop = QueryLoop(queue, self._index_cache, self._heartbeat_thread)
        self._time_share = TimeShare(self._query_loop, settings.job_share, settings.poll_s)
        self._started_at = time.time()
        self._stopping = False
        self._progress_published_at = 0.0
        self._retry_redis_at = 0.0
        self._leftovers_due_at = 0.0

    def stop(self) -> None:
        """Makes `run` return soon. A signal handler may call it."""
        self._stopping = True

    def run(self) -> None:
        """Works until `stop` is called.

        Raises:
            RuntimeError: The thread that renews leases has died.
        """
        with self._heartbeat_thread:
            logger.info("worker %s is ready on %s", self._queue.worker_id, self._device)
            while not self._stopping:
                try:
                    retry_redis(self._step, give_up=lambda pause_s: self._stopping)
                except RedisError:
                    break  # `retry_redis` raises it only once the worker is to stop
            self._query_loop.finish_follow_ups()
        try:
            self._queue.deregister()
        except RedisError as error:
            logger.warning("the worker could not be removed from Redis: %s", unavailable_error(error))
        logger.info("worker %s has stopped", self._queue.worker_id)

    def _step(self) -> None:
        """Answers the waiting queries, or else runs a job, as it does if queries have had more than their share."""
        if not self._heartbeat_thread.is_alive:
            raise RuntimeError("the thread that renews leases has died; its error is logged above")
        has_answered = self._time_share.answer_queries(self._settings.poll_s)
        if has_answered and not self._time_share.is_jobs_turn:
            return
        self._index_cache.drop_deleted()
        claim = self._queue.take_job(self._find_obstacle, self._discard)
        if claim is None:
            self._time_share.forgive_job_debt()
            self._remove_leftovers()
            return
        self._leftovers_due_at = 0.0
        self._heartbeat_thread.claim = claim
        self._time_share.resume_job()
        try:
            with instrumentation.observe_job(claim.job) as record_outcome:
                record_outcome(self._run_job(claim))
        finally:
            self._time_share.pause_job()
            self._heartbeat_thread.claim = None

    def _run_job(self, claim: ClaimedJob) -> Outcome:
        """Runs a job to its end, or hands it back if this worker stops or has lost the job."""
        job, record = claim.job, claim.record
        logger.info("job %s: %s index %s, start %d", job.job_id, job.kind, job.index, record.deliveries)
        report, confirm = partial(self._report, claim), partial(self._confirm, claim)
        try:
            outcome = run_guarded(
                lambda: job_handlers.run_job(job, self._settings, report, confirm, self._index_cache.get)
            )
        except LeaseLost as error:
            logger.warning("%s", error)
            self._save_outcome(lambda: self._queue.hand_back(claim))
            self._save_outcome(lambda: self._queue.is_left_behind(claim) and self._discard(claim.record))
            return "lost"
        except Cancelled:
            if not claim.cancelled:
                logger.info(
                    "job %s is handed back, because this worker stops: another worker continues it",
                    job.job_id,
                )
                self._save_outcome(lambda: self._queue.hand_back(claim))
                return "handed_back"
            self._discard(record)
            self._save_outcome(lambda: self._queue.finish(claim, "cancelled"))
            return "cancelled"
        self._finish_job(claim, outcome)
        return outcome if isinstance(outcome, Problem) else "succeeded"

    def _finish_job(self, claim: ClaimedJob, outcome: Problem | JobResult | None) -> None:
        job_id = claim.record.job_id
        if not isinstance(outcome, Problem):
            logger.info("job %s has succeeded", job_id)
            self._save_outcome(lambda: self._queue.finish(claim, "succeeded", None, outcome))
        elif outcome.code == IndexBusy.code:
            # Another process was faster than this one, which had found no obstacle. That is no start: the job waits.
            self._save_outcome(lambda: self._queue.hand_back(claim))
        else:
            logger.warning("job %s has failed: %s: %s", job_id, outcome.code, outcome.detail)
            if (
                claim.job.kind != "build"
            ):  # what a build has finished is kept for the next build of the same spec
                self._discard(claim.record)
            self._save_outcome(lambda: self._queue.finish(claim, "failed", outcome))

    def _report(self, claim: ClaimedJob, progress: Progress) -> None:
        """Answers waiting queries and publishes the progress of a job; the job calls this after every batch.

        Raises `LeaseLost`, or `Cancelled` if the job is to be cancelled or this worker is to stop.
        """
        if not self._heartbeat_thread.is_alive:
            raise LeaseLost("the thread that renews leases has died")
        claim.require_lease(self._settings.lease_s)
        now = time.monotonic()
        if now >= self._retry_redis_at:
            try:
                self._time_share.yield_to_queries(progress, lambda: self._stopping)
                is_new_stage = progress.stage != claim.record.progress.stage
                if is_new_stage or now - self._progress_published_at >= _PROGRESS_INTERVAL_S:
                    self._queue.publish_progress(claim, progress)
                    self._progress_published_at = now
            except RedisError as error:
                logger.warning("progress not published: %s", unavailable_error(error))
                self._retry_redis_at = time.monotonic() + _REDIS_PAUSE_S
        is_published = progress.stage == _FINAL_STAGE
        if (claim.cancelled or self._stopping) and not is_published:
            if claim.cancelled:
                self._publish_cancelling(claim, progress)
            raise Cancelled("cancelled on request" if claim.cancelled else "this worker is stopping")

    def _publish_cancelling(self, claim: ClaimedJob, progress: Progress) -> None:
        """Says that a job is being cancelled: a computation that cannot be interrupted may have to end first."""
        with suppress(RedisError):
            cancelling = progress.model_copy(update={"stage": "cancelling", "eta_s": None})
            self._queue.publish_progress(replace(claim), cancelling)

    def _find_obstacle(self, record: JobRecord) -> str | None:
        """Returns which process holds the lock of a job's index, so that the job has to wait; None if none does."""
        index = record.changed_index
        writer = find_writer(self._settings.indexes_dir / index) if index else None
        return writer and (
            f"the index {record.index!r} is being written by {writer}. The job goes on once that process has ended or "
            "lets the index go; a process that is stopped or hangs has to be continued or killed"
        )

    def _discard(self, record: JobRecord) -> None:
        """Removes what a job has left that does not go on."""
        if record.changed_index is not None and record.started_at is not None:
            directory = self._settings.indexes_dir / record.changed_index
            run_guarded(lambda: job_handlers.discard_unfinished(directory))

    def _remove_leftovers(self) -> None:
        """Removes now and then what jobs and workers have left that were killed."""
        if time.monotonic() < self._leftovers_due_at:
            return
        directories = list_index_directories(self._settings)
        active = self._queue.list_active_indexes()  # read after the directories, which a new job may create
        idle = [directory for directory in directories if directory.name not in active]
        run_guarded(lambda: remove_leftovers(self._settings, idle))
        self._leftovers_due_at = time.monotonic() + _LEFTOVERS_INTERVAL_S

    def _confirm(self, claim: ClaimedJob) -> None:
        """Renews the lease of a job; the job calls this before it publishes anything.

        Raises `LeaseLost` unless Redis confirms that this worker has the job.
        """

        def renew() -> None:
            try:
                self._queue.renew(claim)
            except RedisError:
                claim.require_lease(self._settings.lease_s)
                raise

        try:
            retry_redis(renew, give_up=lambda pause_s: self._stopping)
        except RedisError as error:
            raise Cancelled(f"this worker is stopping; {unavailable_error(error)}") from error

    def _save_outcome(self, save: Callable[[], object]) -> None:
        """Calls `save` until Redis answers; gives up if another worker has the job, or after a while when stopping."""
        try:
            retry_redis(save, give_up=lambda pause_s: self._stopping and pause_s >= MAX_PAUSE_S)
        except LeaseLost as error:
            logger.warning("%s", error)
        except RedisError as error:
            logger.error("%s; another worker will do the job again", unavailable_error(error))

    def _make_heartbeat(self) -> Heartbeat:
        claim, resident = self._heartbeat_thread.claim, self._index_cache.names
        tokens_per_s = claim.record.progress.tokens_per_s if claim else None
        metrics = self._queue.metrics.collect(len(resident), tokens_per_s)
        return Heartbeat(
            worker_id=self._queue.worker_id,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=self._device,
            started_at=self._started_at,
            state="idle" if claim is None else "building",
            resident=resident,
            models=self._index_cache.models,
            memory_bytes=read_memory_bytes(metrics),
            metrics=metrics,
        )
