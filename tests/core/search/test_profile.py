"""A fitted profile changes how rows are compared, exactly as defined, without running the corpus again."""

import json
import shutil

import pytest
import torch
from filelock import FileLock

from bergson_core import AttributionIndex, AttributionQuery, GradientProcessor, build_index, fit_profile
from bergson_core.attribution.profile_fitting import match_mixing
from bergson_core.errors import IndexBusy, IndexCorrupt, InvalidInput
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.storage.manifest import read_manifest
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import tokenize
from tests.core.helpers import QUERIES, make_spec, query, scores_by_definition


@pytest.fixture
def index_copy(index, tmp_path):
    """Returns a copy of the index that a test may change."""
    return shutil.copytree(index, tmp_path / "facts")


@pytest.mark.parametrize("preconditioner", [True, False])
@pytest.mark.parametrize(("rows", "normalize"), [("float16", "row"), ("int8", "block"), ("float16", "none")])
def test_scores_of_a_profile_are_those_of_the_mixed_second_moment(
    sources, tmp_path, sample, rows, normalize, preconditioner
):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    before = AttributionIndex.open(path).attribute([query()])[0].results
    fit_profile(path, "work", sample, mixing=0.7)
    index = AttributionIndex.open(path)
    by_profile, by_default = index.attribute([query(top_k=40, profile="work"), query()])
    expected = scores_by_definition(path, spec, query(), QUERIES, mixing=0.7)
    scores = torch.zeros(40, dtype=torch.float64)
    for row in by_profile.results:
        scores[int(row.id.removeprefix("doc-"))] = row.score
    largest = expected.abs().max().item()
    torch.testing.assert_close(
        scores, expected, rtol=1e-3, atol=5e-2 * largest if rows == "int8" else 2e-3 * largest
    )
    assert by_profile.profile == "work"
    for row, row_before in zip(by_default.results, before, strict=True):
        assert (row.id, pytest.approx(row.score, rel=1e-4)) == (row_before.id, row_before.score)


def test_the_best_rows_under_a_profile_are_among_the_candidates_of_the_default_profile(index_copy, sample):
    fit_profile(index_copy, "work", sample, mixing=0.9)
    index = AttributionIndex.open(index_copy)
    top, every = index.attribute([query(top_k=2, profile="work"), query(top_k=40, profile="work")])
    assert [row.id for row in top.results] == [row.id for row in every.results[:2]]


def test_a_new_profile_is_added_to_the_manifest_and_nothing_else_changes(index_copy, sample):
    before = read_manifest(index_copy)
    after = fit_profile(index_copy, "work", sample)
    assert [entry.name for entry in after.profiles] == ["default", "work"]
    assert after.profiles[1].queries == len(QUERIES)
    assert 0 < after.profiles[1].mixing < 1
    assert after == read_manifest(index_copy)
    assert (before.generation, after.generation) == (1, 2)
    new = {"profiles": before.profiles, "generation": 1, "created_at": before.created_at}
    assert after.model_copy(update=new) == before


def test_the_default_mixing_matches_the_kth_eigenvalues_of_both_sides():
    torch.manual_seed(0)
    queries, train = (torch.randn(2, 64, 64, dtype=torch.float64) for _ in range(2))
    queries, train = queries @ queries.mT, 5 * train @ train.mT
    mixing = match_mixing(queries, train)
    k = 2 - 1  # 1,000 of 65,536 are 2 of 128
    of_queries, of_train = (
        torch.linalg.eigvalsh(moment).flatten().sort(descending=True).values[k] for moment in (queries, train)
    )
    assert mixing * of_queries == pytest.approx(float((1 - mixing) * of_train))


def test_the_default_mixing_refuses_queries_that_span_too_few_directions(index_copy, sample):
    direction = torch.randn(128, dtype=torch.float64)
    one_direction = torch.outer(direction, direction)[None]
    train = torch.eye(128, dtype=torch.float64)[None]
    with pytest.raises(InvalidInput, match="fewer than the 2 directions"):
        match_mixing(one_direction, train)


