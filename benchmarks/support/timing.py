"""Wall-clock time of calls."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def measure_seconds(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Returns the seconds that a call takes, including the work that it leaves to a GPU."""
    started = time.perf_counter()
    call(*arguments, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_alternately(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round.

    Every round makes all calls once, so that a machine whose speed drifts is equally fast for all of them. One call of
    each is made before the first round.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(measure_seconds(call))
    return seconds


def percentile_ms(seconds: Sequence[float], percent: int) -> float:
    """Returns a percentile of several times, in milliseconds."""
    return 1e3 * statistics.quantiles(seconds, n=100)[percent - 1]
