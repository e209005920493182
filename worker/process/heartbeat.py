"""The side thread of a worker: says that it lives, and renews the leases of what it has in hand.

It goes on while the main thread loads a model or runs a batch. Where Redis does not answer it tries again; anything
else ends the thread, which the main thread sees in `alive`.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Self

from redis import RedisError

from bergson_core.errors import LeaseLost
from worker.messages import Heartbeat, Query
from worker.queue.job_queue import ClaimedJob, WorkerQueue
from worker.settings import Settings

logger = logging.getLogger(__name__)


class HeartbeatThread:
    """Context manager around the thread. The main thread puts what it holds into `claim` and `queries`."""

    def __init__(self, queue: WorkerQueue, settings: Settings, heartbeat: Callable[[], Heartbeat]):
        self.claim: ClaimedJob | None = None
        self.queries: Sequence[Query] = ()
        self._queue, self._heartbeat = queue, heartbeat
        self._interval_s = min(settings.heartbeat_s, settings.lease_s / 3, settings.query_lease_s / 3)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended by an error."""
        return self._thread.is_alive()

    def _run(self) -> None:
        away = False
        while not self._stop.is_set():
            try:
                self._beat()
                away = False
            except RedisError as error:
                if not away:
                    logger.warning("no heartbeat can be sent, nor a lease renewed: %s", error)
                away = True
            self._stop.wait(self._interval_s)

    def _beat(self) -> None:
        claim = self.claim
        if claim is not None and not claim.lost:
            try:
                self._queue.renew(claim)
            except LeaseLost as error:
                logger.warning("%s", error)
        self._queue.queries.renew(self.queries)
        self._queue.send_heartbeat(self._heartbeat())
