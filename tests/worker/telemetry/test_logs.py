"""The log: one line for each event, in two formats, with the fields of its context; no input begins a line in it."""

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

from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import REPOSITORY, send_query, submit_job, wait_until
from worker.process.runner import Runner
from worker.settings import LogFormat, Settings
from worker.telemetry import logs

logger = logging.getLogger("some.module")
FORGED = "innocent\n2026-03-01T12:00:00Z INFO worker.process.runner: forged\x1b[2J\u2028\r"


@contextmanager
def configured_log(form: LogFormat, stream: io.StringIO | None = None) -> Iterator[io.StringIO]:
    """Yields a stream with the log of this process, which is configured as in a service while the context is open."""
    root, stream = logging.getLogger(), stream or io.StringIO()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # the handlers of pytest must not be closed
    try:
        logs.configure(form, "info", stream)
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def parse_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_the_message_its_origin_its_context_and_its_fields():
    with configured_log("json") as stream, logs.context(request_id="r-1"):
        logger.info("GET %s", "/jobs", extra={"path": "/jobs", "duration_ms": 3.1})
    (line,) = parse_lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "GET /jobs",
        "level": "info",
        "logger": "some.module",
        "request_id": "r-1",
        "path": "/jobs",
        "duration_ms": 3.1,
    }


def test_a_text_line_has_the_message_and_its_context():
    with configured_log("text") as stream, logs.context(request_id="r-1", job_id="j-1"):
        logger.warning("disk %s", "full", extra={"path": "/data"})
    _, rest = stream.getvalue().split(" ", 1)
    assert rest == "WARNING some.module: disk full job_id=j-1 request_id=r-1\n"


def test_by_default_the_log_is_text_on_a_terminal_and_json_elsewhere():
    with configured_log("auto", Terminal()) as stream:
        logger.info("hello")
    assert stream.getvalue().endswith("INFO some.module: hello\n")
    with configured_log("auto") as stream:
        logger.info("hello")
    assert parse_lines(stream)[0]["event"] == "hello"


@pytest.mark.parametrize("form", ["json", "text"])
def test_line_breaks_of_a_caller_begin_no_line_and_control_no_terminal(form: Literal["json", "text"]):
    with configured_log(form) as stream, logs.context(index=FORGED):
        logger.info("no model %s", FORGED, extra={"path": FORGED})
    (line,) = stream.getvalue().splitlines()
    assert "forged" in line and line.isprintable()


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_has_its_traceback_below_its_line(form: Literal["json", "text"]):
    with configured_log(form) as stream:
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


def test_fields_that_uvicorn_and_ray_add_are_left_out():
    with configured_log("json") as stream:
        record = logging.makeLogRecord(
            {"name": "some.server", "levelno": 20, "levelname": "INFO", "msg": "Started"}
        )
        record.color_message, record._ray_timestamp_ns = "\x1b[36mStarted", 1
        logging.getLogger("some.server").handle(record)
    assert {"color_message", "_ray_timestamp_ns"}.isdisjoint(parse_lines(stream)[0])


def test_a_library_with_its_own_handler_logs_here_instead():
    library, own = logging.getLogger("some_library"), io.StringIO()
    library.addHandler(logging.StreamHandler(own))
    library.propagate = False
    with configured_log("json") as stream:
        logs.redirect_libraries()
        logging.getLogger("some_library.part").warning("careful")
    assert own.getvalue() == ""
    assert [line["event"] for line in parse_lines(stream)] == ["careful"]


def test_warnings_of_libraries_are_events_as_well():
    with configured_log("json") as stream:
        logging.captureWarnings(False)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
    assert [line["logger"] for line in parse_lines(stream)] == ["py.warnings"]


def test_a_line_has_the_fields_of_the_innermost_context_only():
    with configured_log("json") as stream, logs.context(request_id="job"):
        with logs.context(request_ids=["a", "b"]):
            logger.info("inside")
        logger.info("outside")
    inside, outside = parse_lines(stream)
    assert "request_id" not in inside and inside["request_ids"] == ["a", "b"]
    assert "request_ids" not in outside and outside["request_id"] == "job"


def test_another_thread_has_no_context():
    with configured_log("json") as stream, logs.context(request_id="r-1"):
        thread = threading.Thread(target=lambda: logger.info("hello"))
        thread.start()
        thread.join()
    assert "request_id" not in parse_lines(stream)[0]


def test_a_worker_logs_the_ids_of_the_requests_that_it_works_for(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Callable[[], Runner]
):
    publish_index(settings.indexes_dir / "facts")
    with configured_log("json") as stream:
        send_query(redis, "q-1", query=make_query("crash"), request_id="r-1")
        send_query(redis, "q-2", request_id="r-2")
        submit_job(redis, "j-1", "new")
        start_worker()
        wait_until(lambda: "job j-1 has succeeded" in stream.getvalue())
    lines = parse_lines(stream)
    crashed = [line["request_ids"] for line in lines if line["event"] == "unexpected error"]
    assert crashed == [["r-1", "r-2"], ["r-1"]]  # together, and then the one at fault alone
    jobs = [line for line in lines if line["event"].startswith("job j-1")]
    assert [(line["request_id"], line["job_id"]) for line in jobs] == [("r", "j-1")] * 2


def test_an_unknown_format_is_an_error_that_names_the_setting():
    ran = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=REPOSITORY,
        env={"BERGSON_LOG_FORMAT": "xml", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "BERGSON_LOG_FORMAT" in ran.stderr and "Traceback" not in ran.stderr
