"""Decides how long the client waits before it repeats a request, and when it gives up."""

import random
import time

_INITIAL_PAUSE_S, _MAX_PAUSE_S = 0.5, 8.0


class RetryBudget:
    """The pauses between the attempts of one call, and the time that they may take in all.

    Pauses are drawn at random, up to a limit that doubles from 0.5 s to 8 s, so that many clients do not come back
    at the same moment. The time runs from the first failure on.

    stamina and tenacity do not fit here: both count their time limit from the start of the first attempt. A query
    that is refused after a minute, or an event stream that breaks after an hour, would never be retried, and neither
    library can start its limit afresh once events arrive again.
    """

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """Starts afresh, because the service has answered."""
        self._deadline: float | None = None
        self._max_pause_s = _INITIAL_PAUSE_S

    def next_pause_s(self, min_s: float = 0.0) -> float | None:
        """Returns the seconds to wait before the next attempt.

        Args:
            min_s: What the service asked for in `Retry-After`; the random pause is added to it.

        Returns:
            None when the pause would end after the budget does.
        """
        now = time.monotonic()
        self._deadline = self._deadline or now + self._limit_s
        pause_s = min_s + random.uniform(0, self._max_pause_s)
        self._max_pause_s = min(2 * self._max_pause_s, _MAX_PAUSE_S)
        return None if now + pause_s > self._deadline else pause_s
