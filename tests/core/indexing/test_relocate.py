"""An index finds its model from every directory and after every move, and never asks the hub for what was a path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from peft import LoraConfig, get_peft_model

from bergson_core import AttributionIndex, append_documents, build_index, read_manifest, relocate_index
from bergson_core.errors import (
    BergsonError,
    DatasetNotFound,
    IndexBusy,
    IndexCorrupt,
    IndexExists,
    IndexNotFound,
    InvalidInput,
    ModelNotFound,
)
from bergson_core.models import loading
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.storage.layout import LOCK_FILE
from bergson_core.storage.manifest import MANIFEST_FILE
from tests import tiny
from tests.core.helpers import query, stop_after


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model and documents. A question to the hub fails the test."""
    project = tmp_path / "project"
    tiny.save_model(project / "models" / "gpt2")
    tiny.save_documents(project / "documents.jsonl")
    monkeypatch.chdir(project)
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    return project


def relative_spec(model: str = "models/gpt2", **changes: Any) -> BuildSpec:
    """Returns a build with paths relative to the project."""
    settings = {
        "dataset": {"path": "documents.jsonl"},
        "columns": {"id": "id"},
        "gradients": {"projection_dim": 4},
    }
    return BuildSpec.model_validate({"model": model} | settings | changes)


def best_id(index: Path | str) -> str:
    """Returns the id of the first result of a query."""
    (answer,) = AttributionIndex.open(index).attribute([query()])
    assert not isinstance(answer, BergsonError)
    assert answer.results
    return answer.results[0].id


