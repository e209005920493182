"""Turns the rows that a training run has recorded into shards, and publishes them as an index.

Legend: n documents of a shard, N documents of the run, D numbers per row, m modules, d numbers per module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from bergson_core.data.documents import Documents
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.indexing.build_context import BuildContext
from bergson_core.indexing.publish import publish_index, save_preconditioner
from bergson_core.indexing.shard_builder import ShardTask, plan_shards, rows_per_shard
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import LanguageModel
from bergson_core.search.measuring.null_queries import SOURCE_DOCUMENTS, QuerySources
from bergson_core.search.measuring.recall import RecallQueries
from bergson_core.shards.row_encoder import RowEncoder, has_preconditioned_signs
from bergson_core.shards.shard import Shard
from bergson_core.shards.shard_writer import ShardPosition, ShardWriter
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.document_tokens import iter_token_chunks
from bergson_core.tokens.tokenization import Tokens

_SOURCE: Final = "training"
"""The source that the shards of a training run record, in place of a build's fingerprint."""


@dataclass(frozen=True)
class RecordedRun:
    """A finished training run.

    Attributes:
        context: The spec and the directory of the index that it becomes.
        model: The model at the end of the run.
        encoder: The encoder of the rows.
        dataset: The tokenised documents [N].
        documents: The same documents as text.
        rows: The recorded rows [N, D] float32, memory-mapped.
    """

    context: BuildContext
    model: LanguageModel
    encoder: RowEncoder
    dataset: Dataset
    documents: Documents
    rows: np.memmap

    def publish(self) -> Manifest:
        """Writes the shards and publishes the index."""
        spec, run = self.context.spec, self
        total = len(self.documents)
        tasks = plan_shards(total, rows_per_shard(self.encoder.shape, total), ShardPosition(0, _SOURCE))
        if has_preconditioned_signs(spec):
            run = replace(self, encoder=self._precondition(tasks))
        shards = [run._write_shard(task) for task in tasks]
        queries = None
        if spec.search.measure:
            numbers = sample_row_numbers(total, SOURCE_DOCUMENTS, spec.gradients.seed)
            tokens = self._read_tokens(numbers)
            open_shards = [Shard.open(self.context.output, entry, run.encoder.shape) for entry in shards]
            sources = QuerySources.of_rows(open_shards, numbers, tokens)
            queries = RecallQueries.collect(
                run.encoder.collector, sources, BUDGET_TOKENS, self.context.report
            )
        return publish_index(self.context, self.model, run.encoder, shards, queries, origin="training")

    def _precondition(self, tasks: Sequence[ShardTask]) -> RowEncoder:
        """Fits the preconditioner from all rows, and returns an encoder that applies it before taking signs."""
        shape = self.encoder.shape
        moment = SecondMoment(shape.modules, shape.width)
        for task in tasks:
            rows, _ = self.encoder.finish(self._read_rows(task.numbers), torch.zeros(len(task.numbers)))
            moment.add(rows)
        damping = self.context.spec.scoring.damping
        preconditioner = save_preconditioner(self.context.output, moment.total, moment.rows, damping)
        return replace(self.encoder, preconditioner=preconditioner)

    def _write_shard(self, task: ShardTask) -> ShardEntry:
        encoder, numbers = self.encoder, task.numbers
        shape = encoder.shape
        tokens = self._read_tokens(numbers)
        rows, losses = encoder.finish(self._read_rows(numbers), self._compute_losses(tokens))
        moment = None
        if self.context.spec.scoring.preconditioner and encoder.preconditioner is None:
            moment = SecondMoment(shape.modules, shape.width)
            moment.add(rows)
        blocks, scales = (part.numpy() for part in shape.codec.encode(rows))
        writer = ShardWriter(self.context.output, task.name, len(numbers), shape)
        writer.put(np.arange(len(numbers)), blocks, scales, losses.numpy())
        labelled = [document.n_labelled for document in tokens]
        return writer.write(self.documents.read(numbers), labelled, moment, task.position).accept()

    def _read_rows(self, numbers: range) -> Float[Tensor, "n D"]:
        return torch.from_numpy(np.array(self.rows[numbers.start : numbers.stop]))

    def _read_tokens(self, numbers: Sequence[int]) -> list[Tokens]:
        chunks = iter_token_chunks(None, self.dataset, self.context.spec.columns, numbers=numbers)
        return list(chain.from_iterable(chunks))

    def _compute_losses(self, tokens: list[Tokens]) -> Float[Tensor, " n"]:
        """Computes the loss of each document under the final model, in nats. Runs forward passes only."""
        longest = max(len(document.ids) for document in tokens)
        budget_tokens = find_batch_budget(self.model, self.encoder.collector.modules, longest)
        return torch.from_numpy(compute_document_losses(self.model, tokens, budget_tokens))
