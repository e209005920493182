"""The Ray cluster that does the work: how to reach it, how many actors it has room for, what its errors mean.

What is started here ends with this process; a cluster that was there before goes on.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from bergson_core.errors import BergsonError, ClusterUnavailable

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ClusterUnavailable("the executor ray needs Ray: pip install 'bergson-service[ray]'") from error

TRIES: Final = 3
"""Actors that may die of the same work before it is given up."""


def connect() -> None:
    """Connects this process with a cluster, unless it is: `RAY_ADDRESS`, or one that runs here, or a new one.

    Raises `ClusterUnavailable` where none answers.
    """
    if ray.is_initialized():
        return
    try:
        with _signals_kept():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise ClusterUnavailable(f"no Ray cluster answers at {where}: {error}") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets a handler of its own, which ends the process at once: a worker has to finish what it has in hand."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def slots_by_node(device: str) -> dict[str, int]:
    """How many actors each live node has room for, by its id: one for each GPU, or for so many CPUs."""
    kind, size = ("GPU", 1) if device == "cuda" else ("CPU", cpus_of_a_slot())
    nodes = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeID"]: int(node["Resources"].get(kind, 0)) // size for node in nodes}


def start_actor(kind: type, *arguments: Any, **options: Any) -> Any:
    """A handle of an actor of this class; `options` are Ray's."""
    remote: Any = ray.remote(kind)
    return remote.options(**options).remote(*arguments)


def actor_resources(device: str) -> dict[str, Any]:
    """What Ray has to give to an actor that runs the model."""
    if device == "cuda":
        return {"num_gpus": 1, "num_cpus": 1}
    return {"num_cpus": cpus_of_a_slot()}


def cpus_of_a_slot() -> int:
    """As many as torch has threads here, or the largest node CPUs."""
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
    return max(1, min(torch.get_num_threads(), largest))


def first_line(error: Exception) -> str:
    """What Ray says, without the state of all its parts."""
    return str(error).partition("\n")[0]


def get_result(reference: Any) -> Any:
    """What an actor has returned. Raises what it raised, and `RayError` where it, or its machine, has died."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise BergsonError(str(error)) from error
