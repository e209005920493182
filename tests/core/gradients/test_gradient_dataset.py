"""`collect_gradients` and `fit_processor`, as their users call them."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import GradientProcessor, collect_gradients, fit_processor
from bergson_core.errors import ColumnNotFound, TooLong
from bergson_core.gradients.normalizers.normalizers import AdafactorNormalizer
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.tokenization import tokenize
from tests import reference, tiny


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
    of_text, of_tokens = collect_gradients(model, text, tokenizer), collect_gradients(model, tokens)
    assert of_text["gradients"] == of_tokens["gradients"]


def test_the_default_is_adafactor_fitted_from_the_dataset_and_a_projection_to_16():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(30)})
    processor = fit_processor(model, dataset, tokenizer)
    assert processor.projection_dim == 16
    assert list(processor.normalizers) == list(select_modules(model))
    assert all(isinstance(normalizer, AdafactorNormalizer) for normalizer in processor.normalizers.values())
    fitted = collect_gradients(model, dataset, tokenizer, processor)
    assert collect_gradients(model, dataset, tokenizer)["gradients"] == fitted["gradients"]
    assert np.shape(fitted["gradients"]) == (30, 256 * len(select_modules(model)))


def test_a_processor_is_fitted_from_the_seeded_sample():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(30)})

    def row_moments(seed: int) -> torch.Tensor:
        settings = GradientSpec(sample_size=5, seed=seed)
        processor = fit_processor(model, dataset, tokenizer, settings)
        return torch.cat([normalizer.tensors()["row"] for normalizer in processor.normalizers.values()])

    assert row_moments(0).equal(row_moments(0))
    assert not row_moments(0).equal(row_moments(1))


def test_collect_gradients_refuses_what_it_cannot_read():
    dataset = Dataset.from_dict({"body": ["text"]})
    with pytest.raises(ColumnNotFound, match="it has body"):
        collect_gradients(tiny.model(), dataset, tiny.tokenizer())
    with pytest.raises(ColumnNotFound, match="tokenizer"):
        collect_gradients(tiny.model(), dataset)
    with pytest.raises(TooLong, match="row 0"):
        collect_gradients(tiny.model(), Dataset.from_dict({"text": ["word " * 99]}), tiny.tokenizer())


def test_columns_are_named_in_the_same_way_for_fitting_and_collecting():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    texts = tiny.texts(12)
    dataset = Dataset.from_dict(
        {
            "question": [text[:9] for text in texts],
            "answer": [text[9:] for text in texts],
            "reward": [2.0] * 12,
        }
    )
    columns = ColumnsSpec(prompt="question", completion="answer", weight="reward")
    processor = fit_processor(model, dataset, tokenizer, columns=columns)
    fitted = collect_gradients(model, dataset, tokenizer, processor, columns=columns)
    assert collect_gradients(model, dataset, tokenizer, columns=columns)["gradients"] == fitted["gradients"]
    whole_text = Dataset.from_dict({"text": texts})
    assert np.all(
        np.array(fitted["loss"]) < collect_gradients(model, whole_text, tokenizer, processor)["loss"]
    )
