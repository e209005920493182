"""Builds shards in actors of a Ray cluster (`ray_shard_actor.py`): starts the actors and hands out the work.

This process reads the documents and sends each actor those of its shard, so that all machines use the same ones. An
actor writes its shard to a temporary directory inside that of the index, which all machines see; only this process
renames it to its final name. If an actor dies, another one builds its shard again. If it only seemed to be dead, what
it writes has a temporary name that nobody reads.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

from bergson_core.data.documents import Documents
from bergson_core.errors import ClusterUnavailable
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.integrations.ray_cluster import (
    MAX_ATTEMPTS,
    actor_resources,
    connect,
    first_line,
    get_result,
    slots_by_node,
    start_actor,
)
from bergson_core.integrations.ray_shard_actor import ShardActor, ShardBuilderSpec

logger = logging.getLogger(__name__)

_WAIT_S: Final = 0.25
"""The longest wait for a step: after it, the caller may do other work or stop the build."""
_SCAN_INTERVAL_S: Final = 2.0
"""Seconds between two checks whether machines have joined the cluster."""
_STOP_TIMEOUT_S: Final = 10.0
_LOADING: Final = "while they loaded the model"


def build_shards_on_cluster(
    builder: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
) -> Generator[ShardStep, None, None]:
    """Builds the shards of `tasks` in actors of the cluster, which end with the generator.

    Args:
        builder: Builds a single shard. Each actor creates an equal builder for itself.
        documents: All documents of the build.
        tasks: The shards to build.

    Yields:
        The steps of all shards, and empty steps while none arrive. A step with negative counts takes back the work of
        an actor that died.

    Raises:
        ClusterUnavailable: The cluster has no slot for an actor, or several actors died doing the same work.
        Exception: An actor raised this exception.
    """
    if not tasks:
        return
    connect()
    pool = _ActorPool(ShardBuilderSpec.of(builder), documents, tasks)
    try:
        yield from pool.run()
    finally:
        pool.stop()


@dataclass
class _ActorWork:
    """What an actor is doing, and how much of it is done: building a shard, or loading the model if `task` is None."""

    actor: Any
    task: ShardTask | None = None
    documents: int = 0
    tokens: int = 0


class _ActorPool:
    """The actors of a build.

    `_running` maps the object that Ray waits for to the work of each busy actor. That object is a reference to the
    result of `open`, or the generator of a shard's steps.
    """

    def __init__(self, spec: ShardBuilderSpec, documents: Documents, tasks: Sequence[ShardTask]) -> None:
        self._documents, self._waiting = documents, deque(tasks)
        self._device, self._spec_reference = spec.device, ray.put(spec)
        self._running: dict[Any, _ActorWork] = {}
        self._idle: list[Any] = []
        self._deaths: Counter[str] = Counter()  # by what the actor was doing
        self._last_scan = -_SCAN_INTERVAL_S
        _require_slots(self._device)

    def run(self) -> Iterator[ShardStep]:
        """Builds all shards. See `build_shards_on_cluster`."""
        while self._waiting or any(work.task for work in self._running.values()):
            self._start_actors()
            while self._waiting and self._idle:
                actor, task = self._idle.pop(), self._waiting.popleft()
                steps = actor.build.remote(task, self._documents.read(task.numbers))
                self._running[steps] = _ActorWork(actor, task)
            ready, _ = ray.wait(list(self._running), timeout=_WAIT_S)
            if not ready:
                yield ShardStep()
            for reference in ready:
                yield self._take_step(reference)

    def stop(self) -> None:
        """Kills all actors, and waits until they have ended and no longer write."""
        for actor in (*self._idle, *(work.actor for work in self._running.values())):
            ray.kill(actor)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOP_TIMEOUT_S)

    def _start_actors(self) -> None:
        """Starts actors if the cluster has free slots and shards are waiting."""
        count = len(self._running) + len(self._idle)
        is_recent = time.monotonic() < self._last_scan + _SCAN_INTERVAL_S
        if count and (is_recent or self._deaths[_LOADING] >= MAX_ATTEMPTS):
            return
        self._last_scan = time.monotonic()
        slots = max(1, sum(slots_by_node(self._device).values()))
        for _ in range(count, min(slots, count + len(self._waiting))):
            actor = start_actor(ShardActor, self._spec_reference, **actor_resources(self._device))
            self._running[actor.open.remote()] = _ActorWork(actor)

    def _take_step(self, reference: Any) -> ShardStep:
        """Returns the step that an actor has sent: an empty one if the actor has loaded the model."""
        work = self._running[reference]
        try:
            step = get_result(reference if work.task is None else next(reference)) or ShardStep()
        except RayError as error:
            return self._requeue_lost_task(reference, error)
        work.documents += step.documents
        work.tokens += step.tokens
        if work.task is None:
            self._deaths[_LOADING] = 0
        if work.task is None or step.written:
            self._idle.append(self._running.pop(reference).actor)
        return step

    def _requeue_lost_task(self, reference: Any, error: RayError) -> ShardStep:
        """Puts the shard of an actor that has died, or does not answer, at the front of the queue."""
        work = self._running.pop(reference)
        ray.kill(work.actor)
        activity = f"shard {work.task.name}" if work.task else _LOADING
        self._deaths[activity] += 1
        logger.warning("a Ray actor was lost (%s): %s", activity, first_line(error))
        # An actor that dies while it loads the model does no harm as long as other actors are alive.
        is_needed = work.task is not None or not (self._running or self._idle)
        if self._deaths[activity] >= MAX_ATTEMPTS and is_needed:
            raise ClusterUnavailable(
                f"{MAX_ATTEMPTS} actors were lost, {activity}; the last error: {first_line(error)}"
            )
        if work.task:
            self._waiting.appendleft(work.task)
        return ShardStep(-work.documents, -work.tokens)


def _require_slots(device: str) -> None:
    """Raises `ClusterUnavailable` if the cluster has no room for an actor on this device."""
    if device == "cpu" and sum(slots_by_node("cuda").values()):
        raise ClusterUnavailable(
            "the cluster has GPUs and this process has none, so that it would use CPUs alone: start the build on a "
            "machine with a GPU, as `ray job submit --entrypoint-num-gpus 1` does"
        )
    if not sum(slots_by_node(device).values()):
        raise ClusterUnavailable(f"the cluster has no free resources ({device}): add machines to it")
