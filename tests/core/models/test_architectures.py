"""Rows are those of a plain loop of autograd in float64, for many architectures and in unusual settings."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bergson_core import GradientCollector, GradientProcessor
from bergson_core.gradients.normalizers.normalizers import DAMPING
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.architectures import moe
from bergson_core.models.language_model import as_language_model
from bergson_core.models.modules import TrackedModule, coverage_percent
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import architectures, reference, tiny

CLOSE = 1e-5
"""Relative to the module's largest entry: some models compute norms, rotations or softmax in float32 throughout."""
EXACT = {"rtol": 1e-8, "atol": 1e-10}
ALL = [*architectures.DENSE, *architectures.MIXTURES]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Runs on one thread: on a busy machine, models as small as these spend all their time waiting for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def documents(lengths: tuple[int, ...] = (9, 14, 10, 13, 12)) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=s), 3) for s in lengths]


def plain_gradients(
    model: nn.Module, modules: Mapping[str, TrackedModule], docs: list[Tokens], bias: bool = False
) -> dict[str, torch.Tensor]:
    """Module name → gradients [n, o, i], or [n, o, i + 1] with the bias, by autograd alone."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    for tokens in docs:
        model.zero_grad()
        reference.loss_of(model, tokens).backward()
        for name, tracked in modules.items():
            if tracked.expert_map is None:
                rows[name].append(reference.weight_gradient(tracked.module, bias))
            else:
                parameter, expert = tracked.expert_map.split(".")
                grad = getattr(tracked.module, parameter).grad[int(expert)]
                rows[name].append((grad.T if tracked.module.is_transposed else grad).clone())
    model.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


def collect(
    model: nn.Module, docs: list[Tokens], processor: GradientProcessor, budget_tokens: int = 60
) -> dict[str, torch.Tensor]:
    """Module name → its part of the rows [n, d], from padded batches."""
    collector = RowCollector(as_language_model(model), processor)
    rows = torch.zeros(len(docs), collector.dimensions, dtype=torch.float64)
    for batch in iter_batches(docs, budget_tokens):
        batch_rows, _ = collector.collect(batch)
        rows[batch.indices] = batch_rows.double()
    return {name: rows[:, part] for name, part in collector.slices.items()}


def adafactor(whole: torch.Tensor) -> torch.Tensor:
    """Normalizes full gradients [n, o, i] by the definition of Adafactor."""
    second = whole.square().mean(0)
    if not second.any():
        return whole
    row, column = (moment + DAMPING * moment.mean() for moment in (second.mean(1), second.mean(0)))
    return whole / (torch.outer(row, column) / row.mean()).sqrt()


def assert_rows_equal(rows: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    largest = expected.abs().max().item()
    error = (rows - expected.flatten(1)).abs().max().item()
    assert error <= CLOSE * largest, f"{name}: off by {error:.1e}, of {largest:.1e}"


@pytest.mark.parametrize("architecture", ALL)
def test_raw_rows_of_a_padded_batch_are_those_of_plain_autograd(architecture):
    model, docs = architectures.model(architecture), documents()
    modules = select_modules(model)
    expected = plain_gradients(model, modules, docs, bias=True)
    rows = collect(model, docs, GradientProcessor(None, include_bias=True))
    assert any(tracked.expert_map for tracked in modules.values()) == (architecture in architectures.MIXTURES)
    for name in modules:
        assert_rows_equal(rows[name], expected[name], name)


@pytest.mark.parametrize("architecture", ALL)
def test_normalized_projected_rows_are_those_of_plain_autograd(architecture):
    model, docs, p, seed = architectures.model(architecture), documents(), 5, 3
    modules = select_modules(model)
    whole = plain_gradients(model, modules, docs)
    fitted = fit_normalizers(as_language_model(model), modules, iter_batches(docs, 40), "adafactor")
    rows = collect(model, docs, GradientProcessor(p, fitted, seed))
    for name in modules:
        assert_rows_equal(rows[name], reference.project(adafactor(whole[name]), name, p, seed), name)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "bloom", "mixtral"])
def test_padding_far_beyond_the_attention_window_changes_no_row(architecture):
    make = tiny.model if architecture == "llama" else architectures.model
    model, docs = make(architecture, dtype=torch.float32), documents((40, 5, 23))
    processor = GradientProcessor(5)
    alone, beside = (collect(model, docs, processor, budget) for budget in (1, 1000))
    for name, rows in alone.items():
        torch.testing.assert_close(beside[name], rows, rtol=1e-3, atol=1e-4 * rows.abs().max().item())


@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "opt", "mixtral"])
def test_bfloat16_rows_have_the_direction_of_the_exact_ones(architecture):
    exact, docs = architectures.model(architecture), documents()
    model = architectures.model(architecture).to(torch.bfloat16)
    exact.load_state_dict(model.state_dict())
    rows, expected = (collect(m, docs, GradientProcessor(5)) for m in (model, exact))
    whole = [torch.cat(list(parts.values()), dim=1) for parts in (rows, expected)]
    assert F.cosine_similarity(*whole).min() > 0.99
    ratio = whole[0].norm(dim=1) / whole[1].norm(dim=1)
    assert ratio.sub(1).abs().max() < 0.05


@pytest.mark.parametrize("architecture", ["gemma2", "cohere"])
def test_a_model_that_caps_or_scales_its_logits_is_run_whole(architecture):
    model = architectures.model(architecture, dtype=torch.float32)
    model.lm_head.weight.data.mul_(1e-2)  # small logits, which a cap hardly changes
    assert as_language_model(model).backbone is None
    assert as_language_model(architectures.model("opt")).backbone is not None


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["mistral", "mixtral"])
def test_checkpointing_in_training_mode_changes_no_gradient(architecture, reentrant):
    model = architectures.model(architecture)
    ids = torch.randint(1, tiny.VOCABULARY, (3, 9))
    runs = []
    for _ in range(2):
        with GradientCollector(model) as collector:
            F.cross_entropy(
                model(input_ids=ids).logits.flatten(0, 1), ids.flatten(), reduction="sum"
            ).backward()
        runs.append(collector.gradients)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
    for name, gradient in runs[0].items():
        torch.testing.assert_close(runs[1][name], gradient, **EXACT)


@pytest.mark.parametrize("kind", ["adam", "kfac"])
def test_every_normalizer_fits_experts_that_few_tokens_or_none_are_routed_to(kind):
    model, docs = architectures.model("mixtral", num_experts_per_tok=1), documents((4, 5))
    modules = select_modules(model)
    rows = collect(
        model,
        docs,
        GradientProcessor(
            4, fit_normalizers(as_language_model(model), modules, iter_batches(docs, 60), kind)
        ),
    )
    assert all(part.isfinite().all() for part in rows.values())


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_losses_and_rows_do_not_depend_on_how_experts_are_run(implementation):
    model, docs = architectures.model("mixtral", dtype=torch.float32), documents()
    expected = plain_gradients(model, select_modules(model), docs)
    losses = torch.stack([reference.loss_of(model, tokens) for tokens in docs]).detach()
    model.set_experts_implementation(implementation)
    collector = RowCollector(as_language_model(model), GradientProcessor(None))
    for batch in iter_batches(docs, 100):
        rows, batch_losses = collector.collect(batch)
        torch.testing.assert_close(batch_losses, losses[batch.indices], rtol=1e-4, atol=1e-4)
        for name, part in collector.slices.items():
            expected_rows = expected[name][batch.indices].flatten(1)
            torch.testing.assert_close(rows[:, part], expected_rows, rtol=1e-3, atol=1e-3)


def test_an_expert_that_no_token_is_routed_to_has_zero_rows_and_a_normalizer():
    model, docs = architectures.model("mixtral", num_experts_per_tok=1), documents((4, 4))
    modules = select_modules(model)
    fitted = fit_normalizers(as_language_model(model), modules, iter_batches(docs, 60), "adafactor")
    rows = collect(model, docs, GradientProcessor(4, fitted))
    expected = plain_gradients(model, modules, docs)
    unused = [name for name, whole in expected.items() if not whole.any()]
    assert unused
    assert fitted.keys() == modules.keys()
    assert all(not rows[name].any() for name in unused)


def test_a_norm_after_each_expert_is_run():
    family = pytest.importorskip("transformers.models.muse_spark")
    config = family.configuration_muse_spark.MuseSparkTextConfig(
        moe_hidden_size=6, moe_intermediate_size=4, num_local_experts=3, num_experts_per_tok=2
    )
    module = family.modeling_muse_spark.MuseSparkExperts(config).double()
    for parameter in module.parameters():
        parameter.data.normal_()
    config._experts_implementation = "eager"
    hidden, weights = torch.randn(8, 6, dtype=torch.float64), torch.rand(8, 2, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(3)[:2] for _ in range(8)])
    group = partial(moe.group_by_sample, samples=2, by_position=False)
    outputs = moe.run_experts(
        module, lambda _map, _rows, output, _regroup: output, group, hidden, chosen, weights
    )
    torch.testing.assert_close(outputs, module(hidden, chosen, weights))


def test_single_experts_can_be_tracked_by_name():
    model, docs = architectures.model("qwen3_moe"), documents()
    name = "model.layers.0.mlp.experts.down_proj.2"
    expected = plain_gradients(model, {name: select_modules(model)[name]}, docs)[name]
    collector = RowCollector(as_language_model(model), GradientProcessor(None), [name])
    (batch,) = iter_batches(docs, 100)
    assert_rows_equal(collector.collect(batch)[0], expected[batch.indices], name)


def test_nothing_stays_on_fused_experts_after_the_collector_closes():
    model = architectures.model("mixtral")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), GradientCollector(model):
        raise ZeroDivisionError
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_coverage_counts_experts_and_is_low_where_they_are_not_tracked():
    model = architectures.model("mixtral")
    total = sum(parameter.numel() for parameter in model.parameters())
    untracked = ("embed_tokens", "lm_head", "norm", ".gate.")
    tracked = sum(
        p.numel() for name, p in model.named_parameters() if not any(part in name for part in untracked)
    )
    assert coverage_percent(model, select_modules(model).values()) == pytest.approx(100 * tracked / total)
    assert coverage_percent(model, select_modules(model, "self_attn").values()) < 20


def test_a_mixture_of_an_unknown_kind_is_exact_where_tracked_and_its_coverage_is_low():
    model, docs = architectures.model("llama4"), documents()
    modules = select_modules(model)
    expected = plain_gradients(model, modules, docs)
    rows = collect(model, docs, GradientProcessor(None))
    assert not any("expert" in name and "shared" not in name for name in modules)
    assert coverage_percent(model, modules.values()) < 20
    for name in modules:
        assert_rows_equal(rows[name], expected[name], name)
