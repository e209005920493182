"""The loop of a worker: queries first, then a job, whose build yields to queries between its batches.

Errors become problems of their query or job (`attempts`), and the worker lives on. While Redis is away it waits. `stop`
ends the loop after the batch at hand; a running build is handed back.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from redis import RedisError

from bergson_core.errors import Cancelled, IndexBusy, LeaseLost
from bergson_core.schemas.results import Estimate, Progress
from worker.messages import Heartbeat, Problem
from worker.process import job_handlers
from worker.process.error_boundary import run_guarded
from worker.process.heartbeat import HeartbeatThread
from worker.process.index_cache import IndexCache
from worker.process.query_loop import QueryLoop
from worker.queue.backoff import Backoff
from worker.queue.job_queue import ClaimedJob, WorkerQueue
from worker.settings import Settings
from worker.telemetry import instrumentation
from worker.telemetry.instrumentation import Outcome
from worker.telemetry.metrics import read_memory_bytes

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

_PROGRESS_S = 0.25  # at most so often is progress published
_YIELD_S = 1.0  # a build goes on after so long, however many queries wait
_FINAL_STAGE = "done"  # what a build reports once its index is published


class Runner:
    """One worker. `device` is what it says about itself."""

    def __init__(self, queue: WorkerQueue, settings: Settings, device: str):
        self._queue, self._settings, self._device = queue, settings, device
        self._index_cache = IndexCache(settings.indexes_dir, settings.resident_indexes, settings.executor)
        self._heartbeat_thread = HeartbeatThread(queue, settings, self._heartbeat)
        self._query_loop = QueryLoop(queue, self._index_cache, self._heartbeat_thread)
        self._started_at = time.time()
        self._stopping = False
        self._published_at = 0.0
        self._redis_again_at = 0.0

    def stop(self) -> None:
        """Ends `run` soon. May be called by a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Works until `stop` is called. Raises RuntimeError where the thread that renews leases has died."""
        pause = Backoff()
        with self._heartbeat_thread:
            logger.info("worker %s is ready on %s", self._queue.worker_id, self._device)
            while not self._stopping:
                if not self._heartbeat_thread.is_alive:
                    raise RuntimeError("the thread that renews leases has died; its error is above")
                try:
                    self._step()
                    pause = Backoff()
                except RedisError as error:
                    pause.take(error)
            self._query_loop.finish_verifications()
        try:
            self._queue.deregister()
        except RedisError as error:
            logger.warning("could not say goodbye to Redis: %s", error)
        logger.info("worker %s has stopped", self._queue.worker_id)

    def _step(self) -> None:
        if self._query_loop.run_once(self._settings.poll_s):
            return
        self._index_cache.drop_deleted()
        claim = self._queue.take_job()
        if claim is not None:
            self._heartbeat_thread.claim = claim
            try:
                with instrumentation.observe_job(claim.job) as ended:
                    ended(self._work(claim))
            finally:
                self._heartbeat_thread.claim = None

    def _work(self, claim: ClaimedJob) -> Outcome:
        """Runs a job to its end, or hands it back where this worker stops or has lost it."""
        job, record = claim.job, claim.record
        logger.info("job %s: %s index %s, start %d", job.job_id, job.kind, job.index, record.deliveries)
        report, confirm = partial(self._report, claim), partial(self._confirm, claim)
        try:
            outcome = run_guarded(lambda: job_handlers.run_job(job, self._settings, report, confirm))
        except LeaseLost as error:
            logger.warning("%s", error)
            self._insist(lambda: self._queue.hand_back(claim))
            return "lost"
        except Cancelled:
            if not claim.cancelled:
                self._insist(lambda: self._queue.hand_back(claim))
                return "handed_back"
            if job.index is not None:
                directory = self._settings.indexes_dir / job.index
                run_guarded(lambda: job_handlers.discard_unfinished(directory))
            self._insist(lambda: self._queue.finish(claim, "cancelled"))
            return "cancelled"
        self._end(claim, outcome)
        return outcome if isinstance(outcome, Problem) else "succeeded"

    def _end(self, claim: ClaimedJob, outcome: Problem | Estimate | None) -> None:
        job_id, problem = claim.record.job_id, outcome if isinstance(outcome, Problem) else None
        estimate = outcome if isinstance(outcome, Estimate) else None
        if problem is None:
            logger.info("job %s has succeeded", job_id)
            self._insist(lambda: self._queue.finish(claim, "succeeded", None, estimate))
        elif problem.code == IndexBusy.code and claim.record.deliveries > 1:
            logger.warning("job %s waits for its last worker to let go of the directory", job_id)
        else:
            logger.warning("job %s has failed: %s: %s", job_id, problem.code, problem.detail)
            self._insist(lambda: self._queue.finish(claim, "failed", problem))

    def _report(self, claim: ClaimedJob, progress: Progress) -> None:
        """Called after every batch. Raises `LeaseLost`, or `Cancelled` where somebody or this worker stops."""
        if not self._heartbeat_thread.is_alive:
            raise LeaseLost("the thread that renews leases has died")
        claim.require_lease(self._settings.lease_s)
        now, published = time.monotonic(), progress.stage == _FINAL_STAGE
        if now >= self._redis_again_at:
            try:
                while self._query_loop.run_once() and time.monotonic() < now + _YIELD_S:
                    pass
                if progress.stage != claim.record.progress.stage or now - self._published_at >= _PROGRESS_S:
                    self._queue.publish_progress(claim, progress)
                    self._published_at = now
            except RedisError as error:
                logger.warning("progress not published: %s", error)
                self._redis_again_at = time.monotonic() + 1
        if (claim.cancelled or self._stopping) and not published:
            raise Cancelled("cancelled on request" if claim.cancelled else "this worker is stopping")

    def _confirm(self, claim: ClaimedJob) -> None:
        """Called before anything is published. Raises `LeaseLost` unless Redis says that the job is ours."""
        pause = Backoff()
        while True:
            try:
                self._queue.renew(claim)
                return
            except RedisError as error:
                claim.require_lease(self._settings.lease_s)
                if self._stopping:
                    raise Cancelled("this worker is stopping, and Redis does not answer") from error
                pause.take(error)

    def _insist(self, call: Callable[[], None]) -> None:
        """Makes `call` until Redis takes it; gives up where the job is another's, or when stopping."""
        pause = Backoff()
        while True:
            try:
                call()
                return
            except LeaseLost as error:
                logger.warning("%s", error)
                return
            except RedisError as error:
                if self._stopping and pause.is_long:
                    logger.error("Redis does not answer; another worker will do the job again")
                    return
                pause.take(error)

    def _heartbeat(self) -> Heartbeat:
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
