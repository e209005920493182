"""On a Ray cluster, rows of checkpoints, preference pairs and heads are built and asked as in one process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from bergson_core import (
    AttributionIndex,
    RayExecutor,
    build_index,
    influence_totals,
    preview_unlearning,
)
from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from tests import tiny
from tests.core.helpers import file_hashes, make_spec, query
from tests.core.indexing.test_preference_pairs import pair_spec

WATCHED = [{"prompt": "Person 3 lives in", "completion": " city 1."}]
LIVING = [{"prompt": "Person 3", "completion": " lives"}]
CONTROL = [{"prompt": "A", "completion": " b"}]


def checkpoint_spec(sources: Path, directory: Path) -> BuildSpec:
    """Rows of the heads at two checkpoints."""
    models = [str(tiny.save_model(directory / f"step-{seed}", seed)) for seed in (1, 2)]
    gradients = GradientSpec(projection_dim=4, modules="attention", split_heads=True)
    return make_spec(sources, model=None, models=models, gradients=gradients)


@pytest.mark.parametrize("make", [pair_spec, checkpoint_spec])
def test_rows_of_every_kind_are_built_and_asked_on_the_cluster_as_here(
    cluster: Cluster, sources: Path, tmp_path: Path, make: Callable[[Path, Path], BuildSpec]
) -> None:
    spec = make(sources, tmp_path)
    build_index(spec, tmp_path / "here", shard_rows=8)
    build_index(spec, tmp_path / "there", shard_rows=8, executor=RayExecutor())
    assert file_hashes(tmp_path / "there") == file_hashes(tmp_path / "here")
    on_ray = AttributionIndex.open(tmp_path / "there", executor=RayExecutor())
    on_ray.behaviours.create("living", LIVING, CONTROL)
    queries = [
        query(direction="both", include=["tokens", "modules"]),
        query(instead_of=" city 2.", verify={"top": 2, "controls": 1, "together": True}),
        AttributionQuery(behaviour="living", direction="both", filter={"source": ["wiki", "a"]}),
        AttributionQuery(behaviour="living", group_by="source"),
    ]
    queries += [query(between=(0, 1))] if spec.models else []
    here = AttributionIndex.open(tmp_path / "there")
    for answer, expected in zip(on_ray.attribute(queries), here.attribute(queries), strict=True):
        assert isinstance(answer, Answer) and isinstance(expected, Answer)
        assert (answer.results, answer.opponents) == (expected.results, expected.opponents)
        assert answer.verification == expected.verification
    row = (here.query("Person 3 lives in", " city 1.", verify={"top": 1, "controls": 0}).results or [])[0]
    previews = [preview_unlearning(opened, WATCHED, ids=[row.id]) for opened in (on_ray, here)]
    assert previews[0] == previews[1]
    assert row.verified and previews[0].mean == pytest.approx(row.verified.log_probability)
    conditions = {"source": ["wiki", "a"]}
    met = [preview_unlearning(opened, WATCHED, filter=conditions) for opened in (on_ray, here)]
    assert met[0] == met[1] and met[0].documents == 20
    for fields in ({}, {"filter": conditions}):
        totals = {"behaviour": "living", "by": "source", "threshold": 0} | fields
        assert influence_totals(on_ray, totals).groups == influence_totals(here, totals).groups
