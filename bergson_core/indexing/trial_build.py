"""A build of one shard that measures what the whole build takes; `estimate` starts it as a process of its own.

    python -m bergson_core.indexing.trial_build <directory> <sample size>

reads spec.json in the directory and says on standard output how far it is and what came of it, one JSON object a line.

It is the build itself, with a shard of the build's own size, so that its memory is that of the build. Left out is what
takes long and is the same many times (`sparing`): the model runs on some batches only, and the rows of the others are
drawn at random; of the matrices of one size one is decomposed. The time that this spares is counted.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bergson_core.data.batching import Batch, length_buckets
from bergson_core.data.dataset import Documents
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.gradients.normalizer_fitting import sample_row_numbers
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.build import IndexBuild
from bergson_core.indexing.checked_documents import CheckedDocuments
from bergson_core.indexing.cost_meter import (
    CostMeter,
    OneOfEachSize,
    PassSampler,
    SampledRowCollector,
    resident_bytes,
)
from bergson_core.indexing.shard_builder import rows_per_shard
from bergson_core.models.loading import LanguageModel
from bergson_core.models.modules import select_modules
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import BuildSpec, SearchSpec
from bergson_core.schemas.record import Record
from bergson_core.schemas.results import Estimate, SizesBytes
from bergson_core.search.recall import RecallQueries, search_kinds_to_try
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.utils.progress import ProgressCallback, StageProgress

_ANY_RECALL: Final = 1e-9
"""Random rows are not to be judged."""
_KEPT_AGAIN: Final = 0.5
"""Of the memory that the allocator keeps after one batch, what comes on top when many follow: those of other sizes find
no room there."""


@dataclass(frozen=True)
class DocumentSubset(Documents):
    """Some rows of a dataset as documents, in this order; ids and errors name the dataset's own rows."""

    places: Sequence[int] = ()

    @classmethod
    def of(cls, documents: Documents, places: Sequence[int]) -> "DocumentSubset":
        return cls(documents.dataset, documents.columns, documents.name, places=places)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: range | Sequence[int]) -> list[Record]:
        return super().read([self.places[number] for number in numbers])


