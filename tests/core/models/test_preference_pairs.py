"""The loss of preference pairs and its gradients are those of DPO, written plainly and differentiated by autograd."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bergson_core import GradientCollector, GradientProcessor
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.gradients.whole_gradient_scores import WholeGradientScorer
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import PreferencePair, Tokens
from tests import architectures, reference, tiny
from tests.core.helpers import random_documents
from tests.core.models.test_architectures import adafactor

EXACT = {"rtol": 1e-7, "atol": 1e-9}


def pairs(beta: float = 0.3, margin: float = -1.5, weight: float = 1.0) -> list[Tokens]:
    """Returns pairs whose sequences share a prompt of four tokens; the lengths of all sequences differ."""
    documents = []
    generator = np.random.default_rng(1)
    for number, (chosen, rejected) in enumerate([(5, 9), (8, 3), (2, 2), (7, 6)]):
        prompt = generator.integers(1, tiny.VOCABULARY, 4)
        sequences = [
            np.concatenate([prompt, generator.integers(1, tiny.VOCABULARY, length)])
            for length in (chosen, rejected)
        ]
        labels = [np.arange(len(ids)) >= 4 for ids in sequences]
        documents.append(
            Tokens(
                np.concatenate(sequences),
                np.concatenate(labels),
                weight + 0.5 * number * (weight != 1),
                pair=PreferencePair(len(sequences[0]), beta, margin + number),
            )
        )
    return documents


def dpo_loss(model: torch.nn.Module, document: Tokens) -> Tensor:
    """Returns -log σ(β [(log p(c) - log p_ref(c)) - (log p(r) - log p_ref(r))]), times the document's weight."""
    assert document.pair is not None
    log_p = [-reference.loss_of(model, sequence) for sequence in document.sequences]  # type: ignore[arg-type]
    margin = log_p[0] - log_p[1] - document.pair.reference_margin
    return -torch.log(torch.sigmoid(document.pair.beta * margin)) * document.weight


def plain_gradients(model: torch.nn.Module, documents: Sequence[Tokens]) -> dict[str, Tensor]:
    """Module name → gradients [n, o, i] of the loss, by autograd alone."""
    modules = select_modules(model)
    rows: dict[str, list[Tensor]] = {name: [] for name in modules}
    for document in documents:
        model.zero_grad()
        dpo_loss(model, document).backward()
        for name, tracked in modules.items():
            if tracked.expert_map is None:
                rows[name].append(reference.weight_gradient(tracked.module, False))
            else:
                parameter, expert = tracked.expert_map.split(".")
                rows[name].append(getattr(tracked.module, parameter).grad[int(expert)].clone())
    model.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


