"""A local path means the same from every directory; a hub id stays as it is."""

from pathlib import Path

import pytest

from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.locations import (
    absolute_path,
    is_local,
    locate_sources,
    name_in_memory,
    name_on_disk,
    sources_inside,
    without_paths,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and the home directory: it has a model, a link to it, and files."""
    for name in ("models/gpt2", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "latest").symlink_to("models/gpt2")
    (tmp_path / "far").symlink_to("elsewhere/deep")
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "rows.jsonl").symlink_to("blob")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "models/gpt2",
        "./models/gpt2",
        "models/gpt2/",
        "models//gpt2/.",
        "~/models/gpt2",
        "latest",
        "latest/",
        "models/../models/gpt2",
        "elsewhere/deep/../../latest",
        "{home}/models/gpt2",
        "{home}/elsewhere/../latest/",
    ],
)
def test_every_spelling_of_a_directory_is_the_same_absolute_path(home: Path, name: str):
    spec = BuildSpec(model=name.format(home=home), dataset={"path": "org/hub"})
    assert locate_sources(spec).model == str(home / "models" / "gpt2")


def test_a_parent_of_a_link_is_that_of_the_directory_it_points_to(home: Path):
    (home / "elsewhere" / "model").mkdir()
    assert absolute_path("far/../model") == str(home / "elsewhere" / "model")
    (home / "far2").symlink_to("elsewhere/deep")
    assert absolute_path("far2/../missing.jsonl") == str(home / "elsewhere" / "missing.jsonl")


@pytest.mark.parametrize(
    ("name", "located"),
    [
        ("rows.jsonl", "{home}/rows.jsonl"),  # not the blob, whose name does not say what it holds
        ("data/*.jsonl", "{home}/data/*.jsonl"),
        ("./nothing.csv", "{home}/nothing.csv"),
        ("a/b/c", "{home}/a/b/c"),
        (".", "{home}"),
        ("org/data", "org/data"),
        ("gpt2", "gpt2"),
        ("nothing.jsonl", "nothing.jsonl"),
        ("https://example.org/rows.jsonl", "https://example.org/rows.jsonl"),
        ("hf://datasets/a/b", "hf://datasets/a/b"),
        ("nul\0byte", "nul\0byte"),
    ],
)
def test_what_is_on_this_machine_gets_an_absolute_path_and_no_other_name_changes(home: Path, name, located):
    spec = locate_sources(BuildSpec(model="gpt2", dataset={"path": name}))
    assert spec.dataset is not None
    assert (spec.model, spec.dataset.path) == ("gpt2", located.format(home=home))


def test_a_name_that_could_be_a_hub_id_is_local_where_it_exists(home: Path):
    assert is_local("models/gpt2")
    assert not is_local("models/gpt3")


def test_the_checkpoint_of_an_optimizer_is_always_a_path(home: Path):
    gradients = {"optimizer_state": "run/optimizer.pt"}
    spec = locate_sources(BuildSpec(model="gpt2", dataset={"path": "org/data"}, gradients=gradients))
    assert spec.gradients.optimizer_state == str(home / "run" / "optimizer.pt")


def test_the_hash_of_rows_does_not_depend_on_where_the_files_are(home: Path):
    def rows_hash(model: str, dataset: str) -> str:
        return without_paths(BuildSpec(model=model, dataset={"path": dataset})).rows_fingerprint()

    assert rows_hash("/a/model", "/a/rows.jsonl") == rows_hash("/b/model", "/c/other.jsonl")
    assert rows_hash("org/a", "/a/rows.jsonl") != rows_hash("org/b", "/a/rows.jsonl")
    assert rows_hash("/a/model", "org/data") != rows_hash("/a/model", "/a/rows.jsonl")


def test_a_path_inside_the_index_is_relative_to_it_on_disk(home: Path):
    index, alias = home / "facts", home / "alias"
    (index / "model").mkdir(parents=True)
    alias.symlink_to(index)
    for root in (index, alias, Path("facts")):
        assert name_on_disk(str(index / "model"), root) == "./model"
        assert name_in_memory("./model", root) == str(index / "model")
    assert name_on_disk(f"{index}-beside/model", index) == f"{index}-beside/model"
    assert name_in_memory("./gone", index) == "./gone"  # as release 0.1.0 stored it: relative to where it ran
    spec = BuildSpec(model=str(index / "model"), dataset={"path": str(index / "data" / "rows.jsonl")})
    assert sources_inside(spec, index) == {"model", "data"}
