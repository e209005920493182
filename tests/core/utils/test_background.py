"""Work in a thread ends before the call that started it does, whatever stops the call."""

import threading
import time

import pytest

from bergson_core.errors import Cancelled
from bergson_core.search import thread_pool
from bergson_core.utils.background import (
    compute_in_this_thread,
    iterate_in_thread,
    iterate_while_running,
    run_in_thread,
    run_to_completion,
    stop_if_abandoned,
)


class Work:
    """Work that runs until `end` is set, or until nobody waits for it where it `looks`."""

    def __init__(self, *, looks: bool):
        self.started, self.end, self.looks = threading.Event(), threading.Event(), looks
        self.has_ended = False

    def __call__(self) -> str:
        self.started.set()
        try:
            while not self.end.wait(0.005):
                if self.looks:
                    stop_if_abandoned()
        finally:
            self.has_ended = True
        return "done"


def cancel() -> None:
    raise Cancelled("x")


def cancel_once_started(work: Work) -> None:
    if work.started.is_set():
        raise Cancelled("x")


def test_the_result_and_an_error_of_the_work_reach_the_caller():
    work = Work(looks=True)
    assert run_in_thread(work, work.end.set) == "done"
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 // 0, lambda: None)


def test_work_that_looks_whether_anybody_waits_stops_at_once():
    work = Work(looks=True)
    with pytest.raises(Cancelled, match="x"):
        run_in_thread(work, lambda: cancel_once_started(work))
    assert work.has_ended and not work.end.is_set()


def test_work_that_cannot_be_interrupted_ends_before_the_error_is_raised():
    work = Work(looks=False)
    threading.Timer(0.2, work.end.set).start()
    with pytest.raises(Cancelled):
        run_in_thread(work, lambda: cancel_once_started(work))
    assert work.has_ended


def test_work_of_a_generator_ends_when_the_generator_is_closed():
    work = Work(looks=True)
    steps = iterate_while_running(work, "step")
    assert next(steps) == "step"
    work.started.wait()
    steps.close()
    assert work.has_ended


def test_items_of_a_thread_come_in_order_from_the_same_thread_with_signs_of_life_between_them():
    threads = []

    def compute(number: int) -> int:
        threads.append(threading.get_ident())
        time.sleep(0.05)
        return number

    items = list(iterate_in_thread(map(compute, range(3)), None))
    assert [item for item in items if item is not None] == [0, 1, 2]
    assert items[0] is None and items.count(None) >= 3
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_an_item_is_computed_once_it_is_asked_for_and_its_error_reaches_the_caller():
    computed = []

    def compute(number: int) -> float:
        computed.append(number)
        return 1 / number

    items = (item for item in iterate_in_thread(map(compute, [2, 0, 1]), None) if item is not None)
    assert next(items) == 0.5
    time.sleep(0.05)
    assert computed == [2]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert computed == [2, 0]


def test_the_item_that_is_computed_when_an_iterator_is_closed_ends_first():
    work = Work(looks=True)
    items = iterate_in_thread((work() for _ in range(9)), "waiting")
    assert next(items) == "waiting"
    work.started.wait()
    items.close()
    assert work.has_ended and not work.end.is_set()


def test_a_generator_is_closed_before_an_error_of_a_step_is_raised():
    closed = []

    def steps():
        try:
            yield from range(3)
        finally:
            closed.append(True)

    with pytest.raises(Cancelled) as error:  # its traceback keeps the generator alive
        run_to_completion(steps(), cancel)
    assert closed == [True]
    assert error.traceback


def test_nothing_stops_work_that_somebody_waits_for():
    stop_if_abandoned()  # in no thread of work at all
    assert run_in_thread(stop_if_abandoned, lambda: None) is None
    with pytest.raises(Cancelled):
        run_in_thread(lambda: time.sleep(0.1), cancel)
    assert run_in_thread(stop_if_abandoned, lambda: None) is None


def test_work_of_a_caller_with_nothing_else_to_do_runs_in_its_own_thread():
    here, ticks = threading.get_ident(), []
    with compute_in_this_thread(), compute_in_this_thread(when=False):
        assert run_in_thread(threading.get_ident, lambda: ticks.append(1)) == here
        assert list(iterate_in_thread((threading.get_ident() for _ in range(2)), None)) == [here, here]
    assert ticks == []
    assert run_in_thread(threading.get_ident, lambda: None) != here
    with compute_in_this_thread(when=False):
        assert run_in_thread(threading.get_ident, lambda: None) != here


def test_work_on_shards_ends_with_the_iterator_over_its_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(thread_pool.torch, "get_num_threads", lambda: 2)
    running, begun = [], []

    def work(number: int) -> int:
        begun.append(number)
        running.append(number)
        time.sleep(0.02 if number else 0)
        running.remove(number)
        return number

    results = thread_pool.parallel_map(work, range(1000))
    assert next(results) == 0
    results.close()
    assert running == [] and len(begun) < 10
    with pytest.raises(ZeroDivisionError):
        list(thread_pool.parallel_map(lambda number: work(number) // (number - 3), range(1000)))
    assert running == []
