"""Shards made by the actors of a Ray cluster, each with the model and the statistics in memory.

This process reads the documents and sends each actor those of its shard, so that all machines have the same ones. An
actor writes its shard beside its place in the index's directory, which all machines see; this process alone gives it
its name. What an actor that died had in hand is done again by another one, and one that only seemed to be dead has
written where nobody looks.

The rows are those that this process would make, to the last bit, where the machines are of one kind: a shard is the
same batches through the same files of the model (compared by sha256), on the same kind of device, with as many threads
of torch, since the order in which sums are taken may depend on these.
"""

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import torch
from ray.exceptions import RayError

from bergson_core.data.dataset import Documents
from bergson_core.errors import BergsonError, ClusterUnavailable, InvalidInput
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.integrations.ray_cluster import (
    TRIES,
    actor_resources,
    connect,
    first_line,
    get_result,
    slots_by_node,
    start_actor,
)
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.shards.row_encoder import open_row_encoder

logger = logging.getLogger(__name__)

_EVERY_S: Final = 0.25
"""Between two steps of an actor, and the longest that the caller waits for one: it may have other work, or stop."""
_LOOK_S: Final = 2.0
"""Between two looks for machines that have come."""
_DYING_S: Final = 10.0
_OPENING: Final = "while they loaded the model"


@dataclass(frozen=True)
class ShardBuilderSpec:
    """All that is fixed before the first shard of a build. `statistics` is the stamp of the processor's directory."""

    spec: BuildSpec
    output: Path
    statistics: bytes
    model_sha256: str
    revision: str | None
    budget_tokens: int
    moments: bool
    device: str
    threads: int

    @classmethod
    def of(cls, maker: ShardBuilder) -> "ShardBuilderSpec":
        """What another process needs to make what `maker` makes."""
        output = maker.output.absolute()
        return cls(
            spec=maker.spec,
            output=output,
            statistics=_stamp(output).read_bytes(),
            model_sha256=maker.model.sha256,
            revision=maker.model.revision or maker.spec.revision,
            budget_tokens=maker.budget_tokens,
            moments=maker.save_moments,
            device=maker.model.device.type,
            threads=torch.get_num_threads(),
        )

    def open(self) -> ShardBuilder:
        """Raises `InvalidInput` where this machine sees another model or not the index's directory."""
        torch.set_num_threads(self.threads)
        stamp = _stamp(self.output)
        if not stamp.is_file() or stamp.read_bytes() != self.statistics:
            raise InvalidInput(
                f"{self.output} is not the directory of this build: expected one that all machines of the cluster share"
            )
        model = load_model(self.spec.model, self.revision, self.spec.dtype, self.device)
        if model.sha256 != self.model_sha256:
            raise InvalidInput(
                f"the files of the model {self.spec.model} are other ones than where the build was started: expected "
                "a directory that all machines share"
            )
        rows = open_row_encoder(self.spec, self.output, model)
        return ShardBuilder(self.output, self.spec, model, rows, self.budget_tokens, self.moments)


def _stamp(output: Path) -> Path:
    return output / "statistics" / "done"


class ShardActor:
    """Makes shards on a machine of the cluster; `open` comes first."""

    def __init__(self, recipe: ShardBuilderSpec) -> None:
        self._recipe = recipe

    def open(self) -> None:
        """Loads the model and the statistics."""
        try:
            self._maker = self._recipe.open()
        except BergsonError as error:
            raise type(error)(f"on {socket.gethostname()}: {error}") from error

    def make(self, task: ShardTask, records: Sequence[Record]) -> Iterator[ShardStep]:
        """As `ShardMaker.make`, but with a step for all batches of `_EVERY_S` seconds."""
        yield from merge_steps(self._maker.build(task, records))  # a generator itself, or Ray would not stream


def merge_steps(steps: Iterable[ShardStep]) -> Iterator[ShardStep]:
    """Adds steps up that come within `_EVERY_S` seconds."""
    documents = tokens = 0
    last = time.monotonic()
    for step in steps:
        documents, tokens = documents + step.documents, tokens + step.tokens
        done = step.written is not None
        if documents and (done or time.monotonic() - last >= _EVERY_S):
            yield ShardStep(documents, tokens)
            documents, tokens, last = 0, 0, time.monotonic()
        if done:
            yield step


