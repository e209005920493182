"""A trial build of one shard, which measures what the whole build takes. `estimate.py` starts it as a process:

    python -Pm bergson_core.indexing.estimation.trial_build <directory> <sample size>

The process reads spec.json in that directory, and writes its progress and its result to standard output, one JSON
object per line: {"progress": ...}, and at the end {"estimate": ...}, or {"code": ..., "detail": ...} for an error.

The trial runs the same stages as a build, over one shard of the size that the build's shards have, so that it needs the
memory that the build needs. It leaves out work that is slow and repeats itself, and counts the time of that work
(`partial_steps.py`): some batches run through the model, and the rows of all others are random numbers; of all matrices
of one size, one is decomposed.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.indexing.build import (
    collect_recall_queries,
    fit_statistics,
    load_tracked_model,
    make_shard_builder,
    rows_fingerprint,
)
from bergson_core.indexing.build_context import BuildContext, CostlySteps
from bergson_core.indexing.checked_documents import CheckedDocuments, check_documents
from bergson_core.indexing.estimation.cost_meter import (
    REFERENCE_DOCUMENTS,
    CostMeter,
    SampleCounts,
    TrialMeasurements,
)
from bergson_core.indexing.estimation.partial_steps import (
    DecompositionSampler,
    PassSampler,
    SampledRowCollector,
)
from bergson_core.indexing.executor import LocalExecutor
from bergson_core.indexing.preference.reference_margins import compute_margins, load_reference
from bergson_core.indexing.publish import publish_index
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.indexing.shard_building import build_shards
from bergson_core.models.index_tokens import tokenize_documents
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec, SearchSpec
from bergson_core.schemas.results import Estimate, Progress
from bergson_core.search.measuring.recall import RecallQueries, search_kinds_to_try
from bergson_core.shards.shard import RowShape
from bergson_core.shards.shard_writer import ShardPosition
from bergson_core.storage.manifest import ShardEntry
from bergson_core.tokens.batching import iter_length_buckets
from bergson_core.tokens.document_parts import DocumentSubset
from bergson_core.utils.progress import ProgressCallback

_MIN_RECALL: Final = 1e-9
"""Any recall is accepted: that of random rows means nothing."""


@dataclass(frozen=True)
class TrialShard:
    """The shard of a trial, with what is needed to publish it and what was measured so far."""

    builder: ShardBuilder
    shards: list[ShardEntry]
    queries: RecallQueries | None
    sample: SampleCounts
    temporary_bytes: int


def run_trial_build(spec: BuildSpec, output: Path, report: ProgressCallback, sample_size: int) -> Estimate:
    """Builds one shard of an index in the new directory `output`, and returns what the whole build takes.

    The process should have done nothing else before: the peak of its memory is measured.

    Args:
        spec: The whole build.
        output: Where the trial writes. The caller removes it.
        report: Called with the progress. It may raise to stop the trial.
        sample_size: How many documents to read.

    Raises:
        InvalidInput: A setting or a document of the sample is invalid. Further errors are those of `build_index`.
    """
    output.mkdir()
    meter = CostMeter()
    steps = CostlySteps(eigh=DecompositionSampler(meter))
    context = BuildContext(spec, output, _without_rates(report), steps=steps)
    trial = _build_shard(context, meter, sample_size)  # its documents are closed by now, as in a build
    meter.begin_stage("search")
    encoder = trial.builder.encoder
    search = _first_search(spec.search, encoder.shape, trial.sample.documents)
    manifest = publish_index(
        replace(context, spec=spec.model_copy(update={"search": search})),
        trial.builder.model,
        encoder,
        trial.shards,
        trial.queries,
    )
    context.report(Progress(stage="done", done=manifest.rows, total=manifest.rows))
    meter.begin_stage("end")
    device_bytes = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    measurements = TrialMeasurements(trial.sample, trial.temporary_bytes, manifest, meter, device_bytes)
    return measurements.extrapolate()


def _build_shard(context: BuildContext, meter: CostMeter, sample_size: int) -> TrialShard:
    """Runs the stages of a build before the publication, over one shard."""
    model = load_tracked_model(context)
    documents, lengths, sample = _choose_documents(context, model, meter, sample_size)
    _ask_reference(context, documents, model, meter)
    meter.begin_stage("statistics")
    fingerprint = rows_fingerprint(context.spec, model, documents)
    budget_tokens = fit_statistics(_sample_passes(context, model, meter), model, documents, fingerprint)
    largest_batch = max(map(len, iter_length_buckets(lengths, budget_tokens)))
    builder = make_shard_builder(_sample_passes(context, model, meter, largest_batch), model, budget_tokens)
    meter.begin_stage("gradients")
    tasks = plan_shards(len(documents), len(documents), ShardPosition(0, fingerprint))
    shards = build_shards(
        builder, documents.documents, tasks, context.report, context.confirm, LocalExecutor()
    )
    written = sum(path.stat().st_size for path in (context.output / "shards").rglob("*") if path.is_file())
    published = sum(entry.bytes for shard in shards for entry in shard.files)
    meter.begin_stage("sample")
    queries = collect_recall_queries(context, documents, builder, shards, sample.documents)
    return TrialShard(builder, shards, queries, sample, written - published)


def _choose_documents(
    context: BuildContext, model: LanguageModel, meter: CostMeter, sample_size: int
) -> tuple[CheckedDocuments, list[int], SampleCounts]:
    """Checks a sample of the dataset, and chooses the documents of the shard from it.

    Returns:
        The documents of the shard, the number of tokens in each, and the counts of the sample.
    """
    spec, settings = context.spec, context.spec.gradients
    meter.begin_stage("read")
    dataset = load_documents_streaming(spec, context.output, context.report)
    sample_rows = sample_row_numbers(len(dataset), sample_size, settings.seed)
    sample = DocumentSubset.of(dataset, sample_rows)
    checked = check_documents(spec, sample, model, context.report)
    meter.begin_stage("choose")
    lengths, labelled_tokens = [], 0
    for chunk in checked.documents.iter_chunks():
        for tokens in tokenize_documents(chunk, spec, model):
            lengths.append(tokens.padded)
            labelled_tokens += tokens.n_labelled
    modules = model.select_for(settings)
    shape = RowShape(settings.rows, len(modules), settings.projection_dim**2)
    rows = max(
        1, round(len(dataset) * len(checked) / len(sample))
    )  # fewer or more than documents, where some are cut
    count = min(rows, rows_per_shard(shape, rows))
    chosen = _spread_over_lengths(lengths, count)
    shard = DocumentSubset.of(checked.documents, chosen)
    return (
        replace(checked, documents=shard),
        [lengths[number] for number in chosen],
        SampleCounts(rows, len(checked), sum(lengths), labelled_tokens),
    )


def _ask_reference(
    context: BuildContext, documents: CheckedDocuments, model: LanguageModel, meter: CostMeter
) -> None:
    """Loads the reference model of preference pairs, if there is one, and asks it about a few of them."""
    meter.begin_stage("load_reference")
    reference = load_reference(context)
    meter.begin_stage("reference")
    if reference is not None:
        numbers = np.linspace(0, len(documents) - 1, REFERENCE_DOCUMENTS).round().astype(int).tolist()
        few = replace(documents, documents=DocumentSubset.of(documents.documents, numbers))
        compute_margins(context, few, model, reference)


def _sample_passes(
    context: BuildContext, model: LanguageModel, meter: CostMeter, largest_batch: int | None = None
) -> BuildContext:
    """Returns the context with steps that run the model on some batches only."""
    passes = PassSampler(meter, model.device, largest_batch)
    make_collector = partial(SampledRowCollector, PassSampler(meter, model.device, largest_batch))
    steps = replace(context.steps, select_batches=passes.select, make_collector=make_collector)
    return replace(context, steps=steps)


def _first_search(search: SearchSpec, shape: RowShape, rows: int) -> SearchSpec:
    """Returns the kind of search that a build of so many rows would try first, with a recall that is always reached."""
    if not search.measure:
        return search
    first, *_ = search_kinds_to_try(search, shape, rows)
    return SearchSpec(kind="rabitq" if first == "rabitq" else "exact", min_recall=_MIN_RECALL)


def _spread_over_lengths(lengths: Sequence[int], count: int) -> list[int]:
    """Chooses `count` documents of all lengths, the longest included; some are chosen twice if there are fewer."""
    longest_first = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    chosen = np.linspace(0, len(lengths) - 1, count).round().astype(int)
    return sorted(longest_first[place] for place in chosen)


def _without_rates(report: ProgressCallback) -> ProgressCallback:
    """Removes the rate and the remaining time from progress: with most batches left out, they would be wrong."""
    return lambda progress: report(progress.model_copy(update={"tokens_per_s": None, "eta_s": None}))


def main() -> None:
    """Runs the trial that the command line names, and writes its progress and its result to standard output."""
    directory, sample_size = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", buffering=1) as events:
        os.dup2(2, 1)  # standard output is for events; what libraries print goes to standard error

        def write_event(**event: Any) -> None:
            events.write(json.dumps(event) + "\n")

        def report(progress: Progress) -> None:
            write_event(progress=progress.model_dump())

        try:
            estimate = _run(Path(directory), int(sample_size), report)
            write_event(estimate=estimate.model_dump())
        except BergsonError as error:
            write_event(code=error.code, detail=str(error))


def _run(directory: Path, sample_size: int, report: ProgressCallback) -> Estimate:
    spec = BuildSpec.model_validate_json((directory / "spec.json").read_bytes())
    try:
        return run_trial_build(spec, directory / "index", report, sample_size)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InvalidInput(f"the build does not fit into memory: {error}") from error


if __name__ == "__main__":
    main()
