"""The actor that builds shards on a machine of a Ray cluster, with the model and the statistics in memory.

If all machines are of the same kind, the rows are bit for bit those that the process which started the build would
compute: the batches, the files of the model (compared by sha256), the kind of device and the number of torch's threads
are the same. The order of summation may depend on the number of threads.
"""

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Final

import torch

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.gradients.checkpoints.collector import open_row_collector
from bergson_core.indexing.output_directory import statistics_stamp_path
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.models.checkpoints.loading import CheckpointSource, checkpoint_sources
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.shards.row_encoder import open_row_encoder

STEP_INTERVAL_S: Final = 0.25
"""Seconds between two steps that an actor sends."""


@dataclass(frozen=True)
class ShardBuilderSpec:
    """What another process needs to create an equal `ShardBuilder`.

    Attributes:
        spec: The spec of the build.
        output: The directory of the index, which all machines see.
        statistics_stamp: The content of the stamp of its statistics.
        model_sha256: The hash of the model's files.
        revision: The commit of the model's repository on the hub.
        adapter_base: The directory of the model that local adapters belong to.
        checkpoints: The checkpoints that the model is the last of, with their commits.
        chat_date: The date that the model's chat template is told.
        modules: The names of the modules that are tracked.
        budget_tokens: The maximum number of tokens in a batch, padding included.
        save_moments: Whether the second moment of each shard's rows is saved.
        device: `cuda` or `cpu`.
        threads: The number of torch's threads.
    """

    spec: BuildSpec
    output: Path
    statistics_stamp: bytes
    model_sha256: str
    revision: str | None
    adapter_base: str | None
    checkpoints: tuple[CheckpointSource, ...]
    chat_date: date | None
    modules: tuple[str, ...]
    budget_tokens: int
    save_moments: bool
    device: str
    threads: int

    @classmethod
    def of(cls, builder: ShardBuilder) -> "ShardBuilderSpec":
        """Returns the spec of a builder of this process. Raises `InvalidInput` for a model with a device map."""
        if builder.model.has_device_map:
            raise InvalidInput(
                "device_map: each of Ray's actors has one device; expected no device map, or no Ray"
            )
        output = builder.output.absolute()
        return cls(
            spec=builder.spec,
            output=output,
            statistics_stamp=statistics_stamp_path(output).read_bytes(),
            model_sha256=builder.model.sha256,
            revision=builder.model.revision or builder.spec.revision,
            adapter_base=builder.model.adapter_base,
            checkpoints=checkpoint_sources(builder.spec.models, builder.model.checkpoint_revisions),
            chat_date=builder.model.chat_date,
            modules=tuple(builder.encoder.collector.modules),
            budget_tokens=builder.budget_tokens,
            save_moments=builder.save_moments,
            device=builder.model.device.type,
            threads=torch.get_num_threads(),
        )

    def open(self) -> ShardBuilder:
        """Loads the model and the statistics on this machine.

        Raises:
            InvalidInput: This machine does not see the directory of the build, or its files of the model differ.
        """
        torch.set_num_threads(self.threads)
        stamp = statistics_stamp_path(self.output)
        if not stamp.is_file() or stamp.read_bytes() != self.statistics_stamp:
            raise InvalidInput(
                f"{self.output} is not the directory of this build: expected one that all machines of the cluster share"
            )
        model = load_model(
            *(self.spec.model, self.revision, self.spec.dtype, self.device),
            adapter_base=self.adapter_base,
            checkpoints=self.checkpoints,
        )
        if model.sha256 != self.model_sha256:
            raise InvalidInput(
                f"the files of the model {self.spec.model} differ from those where the build was started: expected a "
                "directory that all machines share"
            )
        model = replace(model, chat_date=self.chat_date)
        make_collector = partial(open_row_collector, modules=self.modules)
        encoder = open_row_encoder(self.spec, self.output, model, make_collector)
        return ShardBuilder(self.output, self.spec, model, encoder, self.budget_tokens, self.save_moments)


class ShardActor:
    """Builds shards on a machine of the cluster. Call `open` first."""

    def __init__(self, spec: ShardBuilderSpec) -> None:
        self._spec = spec

    def open(self) -> None:
        """Loads the model and the statistics. Errors name the machine."""
        try:
            self._builder = self._spec.open()
        except BergsonError as error:
            raise type(error)(f"on {socket.gethostname()}: {error}") from error

    def build(self, task: ShardTask, records: Sequence[Record]) -> Iterator[ShardStep]:
        """Builds a shard like `ShardBuilder.build`, with one step for the batches of `STEP_INTERVAL_S` seconds."""
        yield from merge_steps(self._builder.build(task, records))  # Ray streams generator functions only


def merge_steps(steps: Iterable[ShardStep]) -> Iterator[ShardStep]:
    """Merges the steps of a shard within each `STEP_INTERVAL_S` seconds into one; the last step stays by itself."""
    documents = tokens = 0
    last = time.monotonic()
    for step in steps:
        documents, tokens = documents + step.documents, tokens + step.tokens
        is_last = step.written is not None
        if documents and (is_last or time.monotonic() - last >= STEP_INTERVAL_S):
            yield ShardStep(documents, tokens)
            documents, tokens, last = 0, 0, time.monotonic()
        if is_last:
            yield step
