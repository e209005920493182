"""Work on the parts of an index on several cores at once. FAISS, torch and large NumPy calls let the others run."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import faiss
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(work: Callable[[Item], Result], parts: Iterable[Item]) -> Iterator[Result]:
    """`work(part)` of each part, in order; as many at a time as torch has threads, and few wait to be looked at."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, parts)
        return
    ahead: deque[Future[Result]] = deque()
    for part in parts:
        ahead.append(_pool(threads).submit(work, part))
        if len(ahead) > 2 * threads:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which FAISS has one: they divide the work, not it."""
    return ThreadPoolExecutor(threads, "search", initializer=faiss.omp_set_num_threads, initargs=(1,))