def build_shards_on_cluster(
    maker: ShardBuilder, documents: Documents, work: Sequence[ShardTask]
) -> Generator[ShardStep, None, None]:
    """Every step of every shard of `work`, and steps of nothing while there is none; actors end with the generator.

    A step of fewer than no documents takes back what an actor that died had done. Errors that actors raise come out
    as they are. Raises `ClusterUnavailable` where there is no slot, and where several actors die of the same.
    """
    if not work:
        return
    connect()
    crew = _ActorPool(ShardBuilderSpec.of(maker), documents, work)
    try:
        yield from crew.steps()
    finally:
        crew.dismiss()


@dataclass
class _ActorTask:
    """What an actor is doing: opening, where there is no task, or a shard of which so much is done."""

    actor: Any
    task: ShardTask | None = None
    documents: int = 0
    tokens: int = 0


class _ActorPool:
    """The actors of a build. `_errands` are by what Ray waits for: a reference, or the generator of a shard's steps."""

    def __init__(self, recipe: ShardBuilderSpec, documents: Documents, work: Sequence[ShardTask]) -> None:
        self._documents, self._left = documents, deque(work)
        self._device, self._recipe = recipe.device, ray.put(recipe)
        self._errands: dict[Any, _ActorTask] = {}
        self._idle: list[Any] = []
        self._deaths: Counter[str] = Counter()
        self._looked_at = -_LOOK_S
        _check_slots(self._device)

    def steps(self) -> Iterator[ShardStep]:
        """See `made_on_cluster`."""
        while self._left or any(errand.task for errand in self._errands.values()):
            self._hire()
            while self._left and self._idle:
                free, task = self._idle.pop(), self._left.popleft()
                steps = free.make.remote(task, self._documents.read(task.numbers))
                self._errands[steps] = _ActorTask(free, task)
            ready, _ = ray.wait(list(self._errands), timeout=_EVERY_S)
            if not ready:
                yield ShardStep()
            for one in ready:
                yield self._advanced(one)

    def _hire(self) -> None:
        """Starts actors where there are slots and shards for more."""
        here = len(self._errands) + len(self._idle)
        if here and (time.monotonic() < self._looked_at + _LOOK_S or self._deaths[_OPENING] >= TRIES):
            return
        self._looked_at = time.monotonic()
        wanted = min(max(1, sum(slots_by_node(self._device).values())), here + len(self._left))
        for _ in range(here, wanted):
            started = start_actor(ShardActor, self._recipe, **actor_resources(self._device))
            self._errands[started.open.remote()] = _ActorTask(started)

    def _advanced(self, waited: Any) -> ShardStep:
        """Takes what has come from an actor."""
        errand = self._errands[waited]
        try:
            step = get_result(waited if errand.task is None else next(waited)) or ShardStep()
        except RayError as error:
            return self._lost(waited, error)
        errand.documents += step.documents
        errand.tokens += step.tokens
        if errand.task is None:
            self._deaths[_OPENING] = 0
        if errand.task is None or step.written:
            self._idle.append(self._errands.pop(waited).actor)
        return step

    def _lost(self, waited: Any, error: RayError) -> ShardStep:
        """Puts the shard of an actor that has died, or does not answer, back in front."""
        errand = self._errands.pop(waited)
        ray.kill(errand.actor)
        what = f"shard {errand.task.name}" if errand.task else _OPENING
        self._deaths[what] += 1
        logger.warning("an actor was lost (%s): %s", what, first_line(error))
        if self._deaths[what] >= TRIES and (errand.task or not (self._errands or self._idle)):
            raise ClusterUnavailable(
                f"{TRIES} actors were lost, {what}; the last one so: {first_line(error)}"
            )
        if errand.task:
            self._left.appendleft(errand.task)
        return ShardStep(-errand.documents, -errand.tokens)

    def dismiss(self) -> None:
        """Ends all actors, and waits until none writes any more."""
        for one in (*self._idle, *(errand.actor for errand in self._errands.values())):
            ray.kill(one)
        if self._errands:
            ray.wait(list(self._errands), num_returns=len(self._errands), timeout=_DYING_S)


def _check_slots(device: str) -> None:
    if device == "cpu" and sum(slots_by_node("cuda").values()):
        raise ClusterUnavailable(
            "the cluster has GPUs and this process has none, so that it would use CPUs alone: start the build on a "
            "machine with a GPU, as `ray job submit --entrypoint-num-gpus 1` does"
        )
    if not sum(slots_by_node(device).values()):
        raise ClusterUnavailable(f"the cluster has nothing to run on ({device}): add machines to it")
