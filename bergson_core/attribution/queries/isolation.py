"""Answers queries together, and separately where one of them fails, so that no query fails for another's fault."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from bergson_core.errors import BergsonError, IndexCorrupt, InternalError, TooLong, Unavailable
from bergson_core.models.loading import is_out_of_memory

logger = logging.getLogger(__name__)

Query = TypeVar("Query")
Result = TypeVar("Result")


def run_or_error(work: Callable[[], Result]) -> Result | BergsonError:
    """Returns what `work` returns, or the error that it has raised, as a `BergsonError`.

    An unexpected error is logged.
    """
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BergsonError as error:
        return error
    except BaseException as error:  # a panic in Rust code, such as tokenizers, is no Exception
        if is_out_of_memory(error):
            return TooLong(
                "there is not enough memory for this query: shorten the prompt, ask for less, or take a larger "
                f"machine ({type(error).__name__})"
            )
        logger.exception("unexpected error")
        return InternalError.because(error)


def run_together_or_alone(
    queries: Sequence[Query], work: Callable[[Sequence[Query]], Sequence[Result | BergsonError]]
) -> list[Result | BergsonError]:
    """Returns the results of `work` for queries, or the errors for which they have none.

    Args:
        queries: The queries.
        work: Returns a result for each of the queries that it is given. If it raises for all of them together, it is
            called for each of them alone, so that only the query at fault has no result.

    Raises:
        IndexCorrupt: The index is at fault, so that no query can be answered.
        Unavailable: The cluster that holds the index does not answer.
    """
    together = run_or_error(lambda: work(queries))
    if not isinstance(together, BergsonError):
        return list(together)
    if isinstance(together, IndexCorrupt | Unavailable):
        raise together
    if len(queries) == 1:
        return [together]
    logger.warning("%d queries failed together and are answered one by one: %s", len(queries), together)
    results: list[Result | BergsonError] = []
    for query in queries:
        results += run_together_or_alone([query], work)
    return results
