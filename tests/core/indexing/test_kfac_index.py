"""What an index keeps of K-FAC, and that indexes which kept more give the same answers."""

from pathlib import Path

import numpy as np
import pytest

from bergson_core import AttributionIndex, append_documents, build_index
from bergson_core.gradients.checkpoints import fitting
from bergson_core.gradients.normalizers.normalizers import KfacNormalizer
from bergson_core.gradients.processor_fitting import fit_processor_from_batches
from bergson_core.schemas.build import AppendSpec
from tests.core.helpers import make_spec, query

P = 3
TOLERANCE = 1e-4
NEW = AppendSpec(documents=({"id": "new", "text": "Person 41 lives in city 2", "source": "x", "number": 41},))


def scores_of(path: Path, **changes: object) -> dict[str, float]:
    (answer,) = AttributionIndex.open(path).attribute([query(top_k=41, **changes)])
    return {row.id: row.score for row in answer.results}


def build_with_whole_roots(spec, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds an index that keeps the whole roots, as earlier releases did."""

    def fit(*arguments, whole: bool):
        return fit_processor_from_batches(*arguments, whole=True)

    with monkeypatch.context() as context:
        context.setattr(fitting, "fit_processor_from_batches", fit)
        build_index(spec, path, shard_rows=16)


@pytest.mark.parametrize("rows", ["float16", "sign"])
def test_an_index_with_whole_roots_opens_and_gives_the_same_answers(sources, tmp_path, monkeypatch, rows):
    spec = make_spec(sources, gradients={"projection_dim": P, "normalizer": "kfac", "rows": rows})
    build_with_whole_roots(spec, tmp_path / "old", monkeypatch)
    build_index(spec, tmp_path / "new", shard_rows=16)
    assert all(
        isinstance(normalizer, KfacNormalizer)
        for normalizer in AttributionIndex.open(tmp_path / "old").processor.normalizers.values()
    )
    old, new = tmp_path / "old", tmp_path / "new"
    tolerance = TOLERANCE if rows == "float16" else 0.05  # a number near 0 may get another sign
    for path in (old, new):
        append_documents(path, NEW)
    before, after = scores_of(old), scores_of(new)
    assert before.keys() == after.keys() and "new" in before
    np.testing.assert_allclose([after[name] for name in before], list(before.values()), atol=tolerance)
    before, after = scores_of(old, rescore=41), scores_of(new, rescore=41)
    np.testing.assert_allclose([after[name] for name in before], list(before.values()), atol=1e-4)


def test_statistics_have_p_numbers_for_each_feature_of_a_side_of_a_module(sources, tmp_path):
    spec = make_spec(
        sources,
        gradients={"projection_dim": P, "normalizer": "kfac"},
        scoring={"preconditioner": False},
    )
    manifest = build_index(spec, tmp_path / "facts")
    (size,) = [entry.bytes for entry in manifest.files if entry.path.endswith("normalizers.safetensors")]
    sides = sum(module.out_features + module.in_features for module in manifest.modules)
    names_and_shapes = 1000 * len(manifest.modules)
    assert 4 * P * sides < size < 4 * P * sides + names_and_shapes
