"""An index of a training run, built while the Hugging Face Trainer trains, from the gradients that the run computes.

Legend: n samples of a micro-batch, N documents, D numbers a row, t steps.

    <output>/rows.bin     [N, D] float32 so far; copied into each of the Trainer's checkpoints
    <output>/model        the model as it was in the end, which the index is asked with
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bergson_core.data.batching import BUDGET_TOKENS, Tokens
from bergson_core.data.dataset import Documents, documents_from_dataset, iter_token_chunks
from bergson_core.errors import IndexBusy, IndexExists, InvalidInput
from bergson_core.gradients.normalizer_fitting import fit_processor, sample_row_numbers
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, module_slices
from bergson_core.indexing.output_directory import require_free_directory
from bergson_core.indexing.publish import publish_index, save_preconditioner
from bergson_core.indexing.shard_builder import rows_per_shard
from bergson_core.integrations.hf_gradient_recorder import GradientRecorder
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.loading import LanguageModel, load_model
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, Dtype, GradientSpec, ScoringSpec
from bergson_core.search.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import ShardPosition, ShardWriter
from bergson_core.storage.layout import BUILD_STAMP_FILE, LOCK_FILE
from bergson_core.storage.manifest import MANIFEST_FILE, ShardEntry
from bergson_core.utils.atomic_files import atomic_path

_ROWS: Final = "rows.bin"
_SNAPSHOT: Final = "bergson_rows.bin"
_ENDED: Final = "training"


class IndexCallback(TrainerCallback):
    """Builds the index `output` of a run of the Hugging Face Trainer while it trains.

    A document's row is Σ_t η_t G_t over the steps t that saw it, normalized and projected as any other: η_t is the
    learning rate of the optimizer's first group, and G_t the gradient of the document's part of the loss, as it was
    back-propagated. That is how far the run itself moved the weights for it, to first order and before the optimizer's
    own scaling (TracIn: Pruthi et al., arXiv 2002.08484, equation 1, with the query's gradient at the end of the run).
    Nothing is run twice but the documents' losses, which are those of the final model. A document that was never
    seen has a row of zeros.

    `dataset` is the Trainer's `train_dataset`, with the column `input_ids`; a batch is matched to it by its tokens.
    Text, ids and metadata are those of `columns`; without a prompt column the tokens are decoded. A run that goes on
    from a checkpoint goes on with the rows that were saved in it.
    Raises `InvalidInput`, when training begins, for a run of several processes, in float16 or compiled, and for a
    resumed run whose checkpoint has no rows; and at the first batch that is not in `dataset`. `IndexExists` where
    `output` holds something else.

    >>> Trainer(model, args, train_dataset=dataset, callbacks=[IndexCallback("facts", dataset, tokenizer)]).train()
    """

    def __init__(
        self,
        output: str | Path,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        columns: ColumnsSpec | None = None,
        settings: GradientSpec | None = None,
        scoring: ScoringSpec | None = None,
    ) -> None:
        if "input_ids" not in dataset.column_names:
            raise InvalidInput(
                f"the dataset has no column 'input_ids', it has {', '.join(dataset.column_names)}; expected the "
                "tokenised train_dataset of the Trainer"
            )
        self.output = Path(output)
        self._dataset, self._tokenizer = dataset, tokenizer
        self._columns, self._settings = columns or ColumnsSpec(), settings or GradientSpec()
        self._scoring = scoring or ScoringSpec()
        self._open = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Fits the processor, or takes up the rows of the checkpoint, and starts to record."""
        self._open.close()  # of a run that was broken off
        _check_run(args, model)
        self._spec = self._describe(model)
        require_free_directory(self.output, self._spec)
        if (self.output / MANIFEST_FILE).exists():
            raise IndexExists(f"{self.output} holds the index of a run already; choose another directory")
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            self._open.enter_context(FileLock(self.output / LOCK_FILE, timeout=0))
        except Timeout:
            raise IndexBusy(f"{self.output} is being written by another process") from None
        (self.output / BUILD_STAMP_FILE).write_text(f'{{"spec": "{self._spec.rows_fingerprint()}"}}')
        statistics = self.output / "statistics"
        if state.global_step and not _snapshot(args, state).is_file():
            raise InvalidInput(
                f"the run goes on from step {state.global_step}, but {_snapshot(args, state)} is missing: expected a "
                "checkpoint that was saved with this callback, or a run from the start"
            )
        if state.global_step == 0:
            processor = fit_processor(model, self._dataset, None, self._settings, columns=self._columns)
            processor.save(statistics)
        else:
            processor = GradientProcessor.load(statistics)
        slices = module_slices(select_modules(model, self._settings.modules), processor)
        shape = (len(self._dataset), sum(part.stop - part.start for part in slices.values()))
        self._take_up(args, state, shape)
        rows = np.memmap(self.output / _ROWS, np.float32, "r+", shape=shape)
        self._recorder = GradientRecorder(model, processor, self._settings.modules, self._dataset, rows)
        self._open.enter_context(self._recorder)

    def on_substep_end(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        """Adds a micro-batch that is not the last of its step."""
        self._recorder.add(optimizer.param_groups[0]["lr"])

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """Adds the last micro-batch of a step."""
        self._recorder.add(optimizer.param_groups[0]["lr"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts a copy of the rows into the checkpoint."""
        self._recorder.rows.flush()
        place = _snapshot(args, state)
        with atomic_path(place) as temporary:
            shutil.copyfile(self.output / _ROWS, temporary)

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Saves the model, turns the rows into shards, and publishes the index."""
        with self._open:
            self._recorder.rows.flush()
            cast(PreTrainedModel, model).save_pretrained(self.output / "model")
            self._tokenizer.save_pretrained(self.output / "model")
            final = load_model(self._spec.model, dtype=self._spec.dtype)
            processor = GradientProcessor.load(self.output / "statistics")
            collector = RowCollector(final, processor, list(self._recorder.modules))
            self._finish(final, RowEncoder(collector, self._settings.rows))
            (self.output / _ROWS).unlink()
            (self.output / BUILD_STAMP_FILE).unlink()

    def _describe(self, model: nn.Module) -> BuildSpec:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        if dtype not in get_args(Dtype):
            raise InvalidInput(f"the model's weights are {dtype}; expected {', '.join(get_args(Dtype))}")
        return BuildSpec(
            model=str((self.output / "model").absolute()),
            dtype=cast(Dtype, dtype),
            dataset=DatasetSpec(path="the Trainer's train_dataset"),
            columns=self._columns,
            gradients=self._settings,
            scoring=self._scoring,
        )

    def _take_up(self, args: Any, state: Any, shape: tuple[int, int]) -> None:
        """Lays rows.bin: zeros, or what the checkpoint holds that the run goes on from."""
        size, place = 4 * shape[0] * shape[1], _snapshot(args, state)
        if state.global_step == 0:
            with (self.output / _ROWS).open("wb") as file:
                file.truncate(size)
            return
        if place.stat().st_size != size:
            raise InvalidInput(
                f"{place} does not hold the rows of {shape[0]} documents: expected the dataset and the settings that "
                "the run began with"
            )
        shutil.copyfile(place, self.output / _ROWS)

    def _finish(self, model: LanguageModel, rows: RowEncoder) -> None:
        documents, scoring = self._documents(), self._scoring
        shape, total = rows.shape, len(documents)
        size = rows_per_shard(shape, total)
        parts = [range(start, min(start + size, total)) for start in range(0, total, size)]
        if shape.kind == "sign" and scoring.preconditioner:
            moment = SecondMoment(shape.modules, shape.width)
            for numbers in parts:
                moment.add(rows.finish(self._stored(numbers), torch.zeros(len(numbers)))[0])
            before = save_preconditioner(self.output, moment.total, moment.rows, scoring.damping)
            rows = RowEncoder(rows.collector, rows.kind, before)
        shards: list[ShardEntry] = []
        for numbers in parts:
            tokens = self._tokens(numbers)
            blocks, losses = rows.finish(self._stored(numbers), _losses(model, rows.collector, tokens))
            moment = None
            if scoring.preconditioner and rows.preconditioner is None:
                moment = SecondMoment(shape.modules, shape.width)
                moment.add(blocks)
            writer = ShardWriter(self.output, f"{len(shards):05d}", len(numbers), shape)
            kept, scales = (one.numpy() for one in shape.codec.encode(blocks))
            writer.put(np.arange(len(numbers)), kept, scales, losses.numpy())
            labelled = [one.labelled for one in tokens]
            place = ShardPosition(numbers.start, _ENDED)
            shards.append(writer.write(documents.read(numbers), labelled, moment, place).accept())
        places = sample_row_numbers(total, RECALL_QUERY_COUNT, self._settings.seed)
        sample = RecallQueries.collect(rows.collector, places, self._tokens(places), BUDGET_TOKENS)
        publish_index(self._spec, self.output, model, rows, shards, sample, origin="training")

    def _tokens(self, numbers: Sequence[int]) -> list[Tokens]:
        chunks = iter_token_chunks(None, self._dataset.select(numbers), self._columns, None)
        return list(chain.from_iterable(chunks))

    def _stored(self, numbers: range) -> Float[Tensor, "n D"]:
        return torch.from_numpy(np.array(self._recorder.rows[numbers.start : numbers.stop]))

    def _documents(self) -> Documents:
        dataset, prompt = self._dataset, self._columns.prompt
        if prompt not in dataset.column_names and self._columns.messages is None:
            dataset = dataset.map(
                lambda rows: {prompt: self._tokenizer.batch_decode(rows["input_ids"])}, batched=True
            )
        documents = documents_from_dataset(dataset, self._columns, "the train_dataset")
        documents.check_ids()
        return documents


def _check_run(args: Any, model: nn.Module) -> None:
    expected = {
        "one process": args.world_size == 1 and args.n_gpu <= 1,
        "float32 or bfloat16 (fp16 scales the loss)": not args.fp16,
        "a model that is not compiled": not args.torch_compile,
    }
    for what, holds in expected.items():
        if not holds:
            raise InvalidInput(f"an index of a training run cannot be built here: expected {what}")


def _snapshot(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _SNAPSHOT


def _losses(model: LanguageModel, collector: RowCollector, tokens: list[Tokens]) -> Float[Tensor, " N"]:
    """The loss of each document under `model`, forward only."""
    longest = max(len(one.ids) for one in tokens)
    return torch.from_numpy(
        compute_document_losses(model, tokens, find_batch_budget(model, collector.modules, longest))
    )
