"""A system that waits starts its processes again, gives up on those that never work, and ends at Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bergson_core.errors import Unavailable
from bergson_core.utils.child_process import command_tied_to_parent
from service.cli.support import restarts
from service.cli.support.process_group import ProcessGroup, _ProcessLog, _telling_of_redis
from worker.queue import embedded_redis
from worker.telemetry.logs import make_formatter

NO_REDIS = "unix:///nowhere/redis.sock"


@pytest.fixture
def log(tmp_path: Path):
    log = _ProcessLog.open(tmp_path / "processes.log", "json")
    with log.file:
        yield log


def make_group(program: str, log: _ProcessLog) -> tuple[ProcessGroup, list[subprocess.Popen]]:
    """Returns a system of one worker, which runs a Python program, and the list of its starts."""
    starts: list[subprocess.Popen] = []

    def launch(name: str) -> subprocess.Popen:
        command = command_tied_to_parent([sys.executable, "-c", program])
        starts.append(subprocess.Popen(command, stdout=log.file, stderr=log.file))
        return starts[-1]

    return ProcessGroup("http://127.0.0.1:9", NO_REDIS, {"worker 1": launch("worker 1")}, launch, log), starts


def test_a_worker_that_dies_at_once_again_and_again_ends_the_system_with_the_reason(
    log: _ProcessLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(restarts, "MAX_PAUSE_S", 0.05)
    group, starts = make_group("import sys; sys.exit('no GPU here')", log)
    with pytest.raises(Unavailable) as caught:
        group.wait()
    assert len(starts) == restarts.MAX_FAILED_STARTS
    assert "worker 1 ended with status 1, for the 5th time in a row before it was ready" in str(caught.value)
    assert "no GPU here" in str(caught.value)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == restarts.MAX_FAILED_STARTS - 1
    assert warnings[0] == "warning: worker 1 ended with status 1; it is started again in 0.5 s"
    events = [json.loads(line) for line in log.path.read_text().splitlines() if line.startswith("{")]
    assert events[0]["event"] == "worker 1 ended with status 1; it is started again in 0.5 s"
    assert events[0]["level"] == "warning" and events[0]["timestamp"]


def test_a_full_disk_keeps_no_process_from_being_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "MAX_PAUSE_S", 0.05)
    with Path("/dev/full").open("ab", buffering=0) as full:
        log = _ProcessLog(Path("/dev/null"), full, 0, make_formatter("json"))
        group, starts = make_group("import sys; sys.exit(3)", log)
        with pytest.raises(Unavailable, match="for the 5th time"):
            group.wait()
    assert len(starts) == restarts.MAX_FAILED_STARTS


def test_ctrl_c_during_a_pause_ends_the_wait_at_once(
    log: _ProcessLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 100.0)
    group, starts = make_group("import os; os.kill(os.getpid(), 9)", log)

    def interrupt() -> None:
        while "SIGKILL" not in log.path.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    started = time.monotonic()
    group.wait()
    thread.join()
    assert time.monotonic() - started < 10
    assert len(starts) == 1


def test_what_becomes_of_the_embedded_redis_is_told_and_logged(
    log: _ProcessLog, capsys: pytest.CaptureFixture[str]
) -> None:
    group, _ = make_group("pass", log)
    with _telling_of_redis(group.tell):
        embedded_redis.logger.warning("the embedded Redis %s", "was killed by SIGKILL")
    embedded_redis.logger.warning("not told any more")
    assert capsys.readouterr().err.startswith("warning: the embedded Redis was killed by SIGKILL\n")
    assert [json.loads(line)["event"] for line in log.path.read_text().splitlines()] == [
        "the embedded Redis was killed by SIGKILL"
    ]
