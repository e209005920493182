"""Starts the processes of tests that kill a process or limit its resources."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def forkserver_context() -> ForkServerContext:
    """Returns a context whose processes start from one that has loaded the library, since torch alone takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["bergson_core.indexing.build", "bergson_core.indexing.append", "worker.__main__", "tests.tiny"]
    )
    return context
