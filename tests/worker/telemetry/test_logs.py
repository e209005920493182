"""The log: one line an event, in two forms, about whom it is about, and nobody else writes lines into it."""

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from redis import Redis

from tests.worker.fakes import FakeCore, publish, question
from tests.worker.helpers import REPOSITORY, send, submit, until
from worker.process.runner import Runner
from worker.settings import LogFormat, Settings
from worker.telemetry import logs

logger = logging.getLogger("some.module")
FORGED = "innocent\n2026-03-01T12:00:00Z INFO worker.process.runner: forged\x1b[2J\u2028\r"


@contextmanager
def configured(form: LogFormat, stream: io.StringIO | None = None) -> Iterator[io.StringIO]:
    """The process's log as it is set up for a service, for as long as the context is open."""
    root, stream = logging.getLogger(), stream or io.StringIO()
    before, level = root.handlers[:], root.level
    root.handlers.clear()  # what pytest has there must not be closed
    try:
        logs.configure(form, "info", stream)
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_the_message_where_it_comes_from_what_it_is_about_and_its_fields():
    with configured("json") as stream, logs.context(request_id="r-1"):
        logger.info("GET %s", "/jobs", extra={"path": "/jobs", "duration_ms": 3.1})
    (line,) = json_lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "GET /jobs",
        "level": "info",
        "logger": "some.module",
        "request_id": "r-1",
        "path": "/jobs",
        "duration_ms": 3.1,
    }


def test_text_has_the_message_and_what_it_is_about():
    with configured("text") as stream, logs.context(request_id="r-1", job_id="j-1"):
        logger.warning("disk %s", "full", extra={"path": "/data"})
    _, rest = stream.getvalue().split(" ", 1)
    assert rest == "WARNING some.module: disk full job_id=j-1 request_id=r-1\n"


def test_left_to_itself_it_is_text_on_a_terminal_and_json_elsewhere():
    with configured("auto", Terminal()) as stream:
        logger.info("hello")
    assert stream.getvalue().endswith("INFO some.module: hello\n")
    with configured("auto") as stream:
        logger.info("hello")
    assert json_lines(stream)[0]["event"] == "hello"


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_callers_line_breaks_begin_no_line_and_steer_no_terminal(form: Literal["json", "text"]):
    with configured(form) as stream, logs.context(index=FORGED):
        logger.info("no model %s", FORGED, extra={"path": FORGED})
    (line,) = stream.getvalue().splitlines()
    assert "forged" in line and line.isprintable()


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_is_told_in_full_below_its_line(form: Literal["json", "text"]):
    with configured(form) as stream:
        try:
            raise RuntimeError(FORGED)
        except RuntimeError:
            logger.exception("unexpected error")
    first, *below = stream.getvalue().splitlines()
    assert "unexpected error" in first
    if form == "text":
        assert "Traceback" in below[0] and all(line.startswith("    ") for line in below)
        assert "\x1b" not in stream.getvalue()
    else:
        assert below == [] and "Traceback" in json.loads(first)["exception"]


def test_what_uvicorn_and_ray_add_to_a_message_is_left_out():
    with configured("json") as stream:
        record = logging.makeLogRecord(
            {"name": "some.server", "levelno": 20, "levelname": "INFO", "msg": "Started"}
        )
        record.color_message, record._ray_timestamp_ns = "\x1b[36mStarted", 1
        logging.getLogger("some.server").handle(record)
    assert {"color_message", "_ray_timestamp_ns"}.isdisjoint(json_lines(stream)[0])


def test_a_library_that_writes_for_itself_writes_here_instead():
    library, own = logging.getLogger("some_library"), io.StringIO()
    library.addHandler(logging.StreamHandler(own))
    library.propagate = False
    with configured("json") as stream:
        logs.redirect_libraries()
        logging.getLogger("some_library.part").warning("careful")
    assert own.getvalue() == ""
    assert [line["event"] for line in json_lines(stream)] == ["careful"]


def test_warnings_of_libraries_are_events_as_well():
    with configured("json") as stream:
        logging.captureWarnings(False)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
    assert [line["logger"] for line in json_lines(stream)] == ["py.warnings"]


def test_what_is_logged_is_about_the_innermost_context_alone():
    with configured("json") as stream, logs.context(request_id="job"):
        with logs.context(request_ids=["a", "b"]):
            logger.info("inside")
        logger.info("outside")
    inside, outside = json_lines(stream)
    assert "request_id" not in inside and inside["request_ids"] == ["a", "b"]
    assert "request_ids" not in outside and outside["request_id"] == "job"


def test_another_thread_is_about_nothing():
    with configured("json") as stream, logs.context(request_id="r-1"):
        thread = threading.Thread(target=lambda: logger.info("hello"))
        thread.start()
        thread.join()
    assert "request_id" not in json_lines(stream)[0]


def test_a_worker_logs_the_requests_that_it_works_for(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Callable[[], Runner]
):
    publish(settings.indexes_dir / "facts")
    with configured("json") as stream:
        send(redis, "q-1", query=question("crash"), request_id="r-1")
        send(redis, "q-2", request_id="r-2")
        submit(redis, "j-1", "new")
        start_worker()
        until(lambda: "job j-1 has succeeded" in stream.getvalue())
    lines = json_lines(stream)
    (crashed,) = (line for line in lines if line["event"] == "unexpected error")
    assert crashed["request_ids"] == ["r-1", "r-2"]
    jobs = [line for line in lines if line["event"].startswith("job j-1")]
    assert [(line["request_id"], line["job_id"]) for line in jobs] == [("r", "j-1")] * 2


def test_a_form_that_there_is_not_is_named():
    ran = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=REPOSITORY,
        env={"BERGSON_LOG_FORMAT": "xml", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "log_format" in ran.stderr and "Traceback" not in ran.stderr
