"""Where errors become problems: the one place that catches whatever there is, so that a worker lives on."""

import logging
from collections.abc import Callable
from typing import TypeVar

from bergson_core.errors import BergsonError, Cancelled, LeaseLost
from worker.messages import Problem

logger = logging.getLogger(__name__)
T = TypeVar("T")


def run_guarded(work: Callable[[], T]) -> T | Problem:
    """What `work` returns, or the problem that it met. Being stopped is not a problem and comes through."""
    try:
        return work()
    except (Cancelled, LeaseLost):
        raise
    except BergsonError as error:
        return problem_from_error(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # it is this query's or job's, not the worker's; a panic of Rust is no Exception
        logger.exception("unexpected error")
        return Problem(
            code="internal", detail=f"unexpected {type(error).__name__}: the worker's log has more"
        )


def problem_from_error(error: BergsonError) -> Problem:
    return Problem(code=error.code, detail=str(error))
