"""Work on an answer that is divided into steps, between which other queries are answered."""

import time
from collections.abc import Generator
from typing import Literal, TypeVar

from bergson_core.schemas.results import Answer

T = TypeVar("T")
Steps = Generator[object, None, T]
"""Work that may be given up after each step; the generator returns its result."""


def with_timing(
    steps: Steps[Answer], answer: Answer, part: Literal["rescore", "words", "verify"]
) -> Steps[Answer]:
    """Returns the answer that the steps return, with how long they took, without the time that passed between them.

    Args:
        steps: The steps.
        answer: The answer that the steps begin with.
        part: The field of `TimingMs` that has the time.
    """
    spent_ms = 0.0
    while True:
        started = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            spent_ms += 1000 * (time.perf_counter() - started)
            timing = answer.timing_ms
            timing = timing.model_copy(update={part: spent_ms, "total": timing.total + spent_ms})
            return end.value.model_copy(update={"timing_ms": timing})
        spent_ms += 1000 * (time.perf_counter() - started)
        yield
