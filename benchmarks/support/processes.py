"""Processes that do nothing but what is measured, and free ports."""

import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")
_WATCH_INTERVAL_S = 0.02


def run_in_new_process(
    function: Callable[..., T], *arguments: Any, watch: Callable[[], None] | None = None
) -> T:
    """Returns what a function returns in a new process; `watch` is called here every 20 ms meanwhile.

    The function, its arguments and its result are pickled.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        future = pool.submit(function, *arguments)
        while watch and not wait([future], timeout=_WATCH_INTERVAL_S).done:
            watch()
        return future.result()


def find_free_port() -> int:
    """Returns a TCP port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
