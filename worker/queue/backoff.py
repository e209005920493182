"""How long to wait for a Redis that does not answer."""

import logging
import time

from redis import RedisError

logger = logging.getLogger(__name__)


class Backoff:
    """Waits longer each time, up to a second: signals are looked at in between."""

    def __init__(self) -> None:
        self._next_s = 0.05

    @property
    def is_long(self) -> bool:
        return self._next_s >= 1

    def take(self, error: RedisError) -> None:
        if self._next_s == 0.05 or self.is_long:
            logger.warning("Redis does not answer, trying again: %s", error)
        time.sleep(self._next_s)
        self._next_s = min(1.0, 2 * self._next_s)
