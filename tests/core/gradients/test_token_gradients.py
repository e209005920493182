"""Rows of single tokens: what a position adds to its document's gradient."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from bergson_core import GradientCollector, GradientProcessor, collect_gradients
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import architectures, reference, tiny

EXACT = {"rtol": 1e-8, "atol": 1e-10}
MODELS = {
    "gpt2": lambda: tiny.model("gpt2"),
    "llama": lambda: tiny.model("llama"),
    "opt": lambda: architectures.model("opt"),
    "mixtral": lambda: architectures.model("mixtral"),
}


def documents() -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=s), 3) for s in (9, 14, 10)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_tokens_row_is_the_outer_product_of_its_two_sides(architecture):
    model, docs = MODELS[architecture](), documents()
    modules = select_modules(model)
    sides = reference.inputs_and_output_gradients(model, list(modules), docs)
    collector = RowCollector(as_language_model(model), GradientProcessor(None), per_token=True)
    (batch,) = iter_batches(docs, 1000)
    rows, _ = collector.collect(batch)
    assert rows.shape == (3, 14, collector.dimensions)
    for place, index in enumerate(batch.indices):
        for name, part in collector.slices.items():
            a, g = sides[name][index]
            expected = torch.einsum("so,si->soi", g, a).flatten(1)
            torch.testing.assert_close(rows[place, : len(a), part], expected, **EXACT)
            assert not rows[place, len(a) :, part].any()


@pytest.mark.parametrize("kind", ["none", "adafactor", "adam", "kfac"])
@pytest.mark.parametrize("architecture", MODELS)
def test_token_rows_add_up_to_the_documents_row(architecture, kind):
    model, docs = MODELS[architecture](), documents()
    fitted = fit_normalizers(as_language_model(model), select_modules(model), iter_batches(docs, 60), kind)
    processor = GradientProcessor(4, fitted)
    whole, by_token = (
        RowCollector(as_language_model(model), processor, per_token=per_token) for per_token in (False, True)
    )
    for batch in iter_batches(docs, 60):
        torch.testing.assert_close(by_token.collect(batch)[0].sum(1), whole.collect(batch)[0], **EXACT)


def test_embeddings_have_token_rows_too():
    model, docs = tiny.model("gpt2"), documents()
    names = ["transformer.wte"]
    whole, by_token = (
        RowCollector(as_language_model(model), GradientProcessor(None), names, per_token=per_token)
        for per_token in (False, True)
    )
    (batch,) = iter_batches(docs, 1000)
    rows, _ = by_token.collect(batch)
    torch.testing.assert_close(rows.sum(1), whole.collect(batch)[0], **EXACT)
    by_entry = rows.unflatten(2, (24, -1))[0, 4].any(0)
    assert by_entry.nonzero().flatten().tolist() == [batch.input_ids[0, 4]]


def test_the_dataset_has_a_row_for_each_token_of_each_document():
    model, tokenizer = tiny.model(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(9)})
    processor = GradientProcessor(4)
    by_token = collect_gradients(model, dataset, tokenizer, processor, per_token=True, budget_tokens=100)
    whole = collect_gradients(model, dataset, tokenizer, processor)
    assert by_token["loss"] == whole["loss"]
    for tokens, row, text in zip(by_token["gradients"], whole["gradients"], dataset["text"], strict=True):
        assert len(tokens) == len(tokenizer(text)["input_ids"])
        np.testing.assert_allclose(np.sum(tokens, axis=0), row, rtol=1e-4, atol=1e-5)


def test_a_module_that_does_not_see_one_feature_a_position_is_refused():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.mean(1))

    model = Pooled()
    with (
        pytest.raises(InvalidInput, match="one feature a position"),
        GradientCollector(model, per_token=True),
    ):
        model(torch.randn(3, 5, 4))
