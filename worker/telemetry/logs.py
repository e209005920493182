"""Writes the log of a process, of this code and of its libraries alike, to standard error.

Everything is logged with `logging`; structlog adds the fields of the current context and formats the lines. There are
two formats:

    text   2026-03-01T12:00:00Z INFO service.http.middleware: GET /jobs 200 3.1 ms request_id=0f3a…
    json   {"event": "GET /jobs 200 3.1 ms", "level": "info", "logger": "service.http.middleware", "timestamp": …,
            "request_id": "0f3a…", "method": "GET", "path": "/jobs", "status": 200, "duration_ms": 3.1}

A text line has the message, for people; a JSON line also has the fields of `extra`. An event is one line, and a caller
cannot begin a new one: line breaks in its input are escaped in both formats. The lines of a traceback are indented in
the text format.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.settings import LogFormat, LogLevel

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # break lines, or control a terminal


def configure(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Sends all logs of this process to a stream, in place of what was configured before.

    Args:
        log_format: Format of the lines.
        level: Lowest level that is logged.
        stream: Where the lines go; standard error by default.
    """
    handler = logging.StreamHandler(stream)
    is_text = log_format == "text" or (log_format == "auto" and handler.stream.isatty())
    handler.setFormatter(make_formatter("text" if is_text else "json"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def redirect_libraries() -> None:
    """Makes imported libraries that have log handlers of their own (transformers, torch) log here instead."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def make_formatter(log_format: Literal["json", "text"]) -> logging.Formatter:
    """Returns a formatter that writes the records of `logging` in this format."""
    pre_chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_log_level,
        add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    if log_format == "json":
        pre_chain += [ExtraAdder(), _drop_noise]
    processors: list[Processor] = [
        ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer() if log_format == "json" else _render_text,
    ]
    return ProcessorFormatter(processors=processors, foreign_pre_chain=pre_chain)


def set_context(**fields: object) -> None:
    """Adds `fields` to what this task or thread logs from now on, in place of the fields it added before."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**fields)


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """Adds `fields` to what is logged while the context is open, in place of the fields of an outer context."""
    outer_fields = structlog.contextvars.get_contextvars()
    set_context(**fields)
    try:
        yield
    finally:
        set_context(**outer_fields)


def _drop_noise(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Removes fields that repeat others: uvicorn adds each message again with terminal colours, and Ray the time."""
    for key in ("color_message", "_ray_timestamp_ns"):
        event.pop(key, None)
    return event


def _render_text(logger: WrappedLogger, name: str, event: EventDict) -> str:
    """Returns one line, and below it, indented, the traceback or stack if there is one."""
    timestamp, level, logger_name, message = (
        event.pop(key) for key in ("timestamp", "level", "logger", "event")
    )
    traceback = [
        line for key in ("exception", "stack") for line in str(event.pop(key, "")).split("\n") if line
    ]
    fields = "".join(f" {key}={event[key]}" for key in sorted(event))
    first_line = f"{timestamp} {level.upper()} {logger_name}: {message}{fields}"
    return "\n    ".join(_escape(line) for line in [first_line, *traceback])


def _escape(line: str) -> str:
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], line)
