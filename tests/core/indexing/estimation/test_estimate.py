"""The estimate of a build is what the build then takes."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from bergson_core import build_index
from bergson_core.errors import (
    Cancelled,
    ColumnNotFound,
    DatasetNotFound,
    InvalidInput,
    ModelNotFound,
    TooLong,
)
from bergson_core.indexing.estimation.cost_meter import CostMeter
from bergson_core.indexing.estimation.estimate import estimate_build
from bergson_core.indexing.estimation.partial_steps import DecompositionSampler, PassSampler
from bergson_core.indexing.estimation.trial_build import run_trial_build
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import tiny
from tests.core.helpers import make_spec

DOCUMENTS = 300
SPECS = {
    "adafactor, float16": {"gradients": {"projection_dim": 4}},
    "kfac, sign": {
        "gradients": {"projection_dim": 8, "normalizer": "kfac", "rows": "sign"},
        "scoring": {"normalize": "block"},
    },
    "none, int8, no C": {
        "gradients": {"projection_dim": 5, "normalizer": "none", "rows": "int8"},
        "scoring": {"preconditioner": False},
    },
    "adam, rabitq, a bias": {
        "gradients": {"projection_dim": 4, "normalizer": "adam", "include_bias": True},
        "scoring": {"normalize": "block"},
        "search": {"kind": "rabitq", "min_recall": 0.1},
    },
    "completions": {
        "gradients": {"projection_dim": 4, "sample_size": 30},
        "columns": ColumnsSpec(prompt="text", completion="end", id="id", metadata=("source",)),
    },
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    """Documents of ten to sixty tokens, each with a completion."""
    rows = [
        {"id": f"doc-{k}", "text": text + " and" * (k % 30), "end": " so on" * (k % 4), "source": "wiki"}
        for k, text in enumerate(tiny.texts(DOCUMENTS))
    ]
    path = tmp_path_factory.mktemp("many") / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSpec(path=str(path))


def sizes(manifest: Manifest) -> dict[str, int]:
    rows = sum(entry.bytes for shard in manifest.shards for entry in shard.files)
    search = sum(entry.bytes for entry in manifest.files if entry.path.startswith("search/"))
    total = manifest.total_bytes()
    return {"rows": rows, "search": search, "statistics": total - rows - search, "total": total}


@pytest.mark.parametrize("case", SPECS)
def test_a_sample_is_enough_to_estimate_what_the_build_then_takes(case, sources, many, tmp_path):
    spec = make_spec(sources, **{"dataset": many, "columns": ColumnsSpec(id="id")} | SPECS[case])
    estimate = run_trial_build(spec, tmp_path / "trial", lambda progress: None, sample_size=60)
    manifest = build_index(spec, tmp_path / "index")
    assert (estimate.documents, estimate.looked_at) == (DOCUMENTS, 60)
    assert estimate.modules == len(manifest.modules)
    assert estimate.dimensions == manifest.dimensions
    assert estimate.coverage_percent == manifest.coverage_percent
    assert estimate.search == manifest.search.kind
    assert estimate.tokens == pytest.approx(manifest.tokens, rel=0.2)
    assert estimate.size_bytes.model_dump() == pytest.approx(sizes(manifest), rel=0.1)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that temporary directories are made in."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def test_of_few_documents_all_are_looked_at_and_bytes_and_tokens_are_exact(sources, scratch, tmp_path):
    rows = tuple({"text": text, "kind": k} for k, text in enumerate(tiny.texts(40)))
    changes = {"dataset": None, "documents": rows, "columns": ColumnsSpec(metadata=("kind",))}
    spec, seen = make_spec(sources, **changes), []
    estimate = estimate_build(spec, report=seen.append)
    manifest = build_index(spec, tmp_path / "index")
    assert (estimate.documents, estimate.looked_at, estimate.tokens) == (40, 40, manifest.tokens)
    exact = sizes(manifest)
    assert estimate.size_bytes.model_dump() == exact
    assert exact["total"] < estimate.peak_disk_bytes < 2 * exact["total"]
    assert estimate.peak_memory_bytes > 100 * 2**20  # torch alone
    assert estimate.seconds > 0
    assert list(dict.fromkeys(progress.stage for progress in seen)) == [
        "load",
        "read",
        "statistics",
        "gradients",
        "measure",
        "preconditioner",
        "search",
        "done",
    ]
    assert list(scratch.iterdir()) == []


def test_a_document_that_is_too_long_is_named_as_the_build_names_it(sources, scratch, tmp_path):
    spec, messages = make_spec(sources, gradients=GradientSpec(max_tokens=8)), []
    for refuse in (lambda: estimate_build(spec), lambda: build_index(spec, tmp_path / "index")):
        with pytest.raises(TooLong, match="'doc-1'") as caught:
            refuse()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert list(scratch.iterdir()) == []


WRONG = {
    "no such model": (ModelNotFound, {"model": "/nothing"}),
    "no such dataset": (DatasetNotFound, {"dataset": DatasetSpec(path="nothing.jsonl")}),
    "a missing column": (ColumnNotFound, {"columns": ColumnsSpec(prompt="body")}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_build_refuses_a_trial_refuses(case, sources, tmp_path):
    kind, changes = WRONG[case]
    with pytest.raises(kind):
        run_trial_build(make_spec(sources, **changes), tmp_path / "trial", lambda progress: None, 60)


@pytest.fixture
def run_as_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has lines of the shell run in place of the trial, which would load torch first."""

    def replace(lines: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


def test_a_report_that_raises_ends_the_trial(spec, scratch, tmp_path, run_as_trial):
    def stop(progress: Progress) -> None:
        raise Cancelled("stopped by the test")

    event = json.dumps({"progress": Progress(stage="load").model_dump(mode="json")})
    run_as_trial(f"echo $$ > '{tmp_path}/pid'; echo '{event}'; exec sleep 600")
    with pytest.raises(Cancelled):
        estimate_build(spec, report=stop)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert list(scratch.iterdir()) == []


def test_a_trial_that_the_system_kills_does_not_fit_into_memory(spec, scratch, run_as_trial):
    run_as_trial("kill -9 $$")
    with pytest.raises(InvalidInput, match="does not fit into memory"):
        estimate_build(spec)
    assert list(scratch.iterdir()) == []


def test_the_longest_batch_and_the_one_of_most_documents_are_run(monkeypatch):
    monkeypatch.setattr("bergson_core.indexing.estimation.partial_steps._MEASURED_S", 0.0)
    lengths = [60, *[30] * 40, *[20] * 50, *[19] * 30]
    documents = [Tokens.labelled_from(np.zeros(length, dtype=np.int64), 1) for length in lengths]
    batches = list(iter_batches(documents, 60))
    passes = PassSampler(CostMeter(), torch.device("cpu"), largest_batch=max(map(len, batches)))

    def runs(batch: Batch) -> bool:
        with passes.measure_pass(batch) as is_run:
            return is_run

    assert [len(batch) for batch in batches if runs(batch)] == [1, 3]
    assert runs(batches[0]) is False


def test_one_matrix_of_each_size_is_decomposed_and_all_are_counted():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(side, side, generator=generator) for side in (5, 5, 5, 3)]
    symmetric, meter = [matrix @ matrix.mT for matrix in matrices], CostMeter()
    eigh = DecompositionSampler(meter)
    decomposed = [eigh(matrix) for matrix in symmetric]
    for (values, vectors), matrix in zip(decomposed[::3], symmetric[::3], strict=True):
        torch.testing.assert_close(vectors * values @ vectors.mT, matrix)
    for values, vectors in decomposed[1:3]:
        torch.testing.assert_close(vectors * values @ vectors.mT, torch.eye(5))
    meter.begin_stage("after")
    seconds = meter.stages["load"]
    assert seconds["decompositions"] > sum(seconds.values()) - seconds["other"] - 1e-9


def test_the_decompositions_of_a_whole_build_go_through_the_sampler(sources, tmp_path, monkeypatch):
    """Also those of the preconditioner and of K-FAC, which are made in a thread of their own."""
    sizes = []
    original = DecompositionSampler.__call__

    def record(sampler, matrix):
        sizes.append(len(matrix))
        return original(sampler, matrix)

    monkeypatch.setattr(DecompositionSampler, "__call__", record)
    spec = make_spec(sources, gradients={"projection_dim": 4, "normalizer": "kfac"})
    modules = run_trial_build(spec, tmp_path / "trial", lambda progress: None, 60).modules
    assert sizes.count(4**2) >= modules  # the preconditioner's blocks
    assert len(sizes) == 3 * modules  # and both factors of each module