@pytest.mark.parametrize(
    ("name", "mixing", "message"),
    [("default", 0.5, "already"), ("Work", 0.5, "lower-case"), ("work", 1.5, "from 0 to 1")],
)
def test_bad_profiles_are_refused(index_copy, sample, name, mixing, message):
    with pytest.raises(InvalidInput, match=message):
        fit_profile(index_copy, name, sample, mixing=mixing)


def test_sign_rows_have_no_profiles(sources, tmp_path, sample):
    spec = make_spec(sources, gradients=GradientSpec(projection_dim=4, rows="sign"))
    build_index(spec, tmp_path / "facts")
    with pytest.raises(InvalidInput, match="float16 or int8"):
        fit_profile(tmp_path / "facts", "work", sample)


def test_rows_too_wide_for_a_preconditioner_have_no_profiles(sources, tmp_path, sample):
    narrow = r"layers\.0\.attention\.dense$"
    settings = GradientSpec(projection_dim=65, modules=narrow)
    build_index(
        make_spec(sources, gradients=settings, scoring=ScoringSpec(preconditioner=False)), tmp_path / "f"
    )
    with pytest.raises(InvalidInput, match="expected at most 64"):
        fit_profile(tmp_path / "f", "work", sample)


def test_fitting_a_profile_fails_at_once_while_another_process_writes(index_copy, sample):
    with FileLock(index_copy / ".lock"), pytest.raises(IndexBusy):
        fit_profile(index_copy, "work", sample)


def test_an_unknown_profile_fails_only_the_query_that_names_it(index):
    good, bad = AttributionIndex.open(index).attribute([query(), query(profile="law")])
    assert good.results
    assert isinstance(bad, InvalidInput)
    assert "it has default" in str(bad)


def test_an_altered_profile_is_refused(index_copy, sample):
    fit_profile(index_copy, "work", sample)
    path = index_copy / "profiles" / "work" / "00000.lengths.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(IndexCorrupt, match="altered"):
        AttributionIndex.open(index_copy)


def test_gradients_computed_elsewhere_find_what_the_query_finds(index):
    opened = AttributionIndex.open(index)
    (answer,) = opened.attribute([query(direction="opponents")])
    processor = GradientProcessor.load(index / "statistics")
    rows, _ = opened.collector.collect(batch_of(opened, query()))
    (results,) = opened.search(rows, processor, direction="opponents")
    assert [(row.id, pytest.approx(row.score, abs=1e-5)) for row in results] == [
        (row.id, row.score) for row in answer.opponents
    ]


def batch_of(index: AttributionIndex, query: AttributionQuery):
    (batch,) = iter_batches(tokenize(index.model.tokenizer, [query.prompt], [query.completion]), 1000)
    return batch


@pytest.mark.parametrize("changes", [{"seed": 1}, {"projection": "normal"}, {"normalizers": None}], ids=str)
def test_an_index_refuses_gradients_of_another_projection_or_normalizer(index, changes):
    opened = AttributionIndex.open(index)
    fitted = opened.processor
    settings = {"projection_dim": 4, "normalizers": fitted.normalizers} | changes
    rows = torch.zeros(1, opened.collector.dimensions)
    with pytest.raises(InvalidInput, match="another processor"):
        opened.search(rows, GradientProcessor(**settings))
    assert opened.search(rows, GradientProcessor(4, fitted.normalizers))
    with pytest.raises(InvalidInput, match="expected gradients of shape"):
        opened.search(rows[:, :-1], fitted)


def test_an_index_whose_statistics_are_of_another_projection_is_refused(index_copy, spec):
    path = index_copy / "manifest.json"
    content = json.loads(path.read_text().replace('"projection": "orthogonal"', '"projection": "normal"'))
    path.write_text(json.dumps(content))  # in a form of its own, so that the checksum is not looked at
    with pytest.raises(IndexCorrupt, match="projected"):
        AttributionIndex.open(index_copy)
