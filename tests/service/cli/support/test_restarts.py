"""Processes that end by themselves are started again after growing pauses; those that never work are given up."""

import subprocess
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import pytest

from bergson_core.errors import Unavailable
from bergson_core.utils.child_process import describe_end
from service.cli.support import restarts
from service.cli.support.restarts import MAX_FAILED_STARTS, MAX_PAUSE_S, STEADY_S, Restarter

WORKER = "worker 1"


@dataclass
class FakeProcess:
    """A process that ends when a test says so."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


@dataclass
class FakeSystem:
    """Two processes, a clock, and the restarter that looks after them."""

    now: float = 1000.0
    working: bool = True
    told: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pids = count(100)
        self.processes = {name: self.launch(name) for name in ("web service", WORKER)}
        self.starts.clear()
        self.restarter = Restarter(
            cast("dict[str, subprocess.Popen]", self.processes),
            lambda name: cast("subprocess.Popen", self.launch(name)),
            lambda name, pid: self.working,
            self.told.append,
            worker_note="; its job goes on",
        )

    def launch(self, name: str) -> FakeProcess:
        self.starts.append(name)
        return FakeProcess(next(self._pids))

    def end(self, name: str = WORKER, status: int = -9) -> float:
        """Ends a process, waits until it is started again, and returns the seconds that this took."""
        ended_at, starts = self.now, len(self.starts)
        self.processes[name].returncode = status
        while len(self.starts) == starts:
            self.restarter.check()
            self.now += 0.125
            assert self.now - ended_at < 100
        return self.now - 0.125 - ended_at


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem()
    monkeypatch.setattr(restarts.time, "monotonic", lambda: system.now)
    system.restarter.check()
    return system


def test_a_process_that_ends_is_started_again_and_a_sentence_says_why(system: FakeSystem) -> None:
    system.end()
    assert system.starts == [WORKER]
    assert system.told == ["worker 1 was killed by SIGKILL; it is started again in 0.5 s; its job goes on"]
    system.end("web service", status=3)
    assert system.starts == [WORKER, "web service"]
    assert system.told[-1] == "the web service ended with status 3; it is started again in 0.5 s"


def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_long_run(system: FakeSystem) -> None:
    assert (
        [system.end() for _ in range(8)]
        == [0.5, 1, 2, 4, 8, 15, 15, 15]
        == [0.5, 1, 2, 4, 8, *[MAX_PAUSE_S] * 3]
    )
    system.now += STEADY_S
    assert [system.end() for _ in range(2)] == [0.5, 1]


def test_a_process_that_works_in_between_is_never_given_up(system: FakeSystem) -> None:
    for _ in range(10 * MAX_FAILED_STARTS):
        system.end()
    assert len(system.starts) == 10 * MAX_FAILED_STARTS


def test_a_worker_that_has_never_worked_had_no_job_to_tell_of(system: FakeSystem) -> None:
    system.end()
    fail_starts(system, 1)
    assert system.told[-1] == "worker 1 ended with status 1; it is started again in 1 s"


def fail_starts(system: FakeSystem, times: int) -> None:
    """Has the worker end so many times before it has worked."""
    system.working = False
    for _ in range(times):
        system.end(status=1)
    system.working = True


def test_a_process_that_never_works_is_given_up_after_some_starts(system: FakeSystem) -> None:
    system.end()
    fail_starts(system, MAX_FAILED_STARTS - 1)
    with pytest.raises(
        Unavailable, match="worker 1 ended with status 1, for the 5th time in a row before it was ready"
    ):
        fail_starts(system, 1)
    assert len(system.starts) == MAX_FAILED_STARTS


def test_a_process_that_works_once_may_fail_as_often_again(system: FakeSystem) -> None:
    system.end()
    fail_starts(system, MAX_FAILED_STARTS - 1)
    system.end()
    fail_starts(system, MAX_FAILED_STARTS - 1)


def test_a_pause_of_one_process_does_not_delay_the_restart_of_another(system: FakeSystem) -> None:
    for _ in range(5):
        system.end()
    system.processes[WORKER].returncode = -9
    system.restarter.check()
    assert system.end("web service") == 0.5
    assert system.processes[WORKER].returncode == -9


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with status 0"),
        (137, "ended with status 137"),
        (-11, "was killed by SIGSEGV"),
        (-15, "was killed by SIGTERM"),
        (-63, "was killed by signal 63"),
    ],
)
def test_an_end_is_described_by_its_status_or_signal(status: int, text: str) -> None:
    assert describe_end(status) == text
