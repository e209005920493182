"""Processes of a test's own: those that are killed, or have other limits."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def own_processes() -> ForkServerContext:
    """Where they are started, from a process that has loaded the library: torch alone takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["bergson_core", "bergson_core.indexing.build", "bergson_core.indexing.append", "tests.tiny"]
    )
    return context
