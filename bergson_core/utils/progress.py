"""Rates and remaining time of one stage of a build, and what is done while a long step of it runs. No torch here."""

import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

from bergson_core.schemas.results import Progress

T = TypeVar("T")
Item = TypeVar("Item")
ProgressCallback = Callable[[Progress], None]
"""Called after each step of a build with its progress so far; it may raise to stop the build."""
ConfirmCallback = Callable[[], None]
"""Called just before a change is published; it raises to prevent the publication, for example when a job was lost."""
_TELL_S: Final = 0.02


def iterate_while_running(work: Callable[[], T], item: Item) -> Generator[Item, None, T]:
    """Returns what `work` does in a thread of its own, and yields `item` some fifty times a second until it is done.

    So a step that cannot be divided holds up nobody: a worker answers queries between two items. It goes on to its end
    also where the generator is closed.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work)
        while not wait([future], timeout=_TELL_S).done:
            yield item
        return future.result()


def run_in_thread(work: Callable[[], T], tell: Callable[[], object]) -> T:
    """`meanwhile` with `tell` called for each item; what it raises comes through once `work` has ended."""
    return run_to_completion(iterate_while_running(work, None), tell)


def run_to_completion(steps: Generator[object, None, T], tell: Callable[[], object] = lambda: None) -> T:
    """Takes all `steps` and returns what they come to; `tell` is called after each."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        tell()


class StageProgress:
    """Counts documents and tokens of a stage; time starts with the first tick's work, not with resumed work.

    A `total` of 0 is one that is not known.
    """

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total = stage, total
        self._done = self._worked = self._tokens = 0
        self._started = time.perf_counter()

    def advance(self, documents: int, tokens: int) -> Progress:
        """The progress after so many more documents and tokens; fewer than none, where work was lost."""
        self._done += documents
        self._worked += documents
        self._tokens += tokens
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
        """Counts work that an earlier run has done."""
        self._done += documents


def silence_libraries() -> None:
    """Keeps the progress bars and remarks of Hugging Face's libraries out of ours; before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
