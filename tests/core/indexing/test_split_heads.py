"""An index whose rows have a block for each head of attention is built, extended, opened and queried."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bergson_core import (
    AttributionIndex,
    GradientCollector,
    append_documents,
    build_index,
    collect_gradients,
    fit_processor,
)
from bergson_core.data.dataset import load_dataset_spec
from bergson_core.errors import IndexCorrupt, InvalidInput
from bergson_core.gradients.normalizers.optimizer_checkpoint import read_checkpoint_normalizers
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.indexing.estimation.trial_build import run_trial_build
from bergson_core.models.loading import load_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from bergson_core.schemas.source import DatasetSpec
from bergson_core.storage.manifest import read_manifest
from tests import tiny
from tests.core.helpers import make_spec, rows_by_definition, scores_by_definition, write_rows
from tests.core.helpers import query as make_query

HEADS = {
    f"gpt_neox.layers.{layer}.attention.{part}.head_{head}"
    for layer in range(2)
    for part in ("dense", "query_key_value")
    for head in range(2)
}
MLPS = {
    f"gpt_neox.layers.{layer}.mlp.{part}" for layer in range(2) for part in ("dense_4h_to_h", "dense_h_to_4h")
}


def spec_with_heads(sources: Path, **gradients: object) -> BuildSpec:
    return make_spec(sources, gradients={"projection_dim": 4, "split_heads": True} | gradients)


@pytest.fixture(scope="module")
def heads(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "facts"
    build_index(spec_with_heads(sources), path, shard_rows=16)
    return path


def test_an_answer_says_the_share_of_each_head(heads: Path) -> None:
    index = AttributionIndex.open(heads)
    assert set(index.collector.modules) == HEADS | MLPS
    answer = index.query("Person 3 lives in", " city 1.", include=["modules"], top_k=5)
    for row in answer.results or ():
        assert row.modules is not None and row.modules.keys() == HEADS | MLPS
        assert sum(row.modules.values()) == pytest.approx(row.score, abs=1e-3)


def test_scores_are_those_of_rows_and_a_preconditioner_by_head(heads: Path, sources: Path) -> None:
    spec, asked = spec_with_heads(sources), make_query()
    assert rows_by_definition(heads, spec).shape[1:] == (12, 16)
    expected = scores_by_definition(heads, spec, asked)
    answer = AttributionIndex.open(heads).query(asked.prompt, asked.completion, top_k=40)
    scores = {row.id: row.score for row in answer.results or ()}
    for number, score in enumerate(expected.tolist()):
        assert scores[f"doc-{number}"] == pytest.approx(score, abs=5e-3)


def test_tokens_and_rescoring_work_by_head(heads: Path) -> None:
    index = AttributionIndex.open(heads)
    answer = index.query("Person 3 lives in", " city 1.", top_k=3, rescore=10, include=["modules", "tokens"])
    for row in answer.results or ():
        assert row.exact and row.modules is not None and row.modules.keys() == HEADS | MLPS
        assert sum(token.influence for token in row.tokens or ()) == pytest.approx(row.score, abs=1e-4)


@pytest.mark.parametrize("normalizer", ["kfac", "adam"])
def test_other_normalizers_and_biases_go_by_head(sources: Path, tmp_path: Path, normalizer: str) -> None:
    spec = spec_with_heads(sources, normalizer=normalizer, include_bias=True)
    manifest = build_index(spec, tmp_path / "facts")
    biases = {f"gpt_neox.layers.{layer}.attention.dense.bias" for layer in range(2)}
    assert {module.name for module in manifest.modules} == HEADS | MLPS | biases
    answer = AttributionIndex.open(tmp_path / "facts").query("Person 3 lives in", " city 1.", rescore=5)
    assert answer.rescored is not None and answer.rescored.exact == 5


def test_an_append_goes_on_with_the_heads(heads: Path, tmp_path: Path, sources: Path) -> None:
    build_index(spec_with_heads(sources), tmp_path / "facts")
    rows = write_rows(
        tmp_path, {"id": "n-1", "text": "Person 3 lives in city 2.", "source": "w", "number": 1}
    )
    append_documents(tmp_path / "facts", AppendSpec(dataset=rows))
    assert read_manifest(tmp_path / "facts").modules == read_manifest(heads).modules
    answer = AttributionIndex.open(tmp_path / "facts").query("Person 3 lives in", " city 2.", top_k=41)
    assert "n-1" in {row.id for row in answer.results or ()}


def test_an_estimate_counts_a_block_for_each_head(sources: Path, tmp_path: Path) -> None:
    estimates = [
        run_trial_build(
            make_spec(sources, gradients=gradients), tmp_path / name, lambda _: None, sample_size=20
        )
        for name, gradients in {
            "whole": {"projection_dim": 4},
            "heads": {"projection_dim": 4, "split_heads": True},
        }.items()
    ]
    assert [estimate.dimensions for estimate in estimates] == [8 * 16, 12 * 16]


def test_a_processor_of_whole_modules_does_not_fit_to_rows_of_heads(heads: Path) -> None:
    index = AttributionIndex.open(heads)
    assert GradientProcessor.load(heads / "statistics").split_heads
    other = GradientProcessor(4, index.processor.normalizers)
    with pytest.raises(InvalidInput, match="split_heads"):
        index.search(torch.zeros(1, index.collector.dimensions), other)


def test_a_processor_that_says_otherwise_than_the_manifest_is_found(sources: Path, tmp_path: Path) -> None:
    build_index(spec_with_heads(sources), tmp_path / "facts")
    settings = tmp_path / "facts" / "statistics" / "processor.json"
    settings.write_text(settings.read_text().replace('"split_heads": true', '"split_heads": false'))
    with pytest.raises(IndexCorrupt):
        AttributionIndex.open(tmp_path / "facts")


def test_the_library_collects_and_fits_by_head(sources: Path) -> None:
    loaded = load_model(str(sources / "model"))
    dataset = load_dataset_spec(DatasetSpec(path=str(sources / "documents.jsonl")), ["text"]).select(range(6))
    settings = GradientSpec(projection_dim=4, modules="attention", split_heads=True)
    processor = fit_processor(loaded.model, dataset, loaded.tokenizer, settings)
    assert processor.normalizers.keys() == HEADS
    rows = collect_gradients(loaded.model, dataset, loaded.tokenizer, processor, modules="attention")
    assert len(rows[0]["gradients"]) == 16 * len(HEADS)
    with GradientCollector(loaded.model, processor, modules="attention") as collector:
        ids = loaded.tokenizer([dataset[0]["text"]], return_tensors="pt").input_ids
        loaded.model(input_ids=ids, labels=ids).loss.backward()
    assert collector.gradients.keys() == HEADS


def test_files_of_indexes_without_split_heads_are_those_of_earlier_releases(sources: Path) -> None:
    assert "split_heads" not in GradientProcessor(4).settings
    assert make_spec(sources).fingerprint() != spec_with_heads(sources).fingerprint()


@pytest.mark.parametrize("kind", ["whole", "means"])
def test_moments_of_an_optimizer_are_cut_to_heads(tmp_path: Path, kind: str) -> None:
    model = tiny.model("gpt2", dtype=torch.float32)
    modules = select_modules(model, "attention", split_heads=True, include_bias=True)
    generator = torch.Generator().manual_seed(0)
    moments = {
        name: torch.rand(parameter.shape, generator=generator) + 0.1
        for name, parameter in model.named_parameters()
        if ".attn." in name
    }
    if kind == "means":  # V is what its means say, so that both kinds are of one moment
        for name, moment in moments.items():
            if moment.dim() == 2:
                moments[name] = torch.outer(moment.mean(1), moment.mean(0)) / moment.mean()
    states = {}
    for name, moment in moments.items():
        if kind == "means" and moment.dim() == 2:
            states |= {f"{name}.exp_avg_sq_row": moment.mean(1), f"{name}.exp_avg_sq_col": moment.mean(0)}
        else:
            states[name] = moment
    save_file({name: value.contiguous() for name, value in states.items()}, tmp_path / "moments.safetensors")
    normalizers = read_checkpoint_normalizers(
        tmp_path / "moments.safetensors", model, modules, "adafactor", include_bias=True
    )
    for name, tracked in modules.items():
        assert tracked.part is not None
        whole = moments[f"{tracked.module_name}.weight"].T
        bias = moments[f"{tracked.module_name}.bias"][:, None]
        features = [feature for start, end in tracked.part.ranges for feature in range(start, end)]
        if tracked.part.side == "output":
            expected = torch.cat([whole, bias], 1)[features]
        else:
            expected = bias if tracked.part.label == "bias" else whole[:, features]
        tensors = normalizers[name].tensors()
        torch.testing.assert_close(tensors["row"], expected.mean(1))
        torch.testing.assert_close(tensors["column"], expected.mean(0))
