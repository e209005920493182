"""`collect_gradients` and the reading of datasets."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import GradientProcessor, collect_gradients, fit_processor
from bergson_core.data.batching import iter_length_buckets, tokenize
from bergson_core.data.dataset import load_dataset_spec, open_dataset_stream
from bergson_core.errors import ColumnNotFound, DatasetNotFound, TooLong
from bergson_core.gradients.normalizers import AdafactorNormalizer
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import DatasetSpec, GradientSpec
from tests import reference, tiny
from tests.core.helpers import save


def test_collect_gradients_adds_gradients_and_loss_in_order():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(30), "number": list(range(30))})
    result = collect_gradients(model, dataset, tokenizer, GradientProcessor(None), budget_tokens=100)
    assert result.column_names == ["text", "number", "gradients", "loss"]
    names = list(select_modules(model))
    documents = tokenize(tokenizer, dataset["text"], None)
    expected = reference.gradients(model, names, documents)
    flat = torch.cat([expected[name].flatten(1) for name in names], dim=1)
    np.testing.assert_allclose(np.array(result["gradients"]), flat.numpy(), rtol=1e-4, atol=1e-4)
    losses = [reference.loss_of(model, tokens).item() for tokens in documents]
    np.testing.assert_allclose(result["loss"], losses, rtol=1e-6)


def test_collect_gradients_takes_tokens_as_well_as_text():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    text = Dataset.from_dict({"text": ["some words", "other words here"]})
    tokens = text.map(lambda row: {"input_ids": tokenizer(row["text"])["input_ids"]})
    one, other = collect_gradients(model, text, tokenizer), collect_gradients(model, tokens)
    assert one["gradients"] == other["gradients"]


def test_the_default_is_adafactor_fitted_from_the_dataset_and_a_projection_to_16():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(30)})
    processor = fit_processor(model, dataset, tokenizer)
    assert processor.projection_dim == 16
    assert list(processor.normalizers) == list(select_modules(model))
    assert all(isinstance(one, AdafactorNormalizer) for one in processor.normalizers.values())
    fitted = collect_gradients(model, dataset, tokenizer, processor)
    assert collect_gradients(model, dataset, tokenizer)["gradients"] == fitted["gradients"]
    assert np.shape(fitted["gradients"]) == (30, 256 * len(select_modules(model)))


def test_a_processor_is_fitted_from_the_seeded_sample():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(30)})

    def rows(seed: int) -> torch.Tensor:
        settings = GradientSpec(sample_size=5, seed=seed)
        processor = fit_processor(model, dataset, tokenizer, settings)
        return torch.cat([one.tensors()["row"] for one in processor.normalizers.values()])

    assert rows(0).equal(rows(0))
    assert not rows(0).equal(rows(1))


def test_collect_gradients_refuses_what_it_cannot_read():
    dataset = Dataset.from_dict({"body": ["text"]})
    with pytest.raises(ColumnNotFound, match="it has body"):
        collect_gradients(tiny.model(), dataset, tiny.tokenizer())
    with pytest.raises(ColumnNotFound, match="tokenizer"):
        collect_gradients(tiny.model(), dataset)
    with pytest.raises(TooLong, match="row 0"):
        collect_gradients(tiny.model(), Dataset.from_dict({"text": ["word " * 99]}), tiny.tokenizer())


def test_labels_begin_with_the_completion():
    tokenizer = tiny.tokenizer(tiny.texts(20))
    prompts, completions = ["Person 3 lives in", "", "Person"], [" city 1.", "city", " 5"]
    for tokens, prompt, completion in zip(
        tokenize(tokenizer, prompts, completions), prompts, completions, strict=True
    ):
        assert tokenizer.decode(tokens.ids) == prompt + completion
        labelled = tokenizer.decode(tokens.ids[tokens.labels])
        assert labelled == completion or not prompt  # without a prompt the first token cannot be predicted


@pytest.mark.parametrize("budget", [1, 7, 64, 10_000])
def test_buckets_hold_every_document_once_and_keep_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 30, size=200).tolist()
    buckets = list(iter_length_buckets(lengths, budget))
    assert sorted(k for bucket in buckets for k in bucket) == list(range(200))
    assert all(
        len(bucket) == 1 or len(bucket) * max(lengths[k] for k in bucket) <= budget for bucket in buckets
    )


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "directory", "splits"])
def test_every_kind_of_dataset_is_read(tmp_path, kind):
    dataset = Dataset.from_dict({"text": ["one", "two, three"], "label": [1, 2]})
    opened = load_dataset_spec(DatasetSpec(path=save(dataset, tmp_path, kind)))
    assert opened.to_dict() == dataset.to_dict()


def test_a_json_array_is_read(tmp_path):
    (tmp_path / "rows.json").write_text('[{"text": "one"}, {"text": "two"}]')
    assert load_dataset_spec(DatasetSpec(path=str(tmp_path / "rows.json")))["text"] == ["one", "two"]


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    path = save(Dataset.from_dict({"text": ["one"]}), tmp_path, "splits")
    with pytest.raises(DatasetNotFound, match="train, test"):
        load_dataset_spec(DatasetSpec(path=path, split="validation"))
    assert len(load_dataset_spec(DatasetSpec(path=path, split="test"))) == 1


@pytest.mark.parametrize(
    "path", ["https://example.com/rows.jsonl", "s3://bucket/rows.parquet", "hf://datasets/owner/name"]
)
def test_urls_are_refused(path):
    for opened in (load_dataset_spec, open_dataset_stream):
        with pytest.raises(DatasetNotFound, match="URL"):
            opened(DatasetSpec(path=path))


@pytest.mark.parametrize("name", ["json", "text", "csv"])
def test_the_name_of_a_file_format_opens_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "private.jsonl").write_text('{"text": "not asked for"}\n')
    monkeypatch.chdir(tmp_path)
    for opened in (load_dataset_spec, open_dataset_stream):
        with pytest.raises(DatasetNotFound, match="file format"):
            opened(DatasetSpec(path=name))


def test_a_broken_file_says_what_is_wrong(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(DatasetNotFound, match="cannot be read"):
        load_dataset_spec(DatasetSpec(path=str(tmp_path / "rows.jsonl")))
