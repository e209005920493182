"""Clients that ask without end, in threads, and what they were answered."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bergson_core.errors import BergsonError
from service.client import Client


@dataclass
class SteadyQueries:
    """What was answered so far.

    Attributes:
        answered: For each answer, the monotonic time at which it came, and the seconds that it took.
        errors: The errors that came in the place of answers.
    """

    answered: list[tuple[float, float]] = field(default_factory=list)
    errors: list[BergsonError] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[float]:
        """Returns the seconds that the answers between two moments took."""
        return [seconds for at, seconds in self.answered if start <= at <= end]


@contextmanager
def steady_queries(
    url: str, index: str, clients: int = 4, timeout_s: float = 30, **fields: object
) -> Iterator[SteadyQueries]:
    """Has clients ask one query after the other, without repeating any request, while the context is open.

    Args:
        url: Address of the web process.
        index: The index to ask.
        clients: Number of clients.
        timeout_s: Seconds in which each query is to be answered.
        fields: Further fields of each query.
    """
    result, stop = SteadyQueries(), threading.Event()

    def ask(number: int) -> None:
        with Client(url, retry_s=0) as client:
            for turn in range(10**6):
                if stop.is_set():
                    return
                started = time.monotonic()
                try:
                    client.attribute(
                        index, f"Person {number} {turn}", " lives.", timeout_s=timeout_s, **fields
                    )
                except BergsonError as error:
                    result.errors.append(error)
                    time.sleep(0.05)
                else:
                    now = time.monotonic()
                    result.answered.append((now, now - started))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()
