"""Embeddings, and what else is tracked on request, against plain autograd in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from bergson_core import GradientCollector, GradientProcessor
from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.moments import KFAC_DAMPING
from bergson_core.gradients.normalizers.normalizers import DAMPING
from bergson_core.gradients.processor_fitting import MAX_KFAC_SIDE, fit_normalizers
from bergson_core.gradients.projection import PROJECTIONS
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import architectures, reference, tiny
from tests.core.helpers import damped_root

EXACT = {"rtol": 1e-8, "atol": 1e-10}
EMBEDDINGS = {"gpt_neox": "gpt_neox.embed_in", "llama": "model.embed_tokens", "gpt2": "transformer.wte"}


def documents() -> list[Tokens]:
    """Returns documents of few different tokens, so that a token stands several times in a document."""
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(0, 12, size=s), 3) for s in (9, 14, 5, 14, 7)]


def gradients(model: nn.Module, name: str, docs: list[Tokens]) -> torch.Tensor:
    """Returns [n, o, i] of the embedding alone; a head that shares its weight gets a copy of its own."""
    head, module = model.get_output_embeddings(), model.get_submodule(name)
    if head.weight is module.weight:
        head.weight = nn.Parameter(module.weight.detach().clone())
    return reference.gradients(model, [name], docs)[name]


def normalize(whole: torch.Tensor, kind: str, sides: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Normalizes full gradients by definition; `sides` are (tokens [s], g [s, o]) of each document."""
    second = whole.square().mean(0)
    if kind == "none":
        return whole
    if kind == "adam":
        return whole / (second + DAMPING * second.mean()).sqrt()
    if kind == "adafactor":
        row, column = (moment + DAMPING * moment.mean() for moment in (second.mean(1), second.mean(0)))
        return whole / (torch.outer(row, column) / row.mean()).sqrt()
    tokens, g = (torch.cat(side) for side in zip(*sides, strict=True))
    has_gradient = g.abs().sum(1) > 0
    counts = tokens[has_gradient].bincount(minlength=whole.shape[2])
    frequency = counts.double() / has_gradient.sum()
    return damped_root(g[has_gradient]) @ whole / (frequency + KFAC_DAMPING * frequency.mean()).sqrt()


def sides(model: nn.Module, name: str, docs: list[Tokens]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = []
    for document in docs:
        outputs: list[torch.Tensor] = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, outputs=outputs: (output.retain_grad(), outputs.append(output))[1]
        )
        reference.loss_of(model, document).backward()
        handle.remove()
        pairs.append((torch.from_numpy(document.ids), outputs[0].grad[0]))
    return pairs


@pytest.mark.parametrize("projection", [None, *PROJECTIONS])
@pytest.mark.parametrize("kind", ["none", "adafactor", "adam", "kfac"])
@pytest.mark.parametrize("architecture", EMBEDDINGS)
def test_embeddings_are_exact_on_request_under_every_normalizer(architecture, kind, projection):
    model, docs, name, seed = tiny.model(architecture), documents(), EMBEDDINGS[architecture], 3
    expected = gradients(model, name, docs)
    expected = normalize(expected, kind, sides(model, name, docs))
    modules = select_modules(model, [name])
    fitted = fit_normalizers(as_language_model(model), modules, iter_batches(docs, 40), kind)
    p = None if projection is None else 5
    processor = GradientProcessor(p, fitted, seed, projection=projection or "orthogonal")
    if projection is not None:
        expected = reference.project(expected, name, p, seed, projection)
    collector = RowCollector(as_language_model(model), processor, [name])
    for batch in iter_batches(docs, 60):
        rows, _ = collector.collect(batch)
        torch.testing.assert_close(rows, expected[batch.indices].flatten(1), **EXACT)


def test_embeddings_are_left_out_by_default():
    for architecture, name in EMBEDDINGS.items():
        assert name not in select_modules(tiny.model(architecture))


def test_a_head_and_an_embedding_of_one_weight_are_two_modules_whose_gradients_add_up_to_autograds():
    model, docs = tiny.model("gpt2"), documents()
    names = ["transformer.wte", "lm_head"]
    assert model.lm_head.weight is model.transformer.wte.weight
    collector = RowCollector(as_language_model(model), GradientProcessor(None), names)
    whole = reference.gradients(model, ["lm_head"], docs)["lm_head"]
    for batch in iter_batches(docs, 60):
        rows, _ = collector.collect(batch)
        parts = {name: rows[:, part] for name, part in collector.slices.items()}
        embedding = parts["transformer.wte"].reshape(len(batch), 24, -1)
        total = parts["lm_head"].reshape(len(batch), -1, 24) + embedding.mT
        torch.testing.assert_close(total, whole[batch.indices], **EXACT)


def test_the_entry_of_the_padding_token_is_never_trained_and_has_no_gradient():
    model = nn.Sequential(nn.Embedding(6, 3, padding_idx=2), nn.Linear(3, 2)).double().requires_grad_(False)
    ids = torch.tensor([[1, 2, 5], [2, 2, 0]])
    with GradientCollector(model, modules=["0"]) as collector:
        model(ids).square().sum().backward()
    model.requires_grad_(True)
    for k in range(2):
        model.zero_grad()
        model(ids[k : k + 1]).square().sum().backward()
        torch.testing.assert_close(collector.gradients["0"][k], model[0].weight.grad.T, **EXACT)
    assert not collector.gradients["0"][:, :, 2].any()


def test_positions_that_all_samples_share_are_refused():
    model, docs = tiny.model("gpt2"), documents()
    collector = RowCollector(as_language_model(model), GradientProcessor(4), ["transformer.wpe"])
    (batch,) = iter_batches(docs, 1000)
    with pytest.raises(InvalidInput, match=r"transformer\.wpe.*`modules`"):
        collector.collect(batch)


def test_an_embedding_that_scales_its_output_is_not_claimed():
    model = architectures.model("gemma3")
    with pytest.raises(InvalidInput, match="embed_tokens"):
        select_modules(model, ["model.embed_tokens"])


def test_a_module_too_wide_for_kfac_is_refused_before_anything_is_computed():
    model = tiny.gpt_neox(MAX_KFAC_SIDE + 1)
    modules = select_modules(model, ["lm_head"])
    with pytest.raises(InvalidInput, match=r"lm_head.*adafactor"):
        fit_normalizers(as_language_model(model), modules, [], "kfac")
    with pytest.raises(InvalidInput, match="labelled"):  # an embedding of as many entries has no such matrix
        fit_normalizers(as_language_model(model), select_modules(model, ["gpt_neox.embed_in"]), [], "kfac")
