"""`Crew`: workers that are replaced when they die and resumed when they are frozen, as an operator's machine would."""

import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, Self

from tests.faults.support.system import TIMEOUT_S, System, SystemProcess, wait_until


class Crew:
    """Keeps a number of workers at work; they are killed when the context is left.

    Args:
        system: The system that the workers belong to.
        size: How many workers are alive and not frozen.
        freeze_s: Seconds after which a frozen worker is resumed.
        settings: Settings of the workers.

    Attributes:
        workers: The workers that were alive at the last look.
    """

    def __init__(self, system: System, size: int, freeze_s: float = 0, **settings: Any):
        self._system, self._size, self._freeze_s, self._settings = system, size, freeze_s, settings
        self.workers: list[SystemProcess] = []
        self._frozen_at: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()

    def tend(self) -> None:
        """Replaces workers that have died, and resumes those that have been frozen for long enough."""
        now = time.monotonic()
        self.workers = [worker for worker in self.workers if worker.is_alive()]
        frozen = [worker for worker in self.workers if worker.is_frozen()]
        for worker in frozen:
            if worker.pid not in self._frozen_at:
                self._frozen_at[worker.pid] = now
            elif now - self._frozen_at[worker.pid] > self._freeze_s:
                del self._frozen_at[worker.pid]
                worker.resume()
        for _ in range(self._size - len(self.workers) + len(frozen)):
            self.workers.append(self._system.start_worker(**self._settings))

    def count_moments(self) -> int:
        """Returns how many moments the jobs of the system have reached, in all workers together."""
        reached = self._system.plan / "reached"
        return reached.read_bytes().count(b"\n") if reached.exists() else 0

    def finish(self) -> None:
        """Stops all workers, also frozen ones, and waits until they have ended."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            wait_until(lambda worker=worker: _has_ended(worker), f"worker {worker.pid} ends")
        self.workers = []

    def run(
        self,
        tasks: Iterable[Callable[[], Any]],
        between: Callable[[], object] = lambda: None,
        timeout_s: float = 15 * TIMEOUT_S,
    ) -> list[Any]:
        """Runs all tasks side by side, each in a thread, while the workers are kept at work.

        Args:
            tasks: What a client of the service does.
            between: Called again and again meanwhile.
            timeout_s: Seconds after which the run fails.

        Returns:
            What the tasks returned. If some have raised an error, the first error is raised once all have ended.
        """
        tasks, end = list(tasks), time.monotonic() + timeout_s
        with ThreadPoolExecutor(max(1, len(tasks))) as threads:
            futures: list[Future[Any]] = [threads.submit(task) for task in tasks]
            while not all(future.done() for future in futures):
                assert time.monotonic() < end, f"the tasks have not ended within {timeout_s:g} s"
                self.tend()
                between()
                time.sleep(0.02)
        return [future.result() for future in futures]


def _has_ended(worker: SystemProcess) -> bool:
    if worker.is_frozen():
        worker.resume()
    return not worker.is_alive()


class Misfortune:
    """Lets workers of a crew die, freeze or stop at random moments: again and again, after some progress of the jobs.

    Args:
        crew: The workers.
        random: Draws the moments, the workers and the signals.
        count: How many times.
    """

    _PAUSE_S = 3.0
    """Seconds after which the next signal comes if the jobs make no progress."""

    def __init__(self, crew: Crew, random: Random, count: int):
        self._crew, self._random, self.remaining = crew, random, count
        self.peak_memory_bytes = 0
        self._draw()

    def __call__(self) -> None:
        """Sends the next signal if its moment has come. `Crew.run` calls this between its other tasks."""
        is_due = self._crew.count_moments() >= self._due_count or time.monotonic() >= self._due_at
        workers = [worker for worker in self._crew.workers if worker.is_alive() and not worker.is_frozen()]
        if self.remaining == 0 or not is_due or not workers:
            return
        worker = self._random.choice(workers)
        (number,) = self._random.choices([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], [8, 1, 1])
        self.peak_memory_bytes = max(self.peak_memory_bytes, worker.memory_bytes())
        worker.send(number)
        self.remaining -= 1
        self._draw()

    def _draw(self) -> None:
        self._due_count = self._crew.count_moments() + self._random.randint(1, 20)
        self._due_at = time.monotonic() + self._PAUSE_S
