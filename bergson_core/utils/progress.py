"""The progress of one stage of a build, and the callbacks that are told about it."""

import os
import time
from collections.abc import Callable

from bergson_core.schemas.results import Progress

ProgressCallback = Callable[[Progress], None]
"""Called after each step with the progress so far; it may raise to stop the work."""
ConfirmCallback = Callable[[], None]
"""Called just before a change is published; it raises to prevent that, for example when a job was lost."""


class StageProgress:
    """Counts the documents and tokens of one stage of a build, and works out its rate and remaining time.

    Only work of this run counts for the rate, not work that an earlier run has done.

    Args:
        stage: Name of the stage.
        total: Number of documents in the stage, or 0 if it is unknown.
    """

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total = stage, total
        self._done = self._worked = self._tokens = 0
        self._started = time.perf_counter()

    def advance(self, documents: int, tokens: int) -> Progress:
        """Returns the progress after this many more documents and tokens.

        The numbers are negative if work was lost.
        """
        self._done += documents
        self._worked += documents
        self._tokens += tokens
        return self.now()

    def now(self) -> Progress:
        """Returns the progress so far. Another thread may advance it meanwhile."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return Progress(
            stage=self._stage,
            done=self._done,
            total=self._total,
            tokens_per_s=self._tokens / seconds,
            eta_s=(self._total - self._done) * seconds / self._worked
            if self._total and self._worked
            else None,
        )

    def skip(self, documents: int) -> None:
        """Counts documents that an earlier run has done."""
        self._done += documents


def silence_libraries() -> None:
    """Turns off the progress bars and warnings of Hugging Face's libraries. Must be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
