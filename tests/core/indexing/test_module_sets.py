"""An index tracks the modules that its build named, and goes on to track them when it is queried and extended."""

from pathlib import Path

import pytest

from bergson_core import AttributionIndex, append_documents, build_index, collect_gradients, fit_processor
from bergson_core.data.dataset import load_dataset_spec
from bergson_core.models.language_model import as_language_model
from bergson_core.models.loading import load_model
from bergson_core.models.tracking import selection
from bergson_core.schemas.build import AppendSpec, GradientSpec
from bergson_core.schemas.source import DatasetSpec
from bergson_core.storage.manifest import read_manifest
from tests.core.helpers import make_spec, write_rows

SETS = {
    "mlp": ["mlp.dense_4h_to_h", "mlp.dense_h_to_4h"],
    "attention": ["attention.dense", "attention.query_key_value"],
    "down": ["mlp.dense_4h_to_h"],
}


def names(parts: list[str]) -> list[str]:
    return [f"gpt_neox.layers.{layer}.{part}" for layer in range(2) for part in parts]


def new_documents(directory: Path) -> DatasetSpec:
    return write_rows(
        directory, {"id": "n-1", "text": "Person 3 lives in city 2.", "source": "web", "number": 1}
    )


@pytest.mark.parametrize("set_name", SETS)
def test_an_index_of_a_set_is_built_extended_and_queried(
    sources: Path, tmp_path: Path, set_name: str
) -> None:
    spec = make_spec(sources, gradients={"projection_dim": 4, "modules": set_name})
    manifest = build_index(spec, tmp_path / "facts")
    assert manifest.spec.gradients.modules == set_name
    assert [module.name for module in manifest.modules] == names(SETS[set_name])
    again = {"gradients": {"projection_dim": 4, "modules": set_name}, "dataset": new_documents(tmp_path)}
    append_documents(tmp_path / "facts", AppendSpec.model_validate(again))
    answer = AttributionIndex.open(tmp_path / "facts").query("Person 3 lives in", " city 2.", top_k=41)
    assert len(answer.results or ()) == 41
    first = next(row for row in answer.results or () if row.id == "n-1")
    assert first.score > 0


def test_an_index_keeps_its_modules_when_a_name_comes_to_mean_others(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Release 0.1.0 searched for `mlp` as for any other expression."""
    index, expected = tmp_path / "facts", names(SETS["mlp"])
    build_index(make_spec(sources, gradients={"projection_dim": 4, "modules": "mlp"}), index)
    monkeypatch.setattr(selection, "find_module_set", lambda *arguments: set(names(SETS["attention"])))
    append_documents(index, AppendSpec(dataset=new_documents(tmp_path)))
    opened = AttributionIndex.open(index)
    assert list(opened.collector.modules) == expected
    assert [module.name for module in read_manifest(index).modules] == expected
    assert opened.query("Person 3 lives in", " city 1.", top_k=41).results


def test_all_is_another_name_for_the_default() -> None:
    assert GradientSpec(modules="all") == GradientSpec()


def test_the_library_takes_the_names_wherever_it_takes_modules(sources: Path) -> None:
    loaded = load_model(str(sources / "model"))
    dataset = load_dataset_spec(DatasetSpec(path=str(sources / "documents.jsonl")), ["text"]).select(range(4))
    settings = GradientSpec(projection_dim=4, modules="down")
    processor = fit_processor(loaded.model, dataset, loaded.tokenizer, settings)
    assert sorted(processor.normalizers) == names(SETS["down"])
    rows = collect_gradients(loaded.model, dataset, loaded.tokenizer, processor, modules="down")
    assert len(rows[0]["gradients"]) == 4 * 4 * len(names(SETS["down"]))
    assert list(as_language_model(loaded.model).select_modules("mlp")) == names(SETS["mlp"])
