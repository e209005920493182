"""A step on one document moves the weights as defined, and every weight is restored afterwards."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from bergson_core.attribution import unlearning
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import as_language_model
from bergson_core.tokens.tokenization import Tokens, tokenize
from tests import reference, tiny
from tests.core.helpers import copy_weights

TEXTS = tiny.texts(6)


def documents() -> list[Tokens]:
    return tokenize(tiny.tokenizer(TEXTS), TEXTS, None)


def queries() -> list[Tokens]:
    return tokenize(tiny.tokenizer(TEXTS), ["Person 3 lives", "Person 4 lives in"], [" in city 3", " city 4"])


def mean_squared_gradients(model, documents: list[Tokens]) -> dict[str, torch.Tensor]:
    """Returns the mean squared gradient of single documents, not factored."""
    squares = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for document in documents:
        model.zero_grad()
        reference.loss_of(model, document).backward()
        for name, weight in model.named_parameters():
            squares[name] += weight.grad.square() / len(documents)
    model.zero_grad()
    return squares


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(("step", "sign"), [("unlearn", 1), ("learn", -1)])
def test_the_step_is_the_gradient_over_the_root_of_its_moments(architecture, step, sign):
    model, tokens = tiny.model(architecture), documents()
    unlearner = Unlearner.fit(as_language_model(model), tokens, learning_rate=1e-3)
    before, moments = copy_weights(model), mean_squared_gradients(model, tokens)
    reference.loss_of(model, tokens[0]).backward()
    expected = {}
    for name, weight in model.named_parameters():
        whole = moments[name]
        if whole.dim() == 2:
            whole = whole.mean(1)[:, None] * whole.mean(0) / whole.mean()
        expected[name] = before[name] + sign * 1e-3 * weight.grad / (whole + 0.01 * whole.mean()).sqrt()
    model.zero_grad()
    with unlearner.temporary_step(tokens[0], step):
        torch.testing.assert_close(copy_weights(model), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_weights_come_back_bit_for_bit_also_after_an_error(dtype):
    model = tiny.model(dtype=dtype).train().requires_grad_(True)
    unlearner = Unlearner.fit(as_language_model(model), documents())
    before = copy_weights(model)

    def broken() -> None:
        with unlearner.temporary_step(documents()[1]):
            assert any(not torch.equal(weight, before[name]) for name, weight in copy_weights(model).items())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert all(torch.equal(weight, before[name]) for name, weight in copy_weights(model).items())
    assert model.training and all(
        weight.requires_grad and weight.grad is None for weight in model.parameters()
    )


def test_a_small_step_changes_a_query_by_the_product_of_the_gradients():
    model, tokens, query_tokens = tiny.model(), documents(), queries()
    unlearner = Unlearner.fit(as_language_model(model), tokens, learning_rate=1e-6)
    changes = unlearner.log_probability_changes(tokens[:3], query_tokens)
    for document, row in zip(tokens, changes, strict=False):
        with unlearner.temporary_step(document):
            moved = copy_weights(model)
        for query, change in zip(query_tokens, row, strict=True):
            model.zero_grad()
            reference.loss_of(model, query).backward()
            slope = sum(
                ((moved[name] - weight.detach()) * weight.grad).sum()
                for name, weight in model.named_parameters()
            )
            assert change == pytest.approx(-float(slope), rel=1e-3)
    model.zero_grad()


def test_a_small_step_of_learning_changes_the_opposite_of_one_of_unlearning():
    unlearner = Unlearner.fit(as_language_model(tiny.model()), documents(), learning_rate=1e-6)
    up, down = (
        unlearner.log_probability_changes(documents()[:2], queries(), step) for step in ("learn", "unlearn")
    )
    np.testing.assert_allclose(up, -down, rtol=1e-3)


def test_the_learning_rate_halves_the_median_document_to_first_order():
    tokens = documents()
    unlearner = Unlearner.fit(as_language_model(tiny.model()), tokens)
    small = Unlearner(unlearner.model, unlearner.second_moments, unlearner.learning_rate / 1e4)
    own = np.diag(small.log_probability_changes(tokens, tokens)) * 1e4
    assert np.median(own) == pytest.approx(-math.log(2), rel=1e-2)


def test_unlearning_a_document_lowers_its_own_probability_the_most():
    tokens = documents()
    changes = Unlearner.fit(as_language_model(tiny.model()), tokens).log_probability_changes(tokens, tokens)
    assert (changes.argmin(1) == np.arange(len(tokens))).all()


def test_a_step_changes_only_the_adapters_of_a_model_that_has_some():
    model = get_peft_model(tiny.model(), LoraConfig(r=3, target_modules=["query_key_value", "dense"]))
    torch.nn.init.normal_(model.base_model.model.gpt_neox.layers[0].attention.dense.lora_B.default.weight)
    unlearner, before = Unlearner.fit(as_language_model(model), documents()), copy_weights(model)
    with unlearner.temporary_step(documents()[0]):
        changed = {
            name for name, weight in copy_weights(model).items() if not torch.equal(weight, before[name])
        }
    assert changed and all(".lora_" in name for name in changed)


def test_a_document_whose_gradient_is_not_finite_counts_as_zero_in_the_fit(monkeypatch):
    model, tokens = tiny.model(), documents()
    expected = Unlearner.fit(as_language_model(model), tokens[:3])
    broken, gradients = tokens[5], unlearning._weight_gradients

    def some_broken(model, batch):
        finite = gradients(model, batch)
        if batch[0] is not broken:
            return finite
        return {name: gradient * math.nan for name, gradient in finite.items()}

    monkeypatch.setattr(unlearning, "_weight_gradients", some_broken)
    unlearner = Unlearner.fit(as_language_model(model), [*tokens[:3], broken])
    for name, parts in expected.second_moments.items():
        torch.testing.assert_close(unlearner.second_moments[name], tuple(part * 3 / 4 for part in parts))
    assert math.isfinite(unlearner.learning_rate)


def test_documents_without_a_gradient_are_refused():
    alone = Tokens(np.array([5]), np.array([False]))
    with pytest.raises(InvalidInput, match="none of 2 documents has a gradient"):
        Unlearner.fit(as_language_model(tiny.model()), [alone, alone])
