"""A worker that kills or freezes itself at a chosen moment of its first job.

It is the real worker in a process of its own; only the callbacks through which a job reports its progress are wrapped.
Moments are chosen in the worker, since a test that polls from outside would miss stages that take milliseconds.
"""

import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = (
    "start",
    "load",
    "read",
    "statistics",
    "gradients",
    "preconditioner",
    "search",
    "measure",
    "confirm",
    "done",
    "finish",
)
"""The moments of a build: `start` is before its first stage, `confirm` before each renewal of the lease that precedes
a publication, and `finish` after the publication and before the job's end is recorded."""


@dataclass(frozen=True)
class Fault:
    """A signal that a worker sends to itself.

    Args:
        stage: One of `STAGES`, or a stage of another kind of job.
        signal: What the worker sends to itself: SIGKILL, SIGSTOP or SIGTERM.
        occurrence: Which report of the stage it is: 1 is the first.
    """

    stage: str
    signal: int = signal.SIGKILL
    occurrence: int = 1


def run_worker(environment: dict[str, str], log: Path, fault: Fault | None = None) -> None:
    """Runs a worker with these variables of the environment; its output goes to `log`."""
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if fault is not None:
        _inject(fault)
    from worker.__main__ import main

    main()


def _inject(fault: Fault) -> None:
    from bergson_core.utils import background
    from worker.process import job_handlers
    from worker.process.runner import Runner

    iterate_while_running, remaining = background.iterate_while_running, fault.occurrence

    def report_first(work: Callable[[], Any], item: Any) -> Generator[Any, None, Any]:
        """Reports the stage of work in a thread, which may be done before its first report is due."""
        yield item
        return (yield from iterate_while_running(work, item))

    background.iterate_while_running = report_first

    def reach(stage: str) -> None:
        nonlocal remaining
        if stage == fault.stage:
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), fault.signal)

    def wrap(function: Callable[..., Any], read_stage: Callable[..., str]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            reach(read_stage(*arguments))
            return function(*arguments, **options)

        return wrapped

    for owner, name, read_stage in (
        (job_handlers, "run_job", lambda *_: "start"),
        (Runner, "_report", lambda runner, claim, progress: progress.stage),
        (Runner, "_confirm", lambda *_: "confirm"),
        (Runner, "_finish_job", lambda *_: "finish"),
    ):
        setattr(owner, name, wrap(getattr(owner, name), read_stage))
