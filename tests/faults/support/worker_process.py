"""A worker that kills or freezes itself at chosen moments of its jobs.

It is the real worker in a process of its own; only functions through which each job passes are wrapped. Moments are
chosen in the worker, since a test that polls from outside would miss those that take milliseconds.

A fault is either that of a worker, which meets it in its first job that gets there, or is planned for a job: a file
<plan>/<name of the index>@<moment> with the number of the signal, which the first worker to get there removes. An
estimate has no index; its name is `estimate`. Each worker appends a line to <plan>/reached for each moment that it
reaches: its process id, the name and the moment.
"""

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

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
"""Moments of a build: its stages, and further ones that `MOMENTS` explains."""

_BUILD = (
    *("take", "start", "load", "read", "statistics", "gradients", "confirm", "accept", "measure"),
    *("preconditioner", "search", "flush", "manifest", "tidy", "done", "finish", "end"),
)
MOMENTS: Final[dict[str, tuple[str, ...]]] = {
    "build": _BUILD,
    "inline": _BUILD,
    "append": (
        *("take", "start", "load", "read", "gradients", "confirm", "accept", "search", "measure"),
        *("flush", "manifest", "tidy", "done", "finish", "end"),
    ),
    "profile": (
        *(
            "take",
            "start",
            "preconditioner",
            "confirm",
            "search",
            "flush",
            "manifest",
            "tidy",
            "finish",
            "end",
        ),
    ),
    "compact": (
        *("take", "start", "accept", "compact", "search", "flush", "confirm", "manifest", "tidy"),
        *("finish", "end"),
    ),
    "estimate": (
        *("take", "start", "load", "read", "statistics", "gradients", "measure"),
        *("preconditioner", "search", "done"),
        *("finish", "end"),
    ),
}
"""The moments of each kind of job, in the order of their first occurrence.

Beside the stages that it reports, they are: `take`, when the start of the job has been counted and its message was not
read yet; `start`, before its first stage; `confirm`, before the lease is renewed for a shard or a publication;
`accept`, when a shard is written and gets its name; `flush`, before a publication; `manifest`, when the lease was
confirmed and the manifest is not written yet; `tidy`, when it is, and old files are not removed yet; `finish`, before
the end of the job is recorded; and `end`, after that."""

HOLD: Final = 0
"""In place of a signal: the worker stays at the moment until the test removes the file <plan>/<name>.held."""


@dataclass(frozen=True)
class Fault:
    """A signal that a worker sends to itself.

    Args:
        stage: One of the moments of the job.
        signal: What the worker sends to itself: SIGKILL, SIGSTOP, SIGTERM, or `HOLD`.
        occurrence: Which occurrence of the moment it is: 1 is the first.
    """

    stage: str
    signal: int = signal.SIGKILL
    occurrence: int = 1


def plan_fault(plan: Path, name: str, fault: Fault) -> Path:
    """Plans a fault for the job on the index `name`, and returns a file that is gone once the fault has happened."""
    path = plan / f"{name}@{fault.stage}"
    path.write_text(str(int(fault.signal)))
    return path


def run_worker(environment: dict[str, str], log: Path, plan: Path, faults: Sequence[Fault] = ()) -> None:
    """Runs a worker with these variables of the environment, which meets `faults` one after the other.

    Its output goes to `log`.
    """
    enter_process(environment, log)
    _wrap_moments(_Injector(plan, faults))
    from worker.__main__ import main

    main()


def enter_process(environment: dict[str, str], log: Path) -> None:
    """Gives this process variables of the environment, and appends its output to `log`."""
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class _Injector:
    """Is told of each moment that the worker reaches, and lets it meet its faults there."""

    def __init__(self, plan: Path, faults: Sequence[Fault]):
        self._plan, self._pending, self._passed = plan, list(faults), 0
        self._reached = os.open(plan / "reached", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._name = self._latest = ""

    def begin_job(self, name: str | None) -> None:
        self._name, self._latest = name or "estimate", ""

    def reach(self, moment: str) -> None:
        if moment != self._latest:
            self._latest = moment
            with suppress(OSError):  # a test may have filled the disk
                os.write(self._reached, f"{os.getpid()} {self._name} {moment}\n".encode())
        if self._pending and self._pending[0].stage == moment:
            self._passed += 1
            if self._passed == self._pending[0].occurrence:
                self._passed = 0
                self._meet(self._pending.pop(0).signal)
        planned = self._plan / f"{self._name}@{moment}"
        if planned.exists():
            number = int(planned.read_text())
            try:
                planned.unlink()
            except FileNotFoundError:
                return  # another worker was first
            self._meet(number)

    def _meet(self, number: int) -> None:
        if number != HOLD:
            os.kill(os.getpid(), number)
            return
        held = self._plan / f"{self._name}.held"
        held.touch()
        while held.exists():
            time.sleep(0.01)


def _wrap_moments(injector: _Injector) -> None:
    from bergson_core.indexing import publish
    from bergson_core.shards.shard_writer import WrittenShard
    from bergson_core.utils import background
    from worker.process import job_handlers
    from worker.process.runner import Runner
    from worker.queue.job_queue import WorkerQueue

    iterate_while_running = background.iterate_while_running

    def report_first(work: Callable[[], Any], item: Any) -> Generator[Any, None, Any]:
        """Reports the stage of work in a thread, which may be done before its first report is due."""
        yield item
        return (yield from iterate_while_running(work, item))

    background.iterate_while_running = report_first

    def wrap(owner: Any, name: str, before: Callable[..., object] = lambda *_: None, after: str = "") -> None:
        function = getattr(owner, name)

        @wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            before(*arguments)
            result = function(*arguments, **options)
            if after:
                injector.reach(after)
            return result

        setattr(owner, name, wrapped)

    def begin(queue: WorkerQueue, record: Any) -> None:
        injector.begin_job(record.index)
        injector.reach("take")

    wrap(WorkerQueue, "_read_job", begin)
    wrap(Runner, "_report", lambda runner, claim, progress: injector.reach(progress.stage))
    for owner, name, moment in (
        (job_handlers, "run_job", "start"),
        (Runner, "_confirm", "confirm"),
        (WrittenShard, "accept", "accept"),
        (publish, "flush_files", "flush"),
        (publish, "write_manifest", "manifest"),
        (publish, "remove_unpublished_files", "tidy"),
        (Runner, "_finish_job", "finish"),
    ):
        wrap(owner, name, lambda *_, moment=moment: injector.reach(moment))
    wrap(WorkerQueue, "finish", after="end")
