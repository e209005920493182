"""Runs work in a thread while the caller goes on, and runs generators whose result is their return value."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")

_INTERVAL_S: Final = 0.02


def iterate_while_running(work: Callable[[], T], item: Item) -> Generator[Item, None, T]:
    """Runs `work` in a thread of its own, and yields `item` some fifty times a second until it is done.

    A caller can do something else between two items, for example answer queries, although `work` cannot be divided.
    `work` runs to its end even if the generator is closed.

    Args:
        work: Function to run.
        item: What to yield each time.

    Returns:
        What `work` returned. An error that `work` raised is raised again.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work)
        while not wait([future], timeout=_INTERVAL_S).done:
            yield item
        return future.result()


def run_in_thread(work: Callable[[], T], tick: Callable[[], object]) -> T:
    """Runs `work` in a thread of its own, calls `tick` some fifty times a second meanwhile, and returns the result.

    An error that `tick` raises is raised again after `work` has ended.
    """
    return run_to_completion(iterate_while_running(work, None), tick)


def run_to_completion(steps: Generator[object, None, T], on_step: Callable[[], object] = lambda: None) -> T:
    """Runs a generator to its end, calls `on_step` after each step, and returns what the generator returned."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        on_step()
