"""Connects to a Ray cluster, counts the actors that it has room for, starts actors, and translates its errors.

A cluster that this process has started ends with the process; any other cluster keeps running.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from bergson_core.errors import BergsonError, ClusterUnavailable

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ClusterUnavailable("the executor ray needs Ray: pip install 'bergson-service[ray]'") from error

_PACKAGES_DIRECTORY: Final = Path(__file__).absolute().parents[2]
"""The directory that this package is imported from."""
MAX_ATTEMPTS: Final = 3
"""How many actors may die doing the same work before it is given up."""


def connect() -> None:
    """Connects this process to a cluster, if it is not connected yet.

    It connects to the cluster at the address `RAY_ADDRESS`, or else to one that runs on this machine, or else to a new
    one that it starts.

    Raises:
        ClusterUnavailable: No cluster answers.
    """
    if ray.is_initialized():
        return
    try:
        # Ray's processes import from the driver's working directory, where a user's own files may have the names of
        # modules that they need.
        with _preserve_sigterm_handler(), chdir(_PACKAGES_DIRECTORY):
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        raise ClusterUnavailable(f"no Ray cluster answers at {address}: {error}") from error


@contextmanager
def _preserve_sigterm_handler() -> Iterator[None]:
    """Restores the handler of SIGTERM: Ray's ends the process at once, but a worker must finish its current work."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def slots_by_node(device: str) -> dict[str, int]:
    """Returns how many actors each live node has room for, by the node's id.

    Args:
        device: The device of the actors: `cuda`, one GPU each, or `cpu`, `cpus_per_slot()` CPUs each.
    """
    kind, size = ("GPU", 1) if device == "cuda" else ("CPU", cpus_per_slot())
    nodes = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeID"]: int(node["Resources"].get(kind, 0)) // size for node in nodes}


def cpus_per_slot() -> int:
    """Returns the CPUs of an actor: as many as torch has threads in this process, or all of the largest node."""
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
    return max(1, min(torch.get_num_threads(), largest))


def actor_resources(device: str) -> dict[str, Any]:
    """Returns the options that reserve the device of an actor that runs the model."""
    if device == "cuda":
        return {"num_gpus": 1, "num_cpus": 1}
    return {"num_cpus": cpus_per_slot()}


def start_actor(actor_class: type, *arguments: Any, **options: Any) -> Any:
    """Starts an actor of this class, with Ray's `options`, and returns a handle to it."""
    remote: Any = ray.remote(actor_class)
    return remote.options(**options).remote(*arguments)


def first_line(error: Exception) -> str:
    """Returns the first line of an error of Ray; the following lines list the state of Ray's components."""
    return str(error).partition("\n")[0]


def get_result(reference: Any) -> Any:
    """Waits for the result of an actor's method.

    Raises:
        RayError: The actor or its machine has died.
        Exception: The method raised this exception.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise BergsonError(str(error)) from error
