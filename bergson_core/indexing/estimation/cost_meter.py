"""Measures the time and memory of a trial build, and extrapolates them to the whole build."""

from collections import defaultdict
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

from bergson_core.gradients.fitting_sample import sample_documents
from bergson_core.schemas.results import Estimate, SizesBytes
from bergson_core.storage.manifest import Manifest

_REPEATED_ALLOCATOR_SHARE: Final = 0.5
"""How much the freed memory that the allocator holds after one batch grows over many batches, as a share of it: batches
of other sizes do not fit into the blocks that were freed."""

REFERENCE_DOCUMENTS: Final = 32
"""Preference pairs that a trial asks the reference model about."""


class CostMeter:
    """Counts seconds by stage of a build: passes through the model, decompositions, and everything else.

    Work that was left out counts as if it had been done.

    Attributes:
        stages: Seconds by stage and kind of work: `passes`, `decompositions` and `other`.
        measured_pass_s: Seconds of the passes that were run.
        allocator_bytes: Freed memory that the allocator held after the first pass.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.measured_pass_s = 0.0
        self.allocator_bytes = 0
        self.begin_stage("load")

    def begin_stage(self, stage: str) -> None:
        """Ends the stage before and begins this one."""
        now = perf_counter()
        if self.stages:
            self._current["other"] += now - self._stage_start
        self._stage_start = now
        self._current = self.stages[stage] = defaultdict(float)

    def count(
        self, work: Literal["passes", "decompositions"], *, spent: float = 0.0, spared: float = 0.0
    ) -> None:
        """Counts seconds of the current stage as work of this kind: spent on it, or spared by leaving it out."""
        self._current[work] += spent + spared
        self._current["other"] -= spent


@dataclass(frozen=True)
class SampleCounts:
    """How many documents and tokens a trial has looked at.

    Attributes:
        documents: Documents in the whole dataset.
        looked_at: Documents of the sample, which were read and tokenised.
        tokens: Tokens of the sample.
        labelled_tokens: Tokens of the sample that the loss is taken over.
    """

    documents: int
    looked_at: int
    tokens: int
    labelled_tokens: int


@dataclass(frozen=True)
class TrialMeasurements:
    """What was measured while a trial built one shard of an index.

    Attributes:
        sample: The documents that were looked at.
        temporary_bytes: Bytes that lay beside the finished shard until the index was published.
        manifest: The manifest of the index of this one shard.
        meter: The time that it took, by stage.
        device_bytes: The peak of the memory that was reserved on the GPU, None without a GPU.
    """

    sample: SampleCounts
    temporary_bytes: int
    manifest: Manifest
    meter: CostMeter
    device_bytes: int | None

    def extrapolate(self) -> Estimate:
        """Returns what the whole build takes. This process must have done nothing but the trial."""
        manifest, sizes = self.manifest, self._sizes()
        shards = -(-self.sample.documents // manifest.rows)
        return Estimate(
            documents=self.sample.documents,
            looked_at=self.sample.looked_at,
            tokens=self._scale(self.sample.labelled_tokens, self.sample.looked_at),
            modules=len(manifest.modules),
            dimensions=manifest.dimensions,
            coverage_percent=manifest.coverage_percent,
            search=manifest.search.kind,
            size_bytes=sizes,
            peak_disk_bytes=sizes.total + shards * self.temporary_bytes,
            peak_memory_bytes=self._peak_memory_bytes(),
            peak_device_bytes=self.device_bytes,
            seconds=round(self._seconds(), 1),
        )

    def _scale(self, amount: float, documents: int) -> int:
        """Scales an amount that was measured over `documents` documents to the whole dataset."""
        return round(amount * self.sample.documents / documents)

    def _sizes(self) -> SizesBytes:
        manifest = self.manifest
        rows = sum(entry.bytes for shard in manifest.shards for entry in shard.files)
        search = sum(entry.bytes for entry in manifest.files if entry.path.startswith("search/"))
        profile_files = [entry for profile in manifest.profiles for entry in profile.files]
        lengths = sum(entry.bytes for entry in profile_files if entry.path.endswith(".lengths.bin"))
        constant = manifest.total_bytes() - rows - search - lengths
        rows, search, lengths = (self._scale(part, manifest.rows) for part in (rows, search, lengths))
        return SizesBytes(
            rows=rows,
            search=search,
            statistics=constant + lengths,
            total=rows + search + lengths + constant,
        )

    def _peak_memory_bytes(self) -> int:
        """Returns the measured peak, plus the memory that the allocator would hold after the batches left out."""
        measured_s = self.meter.measured_pass_s
        left_out_share = 1 - measured_s / max(measured_s, self._pass_seconds(), 1e-9)
        repeated = round(_REPEATED_ALLOCATOR_SHARE * left_out_share * self.meter.allocator_bytes)
        return resident_bytes("VmHWM") + repeated

    def _pass_seconds(self) -> float:
        """Returns the seconds of all passes of the whole build through the model."""
        stages, rows = self.meter.stages, self.manifest.rows
        settings, tokens = self.manifest.spec.gradients, self.sample.tokens / self.sample.looked_at
        whole, tried = (sample_documents(settings, count, tokens) for count in (self.sample.documents, rows))
        fitting = stages["statistics"]["passes"] * whole / tried
        gradients = stages["gradients"]["passes"] * self.sample.documents / rows
        return fitting + gradients + stages["sample"]["passes"]

    def _seconds(self) -> float:
        stages = self.meter.stages
        once = sum(stage["decompositions"] for stage in stages.values())
        once += sum(stages[name]["other"] for name in ("load", "load_reference", "statistics", "sample"))
        per_row = (stages["gradients"]["other"] + stages["search"]["other"]) / self.manifest.rows
        per_document = stages["read"]["other"] / self.sample.looked_at + per_row
        per_document += stages["reference"]["other"] / REFERENCE_DOCUMENTS
        return once + self._pass_seconds() + per_document * self.sample.documents


def resident_bytes(field: str) -> int:
    """Returns the resident memory of this process in bytes, mapped files included.

    Args:
        field: A field of /proc/self/status: `VmRSS` for the memory now, `VmHWM` for the peak, `RssAnon` for memory that
            is not mapped from files.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def trim_allocator() -> int:
    """Releases the freed memory that the C allocator still holds, and returns its size in bytes."""
    before = resident_bytes("VmRSS")
    CDLL(None).malloc_trim(0)
    return before - resident_bytes("VmRSS")
