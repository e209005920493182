"""An index keeps of K-FAC's roots what its projections need: the rows are the same, and nothing else is promised."""

import pytest
import torch

from bergson_core import GradientProcessor
from bergson_core.errors import InvalidInput
from bergson_core.gradients import normalizer_fitting
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from tests import tiny
from tests.core.helpers import random_documents

MODULES = ["gpt_neox.embed_in", "gpt_neox.layers.0.attention.dense", "gpt_neox.layers.1.mlp.dense_h_to_4h"]


def fit(
    processor: GradientProcessor, *, projected: bool, modules: list[str] | None = None
) -> GradientProcessor:
    """Returns a processor like this one, with K-FAC's normalizers of a tiny model."""
    model = tiny.model()
    normalizers = fit_normalizers(
        as_language_model(model),
        select_modules(model, modules or MODULES),
        iter_batches(random_documents(), 30),
        "kfac",
        include_bias=processor.include_bias,
        projected_by=processor if projected else None,
    )
    return GradientProcessor(**(processor.settings | {"normalizers": normalizers}))


def collect(processor: GradientProcessor, modules: list[str] | None = None) -> torch.Tensor:
    collector = RowCollector(as_language_model(tiny.model()), processor, modules or MODULES)
    (batch,) = iter_batches(random_documents(seed=1), 1000)
    return collector.collect(batch)[0]


@pytest.mark.parametrize("bias", [False, True], ids=["weights", "biases"])
@pytest.mark.parametrize(
    ("projection", "p"), [("rademacher", 3), ("normal", 40), ("orthogonal", 4), ("orthogonal", 40)]
)
def test_rows_are_those_of_the_whole_roots(projection, p, bias):
    processor = GradientProcessor(p, None, 3, bias, projection)
    whole, projected = (collect(fit(processor, projected=flag)) for flag in (False, True))
    torch.testing.assert_close(projected, whole, rtol=1e-9, atol=1e-11)


def test_a_normalizer_has_p_numbers_for_each_feature_of_a_side_and_keeps_them_when_it_is_saved(tmp_path):
    processor = fit(GradientProcessor(4), projected=True, modules=MODULES[1:])
    for name, normalizer in processor.normalizers.items():
        tracked = select_modules(tiny.model(), [name])[name]
        numbers = sum(tensor.numel() for tensor in normalizer.tensors().values())
        assert numbers == 4 * (tracked.out_features + tracked.in_features) + 4 + 4
    processor.save(tmp_path)
    loaded = GradientProcessor.load(tmp_path)
    assert loaded.fingerprint() == processor.fingerprint()
    assert torch.equal(collect(loaded, MODULES[1:]), collect(processor, MODULES[1:]))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"projection": "normal"}, {"projection_dim": 5}, {"projection_dim": 3}]
)
def test_another_projection_is_refused(change):
    processor = fit(GradientProcessor(4), projected=True)
    other = GradientProcessor(**(processor.settings | change | {"normalizers": processor.normalizers}))
    with pytest.raises(InvalidInput, match="projection_dim, projection and seed"):
        collect(other)


def test_whole_gradients_are_refused():
    normalizers = fit(GradientProcessor(4), projected=True).normalizers
    with pytest.raises(InvalidInput, match="expected a normalizer of fit_processor"):
        collect(GradientProcessor(None, normalizers))


def test_modules_that_do_not_fit_into_memory_together_are_fitted_in_groups(monkeypatch):
    together = fit(GradientProcessor(4), projected=True)
    calls = []
    original = normalizer_fitting.NormalizerFitting.__init__

    def record(self, model, modules, *arguments, **options):
        calls.append(list(modules))
        original(self, model, modules, *arguments, **options)

    monkeypatch.setattr(normalizer_fitting.NormalizerFitting, "__init__", record)
    monkeypatch.setattr(normalizer_fitting, "free_memory_bytes", lambda device: 1)
    in_groups = fit(GradientProcessor(4), projected=True)
    assert calls == [[name] for name in MODULES]
    assert in_groups.fingerprint() == together.fingerprint()
