"""Scores of whole gradients are those of plain autograd in float64, under every normalizer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bergson_core import GradientProcessor
from bergson_core.gradients import module_scorer
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.gradients.whole_gradient_scores import WholeGradientScorer
from bergson_core.models.language_model import as_language_model
from bergson_core.tokens.batching import iter_batches
from tests import architectures, reference, tiny
from tests.core.helpers import random_documents, whole_scores_by_definition

EXACT = {"rtol": 1e-9, "atol": 1e-12}
KINDS = ["none", "adafactor", "adam", "kfac"]
NORMALIZES = ["none", "row", "block"]
(QUERY,) = random_documents(lengths=(11,), first_label=6, seed=5)


def fit(model, kind, docs, *, modules=None, bias=False):
    """Returns what a scorer needs, with normalizers that were fitted to the documents."""
    language_model = as_language_model(model)
    tracked = language_model.select_modules(modules)
    language_model = language_model.for_tracking(tracked.values())
    fitted = fit_normalizers(language_model, tracked, iter_batches(docs, 40), kind, include_bias=bias)
    return language_model, GradientProcessor(5, fitted, include_bias=bias), tracked


def make_scorer(model, kind, normalize, docs, *, modules=None, by_position=False):
    """Returns a scorer for QUERY, and its processor."""
    language_model, processor, tracked = fit(model, kind, docs, modules=modules)
    scorer = WholeGradientScorer(
        language_model, processor, tracked, [QUERY], normalize, by_position=by_position
    )
    return scorer, processor


def score_all(scorer, docs, budget_tokens=60):
    """Returns the parts of the modules [n, m] and, in a list, those of the positions."""
    modules, positions = [None] * len(docs), [None] * len(docs)
    for batch in iter_batches(docs, budget_tokens):
        scores = scorer.score(batch)
        for row, number in enumerate(batch.indices):
            modules[number] = scores.modules[row]
            if scores.positions is not None:
                positions[number] = scores.positions[row, : len(docs[number].ids)]
                assert not scores.positions[row, len(docs[number].ids) :].any(), "padding has no part"
    return torch.stack(modules), positions


def rows_by_collector(model, processor, tracked, docs):
    """Returns the normalized whole gradients [n, o·i] of each module, which the collector forms."""
    whole = GradientProcessor(None, processor.normalizers, include_bias=processor.include_bias)
    collector = RowCollector(as_language_model(model), whole, list(tracked))
    rows = torch.zeros(len(docs), collector.dimensions, dtype=torch.float64)
    for batch in iter_batches(docs, 60):
        rows[batch.indices] = collector.collect(batch)[0]
    return [rows[:, part] for part in collector.slices.values()]


@pytest.mark.parametrize("bias", [False, True], ids=["weights", "biases"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_scores_are_those_of_plain_autograd(architecture, kind, bias):
    model, docs = tiny.model(architecture), random_documents()
    fitted = _, processor, tracked = fit(model, kind, docs, bias=bias)
    gradients = reference.gradients(model, list(tracked), [*docs, QUERY], bias)
    normalized = [
        gradient if kind == "none" else processor.normalizers[name].apply(gradient)
        for name, gradient in gradients.items()
    ]
    rows = [gradient[:-1].flatten(1) for gradient in normalized]
    query_rows = [gradient[-1].flatten() for gradient in normalized]
    for normalize in NORMALIZES:
        expected = whole_scores_by_definition(rows, query_rows, normalize)
        scores, _ = score_all(WholeGradientScorer(*fitted, [QUERY], normalize), docs)
        torch.testing.assert_close(scores, expected, **EXACT)


def expected_by_collector(model, processor, tracked, docs, normalize):
    rows = rows_by_collector(model, processor, tracked, [*docs, QUERY])
    return whole_scores_by_definition([row[:-1] for row in rows], [row[-1] for row in rows], normalize)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("architecture", "modules"),
    [
        ("gpt_neox", ["gpt_neox.embed_in", "lm_head", "gpt_neox.layers.1.attention.dense"]),
        ("gpt2", ["transformer.wte", "lm_head", "transformer.h.0.mlp.c_fc"]),
    ],
)
def test_embeddings_and_heads_are_scored_on_request(architecture, modules, kind, monkeypatch):
    monkeypatch.setattr(module_scorer, "_GRAM_CHUNK_POSITIONS", 4)
    model, docs = tiny.model(architecture), random_documents(vocabulary=12)
    scorer, processor = make_scorer(model, kind, "block", docs, modules=modules)
    tracked = as_language_model(model).select_modules(modules)
    expected = expected_by_collector(model, processor, tracked, docs, "block")
    torch.testing.assert_close(score_all(scorer, docs)[0], expected, **EXACT)


@pytest.mark.parametrize("kind", ["adafactor", "kfac"])
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_fused_experts_are_scored_expert_by_expert(architecture, kind):
    model, docs = architectures.model(architecture), random_documents()
    scorer, processor = make_scorer(model, kind, "row", docs)
    tracked = as_language_model(model).select_modules()
    assert any(".down_proj.3" in name for name in tracked)
    expected = expected_by_collector(model, processor, tracked, docs, "row")
    torch.testing.assert_close(score_all(scorer, docs)[0], expected, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_runs_of_a_module_that_runs_twice_add_up_to_one_gradient(kind):
    model, docs = tiny.model("llama"), random_documents()
    model.model.layers[1] = model.model.layers[0]
    scorer, processor = make_scorer(model, kind, "row", docs)
    tracked = as_language_model(model).select_modules()
    assert not any(".layers.1." in name for name in tracked)
    expected = expected_by_collector(model, processor, tracked, docs, "row")
    torch.testing.assert_close(score_all(scorer, docs)[0], expected, **EXACT)


@pytest.mark.parametrize("kind", ["adam", "kfac"])
@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_the_parts_of_positions_are_products_with_what_each_position_adds(architecture, kind):
    model = tiny.model("gpt2") if architecture == "gpt2" else architectures.model(architecture)
    docs = random_documents()
    fitted = _, processor, tracked = fit(model, kind, docs)
    whole = GradientProcessor(None, processor.normalizers)
    collector = RowCollector(as_language_model(model), whole, list(tracked), per_token=True)
    query_rows = rows_by_collector(model, processor, tracked, [QUERY])
    products = []
    for document in docs:
        (batch,) = iter_batches([document], 100)
        ((token_rows,), _) = collector.collect(batch)
        pairs = zip(collector.slices.values(), query_rows, strict=True)
        products.append(torch.stack([token_rows[:, part] @ row[0] for part, row in pairs]))
    for normalize in NORMALIZES:
        scorer = WholeGradientScorer(*fitted, [QUERY], normalize, by_position=True)
        modules, positions = score_all(scorer, docs)
        for by_module, document_modules, parts in zip(products, modules, positions, strict=True):
            reciprocals = (document_modules / by_module.sum(1)).nan_to_num(0)
            torch.testing.assert_close(parts, reciprocals @ by_module, rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(parts.sum(), document_modules.sum(), **EXACT)


def test_a_batch_scores_as_its_documents_do_alone():
    model, docs = tiny.model(), random_documents()
    scorer, _ = make_scorer(model, "kfac", "row", docs)
    together, alone = (score_all(scorer, docs, budget)[0] for budget in (10**6, 1))
    torch.testing.assert_close(together, alone, **EXACT)


def test_weights_multiply_inner_products_and_turn_the_sign_of_cosines():
    model, docs = tiny.model(), random_documents()
    weighted = [replace(document, weight=-2.0) for document in docs]
    for normalize, factor in (("none", -2), ("row", -1), ("block", -1)):
        scorer, _ = make_scorer(model, "adafactor", normalize, docs)
        plain, scaled = (score_all(scorer, documents)[0] for documents in (docs, weighted))
        torch.testing.assert_close(scaled, factor * plain, **EXACT)


@pytest.mark.parametrize("normalize", NORMALIZES)
def test_a_gradient_that_is_zero_or_not_finite_scores_0(normalize):
    model, docs = tiny.model(), random_documents()
    unlabelled = replace(docs[1], labels=np.zeros(len(docs[1].ids), dtype=bool))
    broken = replace(docs[2], weight=float("inf"))
    scorer, _ = make_scorer(model, "kfac", normalize, docs, by_position=True)
    modules, positions = score_all(scorer, [docs[0], unlabelled, broken])
    assert modules[0].any()
    assert not modules[1:].any()
    assert not positions[1].any() and not positions[2].any()


def test_float32_and_bfloat16_models_score_as_float64_up_to_their_rounding():
    docs = random_documents()
    scores = [
        score_all(make_scorer(tiny.model().to(dtype), "none", "row", docs)[0], docs)[0].sum(1)
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]
    assert [table.dtype for table in scores] == [torch.float64, torch.float32, torch.float32]
    torch.testing.assert_close(scores[1].double(), scores[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[2].double(), scores[0], rtol=0, atol=0.05)


def test_no_gradient_of_a_document_is_formed_where_the_normalizer_factorises(monkeypatch):
    model, docs = tiny.model(), random_documents(lengths=(4, 6, 3))
    scorer, _ = make_scorer(model, "kfac", "row", docs)

    def fail(*arguments):
        raise AssertionError("a gradient is formed")

    monkeypatch.setattr(module_scorer, "_whole_squares", fail)
    assert score_all(scorer, docs)[0].any()
