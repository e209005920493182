"""Work on an answer that is divided into steps, between which other queries are answered."""

import time
from collections.abc import Generator
from typing import Literal, TypeVar

from bergson_core.schemas.results import Answer
from bergson_core.schemas.totals.results import InfluenceTotals

T = TypeVar("T")
Timed = TypeVar("Timed", Answer, InfluenceTotals)
Steps = Generator[object, None, T]
"""Work that may be given up after each step; the generator returns its result."""


def with_timing(
    steps: Steps[Timed], answer: Answer, part: Literal["search", "rescore", "words", "verify"]
) -> Steps[Timed]:
    """Returns what the steps return, with how long they took, without the time that passed between them.

    Args:
        steps: The steps.
        answer: The answer that the steps begin with.
        part: The field of `TimingMs` that the time is added to.
    """
    spent_ms = 0.0
    while True:
        started = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            spent_ms += 1000 * (time.perf_counter() - started)
            timing = answer.timing_ms
            timing = timing.model_copy(
                update={part: getattr(timing, part) + spent_ms, "total": timing.total + spent_ms}
            )
            return end.value.model_copy(update={"timing_ms": timing})
        spent_ms += 1000 * (time.perf_counter() - started)
        yield
