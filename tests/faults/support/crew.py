"""`Crew`: workers that are replaced when they die and resumed when they are frozen, as an operator's machine would."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tests.faults.support.system import TIMEOUT_S, System, SystemProcess


class Crew:
    """Keeps a number of workers at work.

    Args:
        system: The system that the workers belong to.
        size: How many workers are alive and not frozen.
        freeze_s: Seconds after which a frozen worker is resumed.
        settings: Settings of the workers.

    Attributes:
        deaths: How many workers have died.
        freezes: How many times a worker was frozen.
    """

    def __init__(self, system: System, size: int, freeze_s: float = 0, **settings: object):
        self._system, self._size, self._freeze_s, self._settings = system, size, freeze_s, settings
        self.workers: list[SystemProcess] = []
        self._frozen_at: dict[int, float] = {}
        self.deaths = self.freezes = 0

    def tend(self) -> None:
        """Replaces workers that have died, and resumes those that have been frozen for long enough."""
        now = time.monotonic()
        dead = [worker for worker in self.workers if not worker.is_alive()]
        self.deaths += len(dead)
        self.workers = [worker for worker in self.workers if worker not in dead]
        frozen = [worker for worker in self.workers if worker.is_frozen()]
        for worker in frozen:
            if worker.pid not in self._frozen_at:
                self._frozen_at[worker.pid] = now
                self.freezes += 1
            elif now - self._frozen_at[worker.pid] > self._freeze_s:
                del self._frozen_at[worker.pid]
                worker.resume()
        for _ in range(self._size - len(self.workers) + len(frozen)):
            self.workers.append(self._system.start_worker(**self._settings))

    def resume_all(self) -> None:
        """Resumes all frozen workers."""
        for worker in self.workers:
            if worker.is_frozen():
                worker.resume()

    def finish(self) -> None:
        """Stops all workers, and waits until they have ended."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait()
        self.workers = []

    def kill_all(self) -> None:
        """Kills all workers."""
        for worker in self.workers:
            worker.kill()
        self.workers = []

    def run(
        self,
        tasks: Iterable[Callable[[], Any]],
        between: Callable[[], object] = lambda: None,
        timeout_s: float = 4 * TIMEOUT_S,
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
                time.sleep(0.01)
        return [future.result() for future in futures]
