"""Runs work on the shards of an index in several threads: FAISS, torch and large NumPy calls release Python's lock."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import faiss
import torch

from bergson_core.utils.background import stop_if_abandoned

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(work: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
    """Yields `work(item)` of each item, in the order of the items.

    As many items are worked on at a time as torch has threads; a single item is left to the threads of torch. Work runs
    ahead of the result that is taken next by at most about twice as many items, so that few results wait in memory. No
    work goes on once an error was raised or the iterator was closed.

    Raises:
        Exception: Whatever `work` raises, when its result is taken.
        Cancelled: As in `stop_if_abandoned`.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) == 1:
        for item in items:
            stop_if_abandoned()
            yield work(item)
        return
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            stop_if_abandoned()
            pending.append(_thread_pool(threads).submit(work, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        wait(pending)


@cache
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    """Returns a pool in whose threads FAISS runs one thread each, because the pool divides the work already."""
    return ThreadPoolExecutor(threads, "search", initializer=faiss.omp_set_num_threads, initargs=(1,))
