"""Builds an index of a training run while the Hugging Face Trainer trains, from the gradients that the run computes.

Legend: N documents, D numbers per row, t steps.

    <output>/rows.bin               the rows so far, [N, D] float32; removed when the index is published
    <checkpoint>/bergson_rows.bin   a copy of them in each checkpoint of the Trainer
    <output>/model                  the model at the end of the run, which the index is queried with
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from bergson_core.data.documents import Documents, documents_from_dataset
from bergson_core.errors import IndexExists, InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_from_dataset
from bergson_core.gradients.row_collector import RowCollector, module_slices
from bergson_core.indexing.build_context import BuildContext
from bergson_core.indexing.output_directory import (
    index_write_lock,
    remove_build_stamp,
    require_free_directory,
    write_build_stamp,
)
from bergson_core.integrations.hf_document_lookup import DocumentLookup
from bergson_core.integrations.hf_gradient_recorder import GradientRecorder
from bergson_core.integrations.hf_recorded_run import RecordedRun
from bergson_core.models.hooks import is_compiled
from bergson_core.models.language_model import as_language_model
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import BuildSpec, Dtype, GradientSpec, ScoringSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.storage.manifest import MANIFEST_FILE
from bergson_core.tokens.token_columns import read_token_rows
from bergson_core.utils.atomic_files import atomic_path
from bergson_core.utils.disk_errors import translate_disk_errors

_ROWS_FILE: Final = "rows.bin"
_CHECKPOINT_ROWS_FILE: Final = "bergson_rows.bin"


class IndexCallback(TrainerCallback):
    """Builds an index of a run of the Hugging Face Trainer while it trains.

    A document's row is Σ_t η_t G_t over the steps t that saw the document, normalized and projected like any other
    row. η_t is the learning rate of the optimizer's first parameter group, and G_t is the gradient of the document's
    part of the loss, as it was back-propagated. The row says how far the run itself moved the weights for the document,
    to first order and before the optimizer's own scaling. A document that the run never saw has a row of zeros. Only
    the documents' losses take an extra pass: they are those of the final model.

    A run that is resumed from a checkpoint continues with the rows that were saved in the checkpoint.

    >>> Trainer(model, args, train_dataset=dataset, callbacks=[IndexCallback("facts", dataset, tokenizer)]).train()

    Args:
        output: The directory of the index. It is created if it does not exist.
        dataset: The Trainer's `train_dataset`, with the column `input_ids`, and `attention_mask`, `labels` or a mask of
            labelled tokens where the run uses them. A batch is matched to its documents by its tokens and labels.
        tokenizer: The tokenizer of the model. It is saved with the index, and decodes the documents if `dataset` has no
            prompt column.
        columns: The columns that hold the documents' text, ids and metadata; by default the column `text` alone.
        settings: How gradients are collected; by default `GradientSpec()`.
        scoring: How rows are compared; by default `ScoringSpec()`.

    Raises:
        InvalidInput: `dataset` has no column `input_ids`, or `columns` names weights or pairs. When training begins:
            `dataset` has a column that cannot be honoured; the run uses several processes, float16 or a compiled model,
            or is resumed from a checkpoint without rows. During training: a batch holds a document that is not in
            `dataset`, has other labels, or packs documents into a row.
        IndexExists: When training begins: `output` holds something else, or the index of a run that has ended.
        IndexBusy: When training begins: another process is writing to `output`.
        DiskFull: When training ends: the disk is full.

    Source:
        TracIn: Pruthi et al., arXiv 2002.08484, equation 1, with the query's gradient at the end of the run.
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
        if columns is not None and columns.weight is not None:
            raise InvalidInput(
                "columns.weight: the rows of a training run hold what the run did with its own loss; leave it out"
            )
        if columns is not None and columns.chosen is not None:
            raise InvalidInput(
                "columns.chosen: a run of DPO has batches of other columns, which are not matched to their documents; "
                "build an index of the pairs after the run"
            )
        self.output = Path(output)
        self._dataset, self._tokenizer = dataset, tokenizer
        self._columns, self._settings = columns or ColumnsSpec(), settings or GradientSpec()
        self._scoring = scoring or ScoringSpec()
        self._resources = ExitStack()  # the lock and the hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Fits the processor, or restores the rows of the checkpoint, and starts to record gradients."""
        self._resources.close()  # of an earlier run that was interrupted
        _require_supported_run(args, model)
        self._spec = self._make_spec(model)
        require_free_directory(self.output, self._spec)
        if (self.output / MANIFEST_FILE).exists():
            raise IndexExists(f"{self.output} holds the index of a run already; choose another directory")
        with translate_disk_errors(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        self._resources.enter_context(index_write_lock(self.output))
        write_build_stamp(self.output, self._spec)
        if state.global_step and not _checkpoint_rows_path(args, state).is_file():
            raise InvalidInput(
                f"the run goes on from step {state.global_step}, but {_checkpoint_rows_path(args, state)} is missing: "
                "expected a checkpoint that was saved with this callback, or a run from the start"
            )
        if state.global_step == 0:
            processor = fit_from_dataset(
                model, self._dataset, None, self._settings, self._columns, whole=False
            )
            processor.save(self.output / "statistics")
        else:
            processor = GradientProcessor.load(self.output / "statistics")
        modules = as_language_model(model).select_for(self._settings)
        slices = module_slices(modules, processor)
        shape = (len(self._dataset), sum(part.stop - part.start for part in slices.values()))
        self._prepare_rows_file(args, state, shape)
        rows = np.memmap(self.output / _ROWS_FILE, np.float32, "r+", shape=shape)
        documents = DocumentLookup(self._dataset, cast("int | None", self._tokenizer.pad_token_id))
        self._recorder = GradientRecorder(model, processor, list(modules), documents, rows)
        self._resources.enter_context(self._recorder)

    def on_substep_end(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        """Adds a micro-batch that is not the last of its step to the rows."""
        self._recorder.add_to_rows(optimizer.param_groups[0]["lr"])

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any
    ) -> None:
        """Adds the last micro-batch of a step to the rows."""
        self._recorder.add_to_rows(optimizer.param_groups[0]["lr"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copies the rows into the checkpoint."""
        self._recorder.rows.flush()
        with atomic_path(_checkpoint_rows_path(args, state)) as temporary:
            shutil.copyfile(self.output / _ROWS_FILE, temporary)

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Saves the model, turns the rows into shards, and publishes the index."""
        with self._resources:
            rows = self._recorder.rows
            rows.flush()
            cast(PreTrainedModel, model).save_pretrained(self.output / "model")
            self._tokenizer.save_pretrained(self.output / "model")
            final = load_model(self._spec.model, dtype=self._spec.dtype)
            processor = GradientProcessor.load(self.output / "statistics")
            collector = RowCollector(final, processor, list(self._recorder.modules))
            encoder = RowEncoder(collector, self._settings.rows)
            context = BuildContext(self._spec, self.output)
            RecordedRun(context, final, encoder, self._dataset, self._make_documents(), rows).publish()
            (self.output / _ROWS_FILE).unlink()
            remove_build_stamp(self.output)

    def _make_spec(self, model: nn.Module) -> BuildSpec:
        """Returns the spec that the index is published with."""
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

    def _prepare_rows_file(self, args: Any, state: Any, shape: tuple[int, int]) -> None:
        """Creates rows.bin: zeros, or the rows of the checkpoint that the run is resumed from."""
        size, checkpoint_rows = 4 * shape[0] * shape[1], _checkpoint_rows_path(args, state)
        if state.global_step == 0:
            with translate_disk_errors(self.output), (self.output / _ROWS_FILE).open("wb") as file:
                file.truncate(size)
            return
        if checkpoint_rows.stat().st_size != size:
            raise InvalidInput(
                f"{checkpoint_rows} does not hold the rows of {shape[0]} documents: expected the dataset and the "
                "settings that the run began with"
            )
        with translate_disk_errors(self.output):
            shutil.copyfile(checkpoint_rows, self.output / _ROWS_FILE)

    def _make_documents(self) -> Documents:
        """Returns the documents as text, which is decoded from their tokens if the dataset has none."""
        dataset, prompt = self._dataset, self._columns.prompt
        if prompt not in dataset.column_names and self._columns.messages is None:
            dataset = dataset.map(
                lambda rows, numbers: {prompt: self._decode(rows, numbers)},
                batched=True,
                with_indices=True,
            )
        documents = documents_from_dataset(dataset, self._columns, "the train_dataset")
        documents.require_valid_ids()
        return documents

    def _decode(self, rows: dict[str, Any], numbers: list[int]) -> list[str]:
        """Returns the text of tokenised rows, without their padding."""
        return self._tokenizer.batch_decode(
            [tokens.ids.tolist() for tokens in read_token_rows(rows, numbers)]
        )


def _require_supported_run(args: Any, model: nn.Module) -> None:
    """Raises `InvalidInput` for training arguments, or a model, that the callback cannot follow."""
    expected = {
        "one process": args.world_size == 1 and args.n_gpu <= 1,
        "float32 or bfloat16 (fp16 scales the loss)": not args.fp16,
        "a model that is not compiled": not args.torch_compile and not is_compiled(model),
    }
    for condition, holds in expected.items():
        if not holds:
            raise InvalidInput(f"an index of a training run cannot be built here: expected {condition}")


def _checkpoint_rows_path(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _CHECKPOINT_ROWS_FILE
