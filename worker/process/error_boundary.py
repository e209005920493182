"""The only place that catches every error: an error becomes a problem of its query or job, and the worker lives on."""

import logging
from collections.abc import Callable
from typing import TypeVar

from bergson_core.errors import BergsonError, Cancelled, InternalError, LeaseLost
from bergson_core.utils.disk_errors import find_disk_error
from worker.problem import Problem

logger = logging.getLogger(__name__)
T = TypeVar("T")


def run_guarded(work: Callable[[], T]) -> T | Problem:
    """Returns what `work` returns, or the problem that it met.

    The message of an unexpected error goes to the log alone, because it may contain secrets.

    Raises:
        Cancelled: The work was stopped, which is not a problem.
        LeaseLost: Another worker has the job.
    """
    try:
        return work()
    except (Cancelled, LeaseLost, KeyboardInterrupt, SystemExit):
        raise
    except BergsonError as error:
        return problem_from_error(error)
    except BaseException as error:  # a panic in Rust code, such as tokenizers, is no Exception
        logger.exception("unexpected error")
        if isinstance(error, OSError) and (named := find_disk_error(error)) is not None:
            return problem_from_error(named)
        detail = f"unexpected {type(error).__name__}: the worker's log has more"
        return Problem(code=InternalError.code, detail=detail)


def problem_from_error(error: BergsonError) -> Problem:
    """Returns the error as a problem, to be sent to the caller."""
    return Problem(code=error.code, detail=str(error))
