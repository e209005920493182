"""Runs work in a thread while the caller goes on, and runs generators whose result is their return value.

The thread never outlives the call that started it. A caller that stops early waits until the work has ended, since the
lock of an index is let go afterwards, and its directory may then belong to another process. Work that takes long calls
`stop_if_abandoned` between its parts, so that this wait is short.

Where the caller has nothing else to do, as on the command line, `compute_in_this_thread` makes the same functions work
in the calling thread. That is faster: OpenMP's threads wait for each other by spinning, but not once a second thread of
the process has used parallel loops and they are more than the processors. On two cores, a pass took 15 % longer in a
thread.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import Final, TypeVar, cast

from bergson_core.errors import Cancelled

T = TypeVar("T")
Item = TypeVar("Item")

_INTERVAL_S: Final = 0.02


class _Thread(threading.local):
    """What each thread knows of itself: the event that is set once nobody waits for its work any more."""

    abandoned: threading.Event | None = None
    computes_itself: bool = False


_thread: Final = _Thread()


def stop_if_abandoned() -> None:
    """Raises `Cancelled` in the thread of work whose caller has stopped; does nothing in any other thread."""
    if _thread.abandoned is not None and _thread.abandoned.is_set():
        raise Cancelled("no client waits for this work any more")


@contextmanager
def compute_in_this_thread(*, when: bool = True) -> Iterator[None]:
    """Within the context, work that this thread starts runs in this thread, which meanwhile does nothing else.

    Args:
        when: False changes nothing.
    """
    before = _thread.computes_itself
    _thread.computes_itself = before or when
    try:
        yield
    finally:
        _thread.computes_itself = before


def iterate_while_running(work: Callable[[], T], item: Item) -> Generator[Item, None, T]:
    """Runs `work` in a thread of its own, and yields `item` some fifty times a second until it is done.

    A caller can do something else between two items, for example answer queries, although `work` cannot be divided.
    If the generator is closed, `close` returns after the thread has ended, which is at the next `stop_if_abandoned` of
    `work` or else at its end.

    Args:
        work: Function to run.
        item: What to yield each time.

    Returns:
        What `work` returned. An error that `work` raised is raised again.
    """
    if _thread.computes_itself:
        return work()
    with _open_thread() as thread:
        return (yield from _wait(thread.submit(work), item))


def iterate_in_thread(items: Iterable[Item], waiting: Item) -> Generator[Item, None, None]:
    """Yields `items`, each of which is computed in a thread of its own, and `waiting` some fifty times a second.

    The same thread computes all items, each of them once the caller asks for it. If the generator is closed, `close`
    returns after the item that is being computed, as in `iterate_while_running`.

    Args:
        items: The items.
        waiting: What to yield while an item is computed.
    """
    if _thread.computes_itself:
        yield from items
        return
    iterator, end = iter(items), object()
    with _open_thread() as thread:
        while (item := (yield from _wait(thread.submit(next, iterator, end), waiting))) is not end:
            yield cast(Item, item)


@contextmanager
def _open_thread() -> Iterator[ThreadPoolExecutor]:
    """Opens a thread for work that is abandoned when the context closes; leaves once the thread has ended."""
    abandoned = threading.Event()

    def begin() -> None:
        _thread.abandoned = abandoned

    with ThreadPoolExecutor(1, initializer=begin) as thread:
        try:
            yield thread
        finally:
            abandoned.set()


def _wait(future: Future[T], item: Item) -> Generator[Item, None, T]:
    while not wait([future], timeout=_INTERVAL_S).done:
        yield item
    return future.result()


def run_in_thread(work: Callable[[], T], tick: Callable[[], object]) -> T:
    """Runs `work` in a thread of its own, calls `tick` some fifty times a second meanwhile, and returns the result.

    An error that `tick` raises is raised again after the thread has ended.
    """
    return run_to_completion(iterate_while_running(work, None), tick)


def run_to_completion(steps: Generator[object, None, T], on_step: Callable[[], object] = lambda: None) -> T:
    """Runs a generator to its end, calls `on_step` after each step, and returns what the generator returned.

    If `on_step` raises an error, the generator is closed before the error leaves this function.
    """
    with closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            on_step()