def model_of(architecture: str) -> torch.nn.Module:
    return (
        tiny.model(architecture) if architecture in tiny.ARCHITECTURES else architectures.model(architecture)
    )


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "opt", "mixtral", "cohere"])
@pytest.mark.parametrize("budget", [1, 60, 1000])
def test_rows_of_pairs_are_those_of_autograd(architecture: str, budget: int) -> None:
    model, documents = model_of(architecture), pairs(weight=2.0)
    expected = plain_gradients(model, documents)
    collector = RowCollector(as_language_model(model), GradientProcessor(None))
    rows = torch.zeros(len(documents), collector.dimensions, dtype=torch.float64)
    losses = torch.zeros(len(documents), dtype=torch.float64)
    for batch in iter_batches(documents, budget):
        rows[batch.indices], losses[batch.indices] = collector.collect(batch)
    for name, part in collector.slices.items():
        own = expected[name].flatten(1)
        torch.testing.assert_close(rows[:, part], own, rtol=1e-5, atol=1e-5 * own.abs().max().item())
    plain = torch.stack([dpo_loss(model, document) / document.weight for document in documents])
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["adafactor", "adam", "kfac"])
def test_normalizers_see_a_pair_as_one_sample(kind: str) -> None:
    model, documents = tiny.model("gpt_neox"), pairs()
    modules = select_modules(model)
    together = fit_normalizers(as_language_model(model), modules, iter_batches(documents, 1000), kind)
    whole = plain_gradients(model, documents)
    rows = collect_rows(
        RowCollector(as_language_model(model), GradientProcessor(None, together)), documents, 60
    )[0]
    start = 0
    for name, gradients in whole.items():
        size = gradients[0].numel()
        own = torch.from_numpy(rows[:, start : start + size])
        start += size
        if kind == "adafactor":
            expected = adafactor(gradients).flatten(1)
        else:
            expected = torch.stack([together[name].apply(gradient) for gradient in gradients]).flatten(1)
            if kind == "adam":
                torch.testing.assert_close(
                    together[name].tensors()["second_moment"].double(), gradients.square().mean(0), **EXACT
                )
        torch.testing.assert_close(own.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_rows_of_tokens_sum_to_the_row_of_the_pair() -> None:
    model, documents = tiny.model("llama"), pairs()
    language_model, processor = as_language_model(model), GradientProcessor(5)
    rows, _ = collect_rows(RowCollector(language_model, processor), documents, 60)
    token_rows, _ = collect_rows(RowCollector(language_model, processor, per_token=True), documents, 60)
    start = 0
    for document, row in zip(documents, rows, strict=True):
        own = token_rows[start : start + len(document.ids)]
        start += len(document.ids)
        np.testing.assert_allclose(own.sum(0), row, rtol=1e-4, atol=1e-6)
        assert document.pair is not None
        last_of_chosen = own[document.pair.chosen_tokens - 1]
        assert not last_of_chosen.any()  # it predicts nothing
        assert own[document.pair.chosen_tokens].any()  # the prompt of the rejected sequence is read again


def test_whole_gradients_of_pairs_are_scored_like_their_rows() -> None:
    model, documents, query = tiny.model("gpt_neox"), pairs(), random_documents((12,))
    language_model, processor = as_language_model(model), GradientProcessor(None)
    modules = select_modules(model)
    scorer = WholeGradientScorer(language_model, processor, modules, query, "row", by_position=True)
    scores, positions = torch.zeros(len(documents), dtype=torch.float64), {}
    for batch in iter_batches(documents, 60):
        exact = scorer.score(batch)
        scores[batch.indices] = exact.modules.sum(1)
        assert exact.positions is not None
        for place, number in enumerate(batch.indices.tolist()):
            positions[number] = exact.positions[place, batch.token_positions(place)]
    whole = torch.cat([part.flatten(1) for part in plain_gradients(model, documents).values()], 1)
    asked = torch.cat(
        [part.flatten(1) for part in reference.gradients(model, list(modules), query).values()], 1
    )
    torch.testing.assert_close(scores, F.cosine_similarity(whole, asked), rtol=1e-6, atol=1e-8)
    for number, parts in positions.items():
        assert len(parts) == len(documents[number].ids)
        assert parts.sum().item() == pytest.approx(scores[number].item(), abs=1e-7)


def test_a_collector_around_a_loss_of_ones_own_sees_pairs() -> None:
    model, documents = tiny.model("gpt_neox"), pairs()[2:3]
    expected = plain_gradients(model, documents)
    ids = torch.stack([torch.from_numpy(sequence.ids) for sequence in documents[0].sequences])
    with GradientCollector(model, sequences_per_sample=2) as collector:
        log_p = (
            F.log_softmax(model(input_ids=ids).logits[:, :-1], -1)
            .gather(2, ids[:, 1:, None])[:, 3:, 0]
            .sum(1)
        )
        assert documents[0].pair is not None
        margin = documents[0].pair.beta * (log_p[0] - log_p[1] - documents[0].pair.reference_margin)
        (-F.logsigmoid(margin)).backward()
    for name, gradient in collector.gradients.items():
        torch.testing.assert_close(gradient, expected[name], **EXACT)


def test_losses_without_gradients_are_the_same() -> None:
    model, documents = tiny.model("llama"), pairs()
    losses = compute_document_losses(as_language_model(model), documents, 60)
    expected = [dpo_loss(model, document).item() for document in documents]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_step_on_a_pair_makes_the_rejected_completion_likelier_than_it_was() -> None:
    model, documents = as_language_model(tiny.model("gpt_neox")), pairs()
    unlearner = Unlearner.fit(model, documents)
    before = unlearner.log_probabilities(documents[0].sequences)
    with unlearner.temporary_step(documents[0]):
        after = unlearner.log_probabilities(documents[0].sequences)
    assert (after[0] - after[1]) < (before[0] - before[1])
    np.testing.assert_array_equal(unlearner.log_probabilities(documents[0].sequences), before)


def test_a_margin_far_from_zero_keeps_the_loss_finite() -> None:
    model = as_language_model(tiny.model("gpt_neox"))
    losses = compute_document_losses(
        model, pairs(beta=1000.0, margin=-1e4) + pairs(beta=1000.0, margin=1e4), 60
    )
    assert np.isfinite(losses).all()
    assert losses[:4] == pytest.approx(0, abs=1e-6) and (losses[4:] > 1e6).all()
