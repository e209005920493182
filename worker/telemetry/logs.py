"""The log of a process, of this code and of the libraries alike, on standard error. No torch here.

Everything goes through `logging`; structlog adds what it is about and writes it down. Two forms:

    text   2026-03-01T12:00:00Z INFO service.http.middleware: GET /jobs 200 3.1 ms request_id=0f3a…
    json   {"event": "GET /jobs 200 3.1 ms", "level": "info", "logger": "service.http.middleware", "timestamp": …,
            "request_id": "0f3a…", "method": "GET", "path": "/jobs", "status": 200, "duration_ms": 3.1}

Text has the message, for people; JSON also the fields of `extra`. One event is one line that only we begin: a caller's
line breaks are escaped in both, and in text each line of a traceback is indented.
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

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # breaks lines, or steers a terminal


def configure(form: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Sends all logs of this process to `stream`, standard error by default, in place of what was set up before."""
    handler = logging.StreamHandler(stream)
    is_text = form == "text" or (form == "auto" and handler.stream.isatty())
    handler.setFormatter(make_formatter("text" if is_text else "json"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def redirect_libraries() -> None:
    """Makes libraries that were loaded by now and write for themselves (transformers, torch) write here instead."""
    for one in logging.root.manager.loggerDict.values():
        if isinstance(one, logging.Logger) and one.handlers:
            one.handlers.clear()
            one.propagate = True


def make_formatter(form: Literal["json", "text"]) -> logging.Formatter:
    """What writes down the records of `logging` in this form."""
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_log_level,
        add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    if form == "json":
        before += [ExtraAdder(), _without_noise]
    after: list[Processor] = [
        ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer() if form == "json" else _text,
    ]
    return ProcessorFormatter(processors=after, foreign_pre_chain=before)


def set_context(**fields: object) -> None:
    """From here on what this task or thread logs is about `fields`, and about nothing that was before."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**fields)


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """While the context is open, what is logged is about `fields` and not about what was before."""
    before = structlog.contextvars.get_contextvars()
    set_context(**fields)
    try:
        yield
    finally:
        set_context(**before)


def _without_noise(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """uvicorn sends each message a second time, with the colours of a terminal, and Ray the time."""
    for key in ("color_message", "_ray_timestamp_ns"):
        event.pop(key, None)
    return event


def _text(logger: WrappedLogger, name: str, event: EventDict) -> str:
    """One line, and below it, indented, what an exception or the stack has to say."""
    head = [event.pop(key) for key in ("timestamp", "level", "logger", "event")]
    below = [part for key in ("exception", "stack") for part in str(event.pop(key, "")).split("\n") if part]
    context = "".join(f" {key}={event[key]}" for key in sorted(event))
    line = f"{head[0]} {head[1].upper()} {head[2]}: {head[3]}{context}"
    return "\n    ".join(_UNSAFE.sub(lambda found: ascii(found[0])[1:-1], part) for part in [line, *below])
