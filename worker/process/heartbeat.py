"""The side thread of a worker, which sends heartbeats and renews the leases of what the worker has in hand.

The thread keeps running while the main thread loads a model or computes a batch. If Redis does not answer, the thread
tries again at the next beat; any other error ends the thread, which the main thread sees in `is_alive`.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Self

from redis import RedisError

from bergson_core.errors import LeaseLost
from worker.messages import Heartbeat, Query
from worker.queue.job_queue import ClaimedJob, WorkerQueue
from worker.queue.redis_errors import unavailable_error
from worker.settings import Settings

logger = logging.getLogger(__name__)


class HeartbeatThread:
    """A context manager that runs the side thread; the main thread puts what it has in hand into the attributes.

    Args:
        queue: The queue to send heartbeats to.
        settings: Durations of leases and heartbeats.
        make_heartbeat: Returns the current heartbeat; called in the side thread.

    Attributes:
        claim: The job whose lease is renewed.
        queries: The queries whose leases are renewed.
    """

    def __init__(self, queue: WorkerQueue, settings: Settings, make_heartbeat: Callable[[], Heartbeat]):
        self.claim: ClaimedJob | None = None
        self.queries: Sequence[Query] = ()
        self._queue, self._make_heartbeat = queue, make_heartbeat
        self._interval_s = min(settings.heartbeat_s, settings.lease_s / 3, settings.query_lease_s / 3)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; False after an error has ended it."""
        return self._thread.is_alive()

    def _run(self) -> None:
        # This is a clock and not a retry: a beat that failed is not repeated, since the next one says more, and leases
        # need a fixed interval rather than growing pauses.
        redis_is_away = False
        while not self._stop.is_set():
            try:
                self._beat()
                redis_is_away = False
            except RedisError as error:
                if not redis_is_away:
                    logger.warning(
                        "heartbeats cannot be sent, nor leases renewed: %s", unavailable_error(error)
                    )
                redis_is_away = True
            self._stop.wait(self._interval_s)

    def _beat(self) -> None:
        claim = self.claim
        if claim is not None and not claim.lost:
            try:
                self._queue.renew(claim)
            except LeaseLost as error:
                logger.warning("%s", error)
        self._queue.queries.renew(self.queries)
        self._queue.send_heartbeat(self._make_heartbeat())
