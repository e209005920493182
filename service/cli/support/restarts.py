"""Starts processes again that end by themselves, after pauses that grow, and gives up on those that never work."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bergson_core.errors import Unavailable
from bergson_core.utils.child_process import describe_end

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 15.0
STEADY_S: Final = 30.0
"""After a process has run for so long, the pause after its end is the first one again."""
MAX_FAILED_STARTS: Final = 5
"""So many times in a row a process may end before it has worked."""


@dataclass
class _History:
    """What is known of the starts of one process."""

    started_at: float = field(default_factory=time.monotonic)
    has_worked: bool = False
    failed_starts: int = 0
    pause_s: float = field(default_factory=lambda: FIRST_PAUSE_S)
    """The length of the next pause."""
    restart_at: float | None = None
    """When the process is to be started again; None while it runs."""


class Restarter:
    """Looks after processes that should run until they are stopped.

    The web process and the workers are treated alike. A process that ends after it has worked is started again however
    often that happens, since the cause may be a single query or job, or somebody who kills it. A process that ends
    before it has worked will hardly work the next time, so that there are only `MAX_FAILED_STARTS` attempts.

    Args:
        processes: The running processes by name. New ones take the place of those that have ended.
        launch: Starts the process of a name.
        works: Returns whether the process of a name and a process id has been up and ready.
        tell: Called with a sentence about each end, which says when the next start is.
        worker_note: What follows in this sentence if a worker has ended after it had worked.
    """

    def __init__(
        self,
        processes: dict[str, subprocess.Popen],
        launch: Callable[[str], subprocess.Popen],
        works: Callable[[str, int], bool],
        tell: Callable[[str], None],
        worker_note: str = "",
    ):
        self._processes, self._launch, self._works, self._tell = processes, launch, works, tell
        self._worker_note = worker_note
        self._histories = {name: _History() for name in processes}

    def check(self) -> None:
        """Looks at each process once, and starts those whose pause is over. Never waits.

        Raises:
            Unavailable: A process has ended too often before it worked.
        """
        for name, history in self._histories.items():
            process, now = self._processes[name], time.monotonic()
            if history.restart_at is not None:
                if now >= history.restart_at:
                    self._processes[name] = self._launch(name)
                    history.started_at, history.has_worked, history.restart_at = now, False, None
                continue
            has_ended = process.poll() is not None
            if not history.has_worked and self._works(name, process.pid):
                history.has_worked, history.failed_starts = True, 0
            if has_ended:
                self._plan_restart(name, history, describe_end(process.returncode))

    def _plan_restart(self, name: str, history: _History, end: str) -> None:
        now = time.monotonic()
        if not history.has_worked:
            history.failed_starts += 1
            if history.failed_starts >= MAX_FAILED_STARTS:
                raise Unavailable(
                    f"{with_article(name)} {end}, for the {history.failed_starts}th time in a row before it was ready"
                )
        if now - history.started_at >= STEADY_S:
            history.pause_s = FIRST_PAUSE_S
        note = self._worker_note if history.has_worked and name.startswith("worker") else ""
        self._tell(f"{with_article(name)} {end}; it is started again in {history.pause_s:g} s{note}")
        history.restart_at = now + history.pause_s
        history.pause_s = min(2 * history.pause_s, MAX_PAUSE_S)


def with_article(name: str) -> str:
    """Returns the name of a process as a sentence has it: `the web service`, `worker 1`."""
    return name if name[-1].isdigit() else f"the {name}"
