"""The built-in training loop takes the mean loss over tokens, with the weights of the documents as factors."""

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.tokens.tokenization import Tokens
from tests import reference, tiny

ONE_STEP = TrainingSchedule(batch_size=3, epochs=1, least_steps=1, learning_rate=1e-3, weight_decay=0)


def documents(weights: list[float]) -> list[Tokens]:
    """Returns a document of random tokens for each weight, each longer than the one before."""
    rng = np.random.default_rng(0)
    return [
        Tokens(rng.integers(1, tiny.VOCABULARY, size=5 + k), np.arange(5 + k) >= 1, weight)
        for k, weight in enumerate(weights)
    ]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, 0.5, -1.0], [0.0, 3.0, 1.0]])
def test_a_weight_is_a_factor_of_the_documents_loss(weights):
    """The gradient of the step is that of the sum of weight times loss, over the number of labelled tokens."""
    model, tokens = tiny.model(), documents(weights)
    losses = [document.weight * reference.loss_of(model, document) for document in tokens]
    (sum(losses) / sum(document.n_labelled for document in tokens)).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    norm = float(torch.sqrt(sum(gradient.square().sum() for gradient in expected.values())))
    trained, gradients = tiny.model(), {}

    def note_gradients(*_args: object) -> None:
        gradients.update({name: parameter.grad.clone() for name, parameter in trained.named_parameters()})

    handle = register_optimizer_step_pre_hook(note_gradients)
    try:
        with reproducible(0, 1):
            train_causal_model(trained, tokens, None, ONE_STEP)
    finally:
        handle.remove()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name] / max(1.0, norm), rtol=1e-5, atol=1e-9)


def test_a_document_of_weight_zero_teaches_nothing_and_one_of_negative_weight_is_unlearned():
    def loss_after(weight: float) -> float:
        model, (document,) = tiny.model(), documents([weight])
        with reproducible(0, 1):
            train_causal_model(model, [document], None, ONE_STEP)
        return reference.loss_of(model, document).item()

    untrained = reference.loss_of(tiny.model(), documents([1.0])[0]).item()
    assert loss_after(0.0) == pytest.approx(untrained)
    assert loss_after(1.0) < untrained < loss_after(-1.0)
