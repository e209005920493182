"""Datasets are opened from files, directories and hub ids, not from URLs or the names of file formats."""

import pytest
from datasets import Dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from bergson_core.data.dataset import FORMAT_NAMES, load_dataset_spec
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.schemas.source import DatasetSpec
from tests.core.helpers import save_dataset


def test_all_names_that_the_datasets_library_takes_for_file_formats_are_known() -> None:
    assert set(_PACKAGED_DATASETS_MODULES) <= FORMAT_NAMES


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "directory", "splits"])
def test_a_subset_of_a_dataset_on_this_machine_is_refused(tmp_path, kind):
    path = save_dataset(Dataset.from_dict({"text": ["one"]}), tmp_path, kind)
    for streaming in (False, True):
        with pytest.raises(InvalidInput, match=r"dataset\.subset: only datasets of the hub .*got 'en'"):
            load_dataset_spec(DatasetSpec(path=path, subset="en", streaming=streaming))


@pytest.mark.parametrize("kind", ["jsonl", "directory", "splits"])
def test_what_a_document_is_in_text_files_is_refused_for_other_datasets(tmp_path, kind):
    path = save_dataset(Dataset.from_dict({"text": ["one"]}), tmp_path, kind)
    with pytest.raises(InvalidInput, match=r"text_documents is for \.txt files"):
        load_dataset_spec(DatasetSpec(path=path, text_documents="line"))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "directory", "splits"])
def test_every_kind_of_dataset_is_read(tmp_path, kind):
    dataset = Dataset.from_dict({"text": ["one", "two, three"], "label": [1, 2]})
    loaded = load_dataset_spec(DatasetSpec(path=save_dataset(dataset, tmp_path, kind)))
    labels = ["1", "2"] if kind == "csv" else [1, 2]  # without a spec, a cell of a CSV file is text
    assert loaded.to_dict() == {"text": ["one", "two, three"], "label": labels}


def test_a_json_array_is_read(tmp_path):
    (tmp_path / "rows.json").write_text('[{"text": "one"}, {"text": "two"}]')
    assert load_dataset_spec(DatasetSpec(path=str(tmp_path / "rows.json")))["text"] == ["one", "two"]


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    path = save_dataset(Dataset.from_dict({"text": ["one"]}), tmp_path, "splits")
    with pytest.raises(DatasetNotFound, match="train, test"):
        load_dataset_spec(DatasetSpec(path=path, split="validation"))
    assert len(load_dataset_spec(DatasetSpec(path=path, split="test"))) == 1


@pytest.mark.parametrize(
    "path", ["https://example.com/rows.jsonl", "s3://bucket/*.parquet", "hf://datasets/owner/name"]
)
def test_urls_are_refused(path):
    with pytest.raises(DatasetNotFound, match="URL"):
        load_dataset_spec(DatasetSpec(path=path))


@pytest.mark.parametrize("name", ["json", "text", "csv", "imagefolder"])
def test_the_name_of_a_file_format_opens_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "private.jsonl").write_text('{"text": "not asked for"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetNotFound, match="file format"):
        load_dataset_spec(DatasetSpec(path=name))


def test_a_broken_file_says_what_is_wrong(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(DatasetNotFound, match="cannot be read"):
        load_dataset_spec(DatasetSpec(path=str(tmp_path / "rows.jsonl")))