def make_first_release(index: Path, **spec: Any) -> None:
    """Changes a manifest to what release 0.1.0 stored: paths as they were given."""
    manifest = json.loads((index / MANIFEST_FILE).read_text())
    manifest["spec"] |= spec
    manifest.pop("adapter_base", None)
    (index / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_an_index_of_relative_paths_is_queried_from_another_directory(project, tmp_path, monkeypatch):
    spec = build_index(relative_spec(), "facts").spec
    assert (spec.model, spec.dataset.path) == (
        str(project / "models" / "gpt2"),
        str(project / "documents.jsonl"),
    )
    here = best_id("facts")
    monkeypatch.chdir(tmp_path)
    assert best_id("project/facts") == here
    rows = ({"id": "new", "text": "Person 99 lives in city 3."},)
    assert append_documents("project/facts", AppendSpec(documents=rows)).rows == 41


def test_another_spelling_of_the_same_paths_is_the_same_build(project, tmp_path, monkeypatch):
    first = build_index(relative_spec(), "facts")
    (project / "latest").symlink_to("models/gpt2")
    for model in ("./models/gpt2/", "latest", str(project / "models" / ".." / "models" / "gpt2")):
        assert build_index(relative_spec(model), "facts") == first
    monkeypatch.chdir(tmp_path)
    again = relative_spec("project/latest", dataset={"path": "project/documents.jsonl"})
    assert build_index(again, "project/facts") == first


def test_a_directory_wins_over_the_hub_even_with_a_revision(project):
    assert build_index(relative_spec(revision="main"), "facts").model_source == str(
        project / "models" / "gpt2"
    )
    assert best_id("facts")


def test_an_index_of_the_first_release_opens_where_it_was_built(project):
    build_index(relative_spec(), "facts")
    make_first_release(project / "facts", model="models/gpt2", dataset=None, documents=[{"text": "a"}])
    assert best_id("facts")
    make_first_release(project / "facts", model="./models/gpt2")
    assert best_id("facts")


@pytest.mark.parametrize("stored", [None, "models/gpt2", "./models/gpt2", "../project/models/gpt2"])
def test_a_model_that_vanished_is_named_with_what_to_do_and_the_hub_is_not_asked(project, stored):
    build_index(relative_spec(), "facts")
    if stored:
        make_first_release(project / "facts", model=stored)
    shutil.move("models", "moved")
    message = (
        rf"no model directory at {project}/models/gpt2: the index facts was built from the local path .*"
        r"bergson relocate facts --model PATH"
    )
    added = AppendSpec(documents=({"id": "new", "text": "Person 99 lives in city 3."},))
    for use in (lambda: AttributionIndex.open("facts"), lambda: append_documents("facts", added)):
        with pytest.raises(ModelNotFound, match=message):
            use()


def test_a_relocated_index_answers_as_before_and_keeps_its_generation(project, tmp_path):
    before = build_index(relative_spec(), "facts")
    opened, expected = AttributionIndex.open("facts"), best_id("facts")
    shutil.move("models/gpt2", tmp_path / "elsewhere")
    shutil.move("documents.jsonl", tmp_path / "rows.jsonl")
    after = relocate_index("facts", model=tmp_path / "elsewhere", dataset="../rows.jsonl")
    assert read_manifest("facts") == after
    assert (after.spec.model, after.spec.dataset.path) == (
        str(tmp_path / "elsewhere"),
        str(tmp_path / "rows.jsonl"),
    )
    assert after.fingerprint == after.spec.fingerprint()
    same = {"spec": before.spec, "fingerprint": before.fingerprint}
    assert after.model_copy(update=same) == before
    assert best_id("facts") == expected
    (answer,) = opened.attribute([query()])  # a reader that has the index open
    assert answer.results[0].id == expected
    moved = relative_spec("../elsewhere", dataset={"path": "../rows.jsonl"})
    assert build_index(moved, "facts") == after


def test_documents_that_were_added_before_a_move_are_recognised_after_it(project, tmp_path):
    build_index(relative_spec(columns={}), "facts")
    (project / "more.jsonl").write_text('{"text": "Person 99 lives in city 3."}\n')
    first = append_documents("facts", AppendSpec(dataset={"path": "more.jsonl"}))
    shutil.move("models/gpt2", tmp_path / "elsewhere")
    shutil.move("more.jsonl", tmp_path / "more.jsonl")
    relocated = relocate_index("facts", model=tmp_path / "elsewhere")
    again = append_documents("facts", AppendSpec(dataset={"path": str(tmp_path / "more.jsonl")}))
    assert again == relocated
    assert again.generation == first.generation == 2


def other_model(project: Path) -> dict[str, Any]:
    tiny.save_model(project / "other", seed=1)
    return {"model": "other"}


REFUSED: dict[str, tuple[type[BergsonError], str, Callable[[Path], dict[str, Any]]]] = {
    "nothing": (InvalidInput, "expected a new path", lambda _: {}),
    "another model": (IndexCorrupt, "is not the one that the index facts was built from", other_model),
    "no such directory": (ModelNotFound, "no model directory at nothing", lambda _: {"model": "nothing"}),
    "a hub id": (ModelNotFound, "no model directory at org/model", lambda _: {"model": "org/model"}),
    "a file": (ModelNotFound, "no model directory", lambda _: {"model": "documents.jsonl"}),
    "no model": (ModelNotFound, "config.json", lambda _: {"model": "."}),
    "no such dataset": (DatasetNotFound, "no dataset at nothing", lambda _: {"dataset": "nothing"}),
    "a base without adapters": (
        InvalidInput,
        "has no adapters",
        lambda _: {"adapter_base": "models/gpt2"},
    ),
    "a missing base without adapters": (
        InvalidInput,
        "has no adapters",
        lambda _: {"adapter_base": "missing"},
    ),
    "a checkpoint without an optimizer": (
        InvalidInput,
        "built without an optimizer",
        lambda _: {"optimizer_state": "documents.jsonl"},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_place_is_refused_and_nothing_changes(case: str, project: Path):
    error, message, change = REFUSED[case]
    before = build_index(relative_spec(), "facts")
    with pytest.raises(error, match=message):
        relocate_index("facts", **change(project))
    assert read_manifest("facts") == before


def test_an_index_that_is_being_written_or_is_not_there_is_not_relocated(project):
    build_index(relative_spec(), "facts")
    with FileLock(project / "facts" / LOCK_FILE), pytest.raises(IndexBusy):
        relocate_index("facts", dataset="documents.jsonl")
    with pytest.raises(IndexNotFound):
        relocate_index("nothing", dataset="documents.jsonl")


def test_an_index_and_the_model_inside_it_move_together(project, tmp_path):
    (project / "facts").mkdir()
    shutil.move("models/gpt2", "facts/model")
    shutil.move("documents.jsonl", "facts/documents.jsonl")
    built = build_index(relative_spec("facts/model", dataset={"path": "facts/documents.jsonl"}), "facts")
    assert built.spec.model == str(project / "facts" / "model")
    stored = json.loads((project / "facts" / MANIFEST_FILE).read_text())["spec"]
    assert (stored["model"], stored["dataset"]["path"]) == ("./model", "./documents.jsonl")
    expected = best_id("facts")
    shutil.move("facts", tmp_path / "moved")
    assert best_id(tmp_path / "moved") == expected
    assert read_manifest(tmp_path / "moved").spec.model == str(tmp_path / "moved" / "model")
    added = AppendSpec(documents=({"id": "new", "text": "Person 99 lives in city 3."},))
    assert append_documents(tmp_path / "moved", added).generation == 2
    assert (tmp_path / "moved" / "model" / "config.json").is_file()


def test_a_directory_with_other_files_than_the_model_takes_no_index(project):
    (project / "facts").mkdir()
    shutil.move("models/gpt2", "facts/model")
    (project / "facts" / "thesis.tex").write_text("")
    with pytest.raises(IndexExists, match=r"not empty and holds no index.*thesis\.tex"):
        build_index(relative_spec("facts/model"), "facts")


def save_adapters(directory: Path, base: str, model: Path) -> None:
    """Saves adapters whose configuration names `base`."""
    loaded = loading.load_model(str(model)).model
    adapted = get_peft_model(loaded, LoraConfig(r=2, target_modules=["dense_h_to_4h"]))
    adapted.save_pretrained(str(directory))
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (directory / "adapter_config.json").write_text(json.dumps(config))


def test_the_base_of_adapters_is_found_from_every_directory_and_after_a_move(project, tmp_path, monkeypatch):
    save_adapters(project / "adapters", "models/gpt2", project / "models" / "gpt2")
    built = build_index(relative_spec("adapters"), "facts")
    assert built.adapter_base == str(project / "models" / "gpt2")
    expected = best_id("facts")
    monkeypatch.chdir(tmp_path)
    assert best_id("project/facts") == expected
    shutil.move("project/models/gpt2", "base")
    with pytest.raises(ModelNotFound, match=r"no model directory at .*/models/gpt2.*--adapter_base PATH"):
        AttributionIndex.open("project/facts")
    assert relocate_index("project/facts", adapter_base="base").adapter_base == str(tmp_path / "base")
    assert best_id("project/facts") == expected
    tiny.save_model(tmp_path / "other", seed=1)
    with pytest.raises(IndexCorrupt):
        relocate_index("project/facts", adapter_base="other")
    rows = AppendSpec(documents=({"id": "new", "text": "Person 99 lives in city 3."},))
    assert append_documents("project/facts", rows).adapter_base == str(tmp_path / "base")


MISMATCHES = [
    ({"gradients": {"projection_dim": 8}}, r"gradients\.projection_dim is 4 there and 8 here"),
    ({"dtype": "bfloat16"}, "dtype is 'float32' there and 'bfloat16' here"),
    ({"columns": {"id": None}}, r"columns\.id is 'id' there and None here"),
    ({"columns": {"id": "id", "metadata": ("source",)}}, r"columns\.metadata is \[\] there and \['source'\]"),
    ({"search": {"min_recall": 0.5}}, r"search\.min_recall is 0\.99 there and 0\.5 here"),
    (
        {"dataset": {"path": "other.jsonl"}},
        r"dataset\.path is '/.*/documents.jsonl' there and 'other.jsonl' here",
    ),
    (
        {"scoring": {"damping": 0.2}, "dtype": "float64"},
        r"dtype is .*; scoring\.damping is 0\.1 there and 0\.2",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISMATCHES)
def test_a_build_with_other_settings_names_each_of_them(project, change, message):
    build_index(relative_spec(), "facts")
    with pytest.raises(IndexExists, match=message):
        build_index(relative_spec(**change), "facts")


def test_an_unfinished_build_with_other_settings_names_them_but_may_be_searched_otherwise(project):
    with pytest.raises(BergsonError):
        build_index(relative_spec(), "facts", report=stop_after(16))
    with pytest.raises(IndexExists, match=r"gradients\.seed is 0 there and 1 here"):
        build_index(relative_spec(gradients={"projection_dim": 4, "seed": 1}), "facts")
    assert build_index(relative_spec("./models/gpt2", search={"min_recall": 0.5}), "facts").rows == 40


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"columns": {"prompt": "body", "id": "id"}},
            r"columns: .* built with prompt 'text', and .* says prompt 'body'",
        ),
        (
            {"gradients": {"projection_dim": 8}},
            r"gradients: .* built with projection_dim 4, and .* says projection_dim 8",
        ),
        ({"model": "other"}, r"model: the index facts was built with /.*/models/gpt2, and .* says other;"),
    ],
)
def test_an_append_with_other_settings_names_each_of_them(project, stated, message):
    build_index(relative_spec(), "facts")
    documents = ({"id": "new", "text": "Person 99 lives in city 3."},)
    with pytest.raises(InvalidInput, match=message):
        append_documents("facts", AppendSpec(documents=documents, **stated))
    same = AppendSpec(documents=documents, model="./models/gpt2/", gradients={"projection_dim": 4})
    assert append_documents("facts", same).rows == 41