class TrialBuild(IndexBuild):
    """One run of the build of a shard. `estimate` runs it and says what came out."""

    def __init__(self, spec: BuildSpec, output: Path, report: ProgressCallback, sample_size: int) -> None:
        super().__init__(spec, output, _without_rates(report), lambda: None, None)
        self._sample_size = sample_size
        self._meter = CostMeter()

    def estimate(self) -> Estimate:
        """What the whole build takes, in a process that has done nothing else."""
        self.output.mkdir()
        with OneOfEachSize(self._meter):
            manifest = self.run()
        self._meter.begin("end")
        sizes, shards = self._sizes(manifest), -(-self._documents_in_all // manifest.rows)
        device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
        return Estimate(
            documents=self._documents_in_all,
            looked_at=self._looked_at,
            tokens=self._scaled(self._labelled, self._looked_at),
            modules=len(manifest.modules),
            dimensions=manifest.dimensions,
            coverage_percent=manifest.coverage_percent,
            search=manifest.search.kind,
            size_bytes=sizes,
            peak_disk_bytes=sizes.total + shards * self._while_building,
            peak_memory_bytes=self._peak_memory_bytes(manifest.rows),
            peak_device_bytes=device,
            seconds=round(self._seconds(manifest.rows), 1),
        )

    def _documents(self) -> Documents:
        documents = super()._documents()
        self._documents_in_all = len(documents)
        numbers = sample_row_numbers(len(documents), self._sample_size, self.spec.gradients.seed)
        return DocumentSubset.of(documents, numbers)

    def _survey(self, model: LanguageModel) -> CheckedDocuments:
        """Looks at the sample, and chooses the documents of the shard from it."""
        self._meter.begin("read")
        corpus = super()._survey(model)
        self._meter.begin("choose")
        settings = self.spec.gradients
        layers = select_modules(model.model, settings.modules)
        shape = RowShape(settings.rows, len(layers), settings.projection_dim**2)
        self.spec = self.spec.model_copy(update={"search": self._first_search(shape)})
        self._looked_at, tokens = len(corpus.documents), []
        for chunk in corpus.documents.chunks():
            tokens += [(len(one.ids), one.labelled) for one in tokenize_documents(chunk, self.spec, model)]
        lengths = [length for length, _ in tokens]
        self._labelled = sum(labelled for _, labelled in tokens)
        self._shard_rows = rows_per_shard(shape, self._documents_in_all)
        places = _spread(lengths, min(self._documents_in_all, self._shard_rows))
        self._lengths = [lengths[place] for place in places]
        documents = corpus.documents
        assert isinstance(documents, DocumentSubset)  # of `_documents`
        chosen = DocumentSubset.of(documents, [documents.places[place] for place in places])
        return replace(corpus, documents=chosen)

    def _first_search(self, shape: RowShape) -> SearchSpec:
        """The first kind of search that the build would try."""
        first, *_ = search_kinds_to_try(self.spec.search, shape, self._documents_in_all)
        return SearchSpec(kind="rabitq" if first == "rabitq" else "exact", min_recall=_ANY_RECALL)

    def _statistics(self, model: LanguageModel, corpus: CheckedDocuments) -> int:
        self._meter.begin("statistics")
        self._fitting = PassSampler(self._meter, model.device)
        return super()._statistics(model, corpus)

    def _reported(self, source: Iterator[Batch], clock: StageProgress) -> Iterator[Batch]:
        return super()._reported(self._fitting.some(source), clock)

    def _collector(self, model: LanguageModel, processor: GradientProcessor) -> RowCollector:
        return SampledRowCollector(
            PassSampler(self._meter, model.device), model, processor, self.spec.gradients.modules
        )

    def _shards(self, model: LanguageModel, corpus: CheckedDocuments, rows: RowEncoder) -> list[ShardEntry]:
        self._meter.begin("gradients")
        assert isinstance(rows.collector, SampledRowCollector)  # of `_collector`
        buckets = length_buckets(self._lengths, self._budget_tokens)
        rows.collector.passes.most_documents = max(map(len, buckets))
        shards = super()._shards(model, corpus, rows)
        there = sum(path.stat().st_size for path in (self.output / "shards").rglob("*") if path.is_file())
        self._while_building = there - sum(entry.bytes for shard in shards for entry in shard.files)
        return shards

    def _sample(
        self, model: LanguageModel, corpus: CheckedDocuments, collector: RowCollector
    ) -> RecallQueries:
        self._meter.begin("sample")
        sample = super()._sample(model, corpus, collector)
        self._meter.begin("search")
        return sample

    def _scaled(self, amount: float, of: int) -> int:
        """`amount` of so many documents, for all of them."""
        return round(amount * self._documents_in_all / of)

    def _sizes(self, manifest: Manifest) -> SizesBytes:
        rows = sum(entry.bytes for shard in manifest.shards for entry in shard.files)
        search = sum(entry.bytes for entry in manifest.files if entry.path.startswith("search/"))
        of_profile = [entry for profile in manifest.profiles for entry in profile.files]
        lengths = sum(entry.bytes for entry in of_profile if entry.path.endswith(".lengths.bin"))
        once = manifest.total_bytes() - rows - search - lengths
        rows, search, lengths = (self._scaled(part, manifest.rows) for part in (rows, search, lengths))
        return SizesBytes(
            rows=rows, search=search, statistics=once + lengths, total=rows + search + lengths + once
        )

    def _peak_memory_bytes(self, rows: int) -> int:
        """What was measured, and what the batches that were left out add to what the allocator keeps."""
        left_out = 1 - self._meter.run_s / max(self._meter.run_s, self._passes_s(rows), 1e-9)
        return resident_bytes("VmHWM") + round(_KEPT_AGAIN * left_out * self._meter.kept_bytes)

    def _passes_s(self, rows: int) -> float:
        """Seconds of all passes of the whole build."""
        stages, size = self._meter.stages, self.spec.gradients.sample_size
        fitted = stages["statistics"]["passes"] * min(size, self._documents_in_all) / min(size, rows)
        collected = stages["gradients"]["passes"] * self._documents_in_all / rows
        return fitted + collected + stages["sample"]["passes"]

    def _seconds(self, rows: int) -> float:
        stages = self._meter.stages
        once = sum(stage["decompositions"] for stage in stages.values())
        once += sum(stages[name]["other"] for name in ("load", "statistics", "sample"))
        by_row = (stages["gradients"]["other"] + stages["search"]["other"]) / rows
        by_document = stages["read"]["other"] / self._looked_at + by_row
        return once + self._passes_s(rows) + by_document * self._documents_in_all


def _spread(lengths: Sequence[int], count: int) -> list[int]:
    """Places of `count` documents of all lengths, the longest among them; some stand twice where there are fewer."""
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    chosen = np.linspace(0, len(lengths) - 1, count).round().astype(int)
    return sorted(longest_first[number] for number in chosen)


def _without_rates(report: ProgressCallback) -> ProgressCallback:
    """Most batches are not run: what they seem to take says nothing."""
    return lambda progress: report(progress.model_copy(update={"tokens_per_s": None, "eta_s": None}))


def main() -> None:
    """Tries what it is told to on its command line, and says on standard output what comes of it."""
    directory, sample_size = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", buffering=1) as events:
        os.dup2(2, 1)  # what a library prints is no event

        def say(**event: Any) -> None:
            events.write(json.dumps(event) + "\n")

        try:
            made = _run(Path(directory), int(sample_size), lambda one: say(progress=one.model_dump()))
            say(estimate=made.model_dump())
        except BergsonError as error:
            say(code=error.code, detail=str(error))


def _run(directory: Path, sample_size: int, report: ProgressCallback) -> Estimate:
    spec = BuildSpec.model_validate_json((directory / "spec.json").read_bytes())
    try:
        return TrialBuild(spec, directory / "index", report, sample_size).estimate()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InvalidInput(f"the build does not fit into memory: {error}") from error


if __name__ == "__main__":
    main()
