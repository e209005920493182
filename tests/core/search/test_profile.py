"""A profile changes how rows are compared, exactly as defined, without the corpus being run again."""

import shutil

import pytest
import torch

from bergson_core import AttributionIndex, GradientProcessor, build_index, fit_profile
from bergson_core.attribution.profile_fitting import match_mixing
from bergson_core.errors import IndexBusy, IndexCorrupt, InvalidInput
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.storage.manifest import read_manifest
from tests.core.helpers import QUERIES, make_spec, query, scores_by_definition


@pytest.fixture
def copied(index, tmp_path):
    """A copy of the index that may be changed."""
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
    found = torch.zeros(40, dtype=torch.float64)
    for row in by_profile.results:
        found[int(row.id.removeprefix("doc-"))] = row.score
    largest = expected.abs().max().item()
    torch.testing.assert_close(
        found, expected, rtol=1e-3, atol=5e-2 * largest if rows == "int8" else 2e-3 * largest
    )
    assert by_profile.profile == "work"
    for one, other in zip(by_default.results, before, strict=True):
        assert (one.id, pytest.approx(one.score, rel=1e-4)) == (other.id, other.score)


def test_the_best_of_a_profile_are_found_among_the_candidates_of_the_default(copied, sample):
    fit_profile(copied, "work", sample, mixing=0.9)
    index = AttributionIndex.open(copied)
    top, every = index.attribute([query(top_k=2, profile="work"), query(top_k=40, profile="work")])
    assert [row.id for row in top.results] == [row.id for row in every.results[:2]]


def test_a_new_profile_is_in_the_manifest_and_nothing_old_is_touched(copied, sample):
    before = read_manifest(copied)
    after = fit_profile(copied, "work", sample)
    assert [entry.name for entry in after.profiles] == ["default", "work"]
    assert after.profiles[1].queries == len(QUERIES)
    assert 0 < after.profiles[1].mixing < 1
    assert after == read_manifest(copied)
    assert (before.generation, after.generation) == (1, 2)
    new = {"profiles": before.profiles, "generation": 1, "created_at": before.created_at}
    assert after.model_copy(update=new) == before


def test_the_rule_gives_both_sides_the_same_eigenvalue_where_they_meet():
    torch.manual_seed(0)
    queries, train = (torch.randn(2, 64, 64, dtype=torch.float64) for _ in range(2))
    queries, train = queries @ queries.mT, 5 * train @ train.mT
    mixing = match_mixing(queries, train)
    k = 2 - 1  # 1,000 of 65,536 are 2 of 128
    pooled = [
        torch.linalg.eigvalsh(one).flatten().sort(descending=True).values[k] for one in (queries, train)
    ]
    assert mixing * pooled[0] == pytest.approx(float((1 - mixing) * pooled[1]))


def test_the_rule_refuses_queries_that_span_too_little(copied, sample):
    (one,) = torch.randn(1, 128, dtype=torch.float64)
    alone, train = torch.outer(one, one)[None], torch.eye(128, dtype=torch.float64)[None]
    with pytest.raises(InvalidInput, match="fewer than the 2 directions"):
        match_mixing(alone, train)


@pytest.mark.parametrize(
    ("name", "mixing", "says"),
    [("default", 0.5, "already"), ("Work", 0.5, "lower-case"), ("work", 1.5, "from 0 to 1")],
)
def test_bad_profiles_are_refused(copied, sample, name, mixing, says):
    with pytest.raises(InvalidInput, match=says):
        fit_profile(copied, name, sample, mixing=mixing)


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


def test_a_profile_waits_for_nobody(copied, sample):
    from filelock import FileLock

    with FileLock(copied / ".lock"), pytest.raises(IndexBusy):
        fit_profile(copied, "work", sample)


def test_an_unknown_profile_is_the_querys_own_fault(index):
    good, bad = AttributionIndex.open(index).attribute([query(), query(profile="law")])
    assert good.results
    assert isinstance(bad, InvalidInput)
    assert "it has default" in str(bad)


def test_an_altered_profile_is_refused(copied, sample):
    fit_profile(copied, "work", sample)
    path = copied / "profiles" / "work" / "00000.lengths.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(IndexCorrupt, match="altered"):
        AttributionIndex.open(copied)


def test_gradients_made_elsewhere_find_what_the_query_itself_finds(index):
    opened = AttributionIndex.open(index)
    (answer,) = opened.attribute([query(direction="opponents")])
    processor = GradientProcessor.load(index / "statistics")
    rows, _ = opened.collector.collect(batch_of(opened, query()))
    (found,) = opened.search(rows, processor, direction="opponents")
    assert [(row.id, pytest.approx(row.score, abs=1e-5)) for row in found] == [
        (row.id, row.score) for row in answer.opponents
    ]


def batch_of(index: AttributionIndex, asked):
    from bergson_core.data.batching import iter_batches, tokenize

    (batch,) = iter_batches(tokenize(index.model.tokenizer, [asked.prompt], [asked.completion]), 1000)
    return batch


@pytest.mark.parametrize("changes", [{"seed": 1}, {"projection": "normal"}, {"normalizers": None}], ids=str)
def test_a_store_refuses_gradients_of_another_projection_or_normalizer(index, changes):
    opened = AttributionIndex.open(index)
    fitted = opened.processor
    settings = {"projection_dim": 4, "normalizers": fitted.normalizers} | changes
    rows = torch.zeros(1, opened.collector.dimensions)
    with pytest.raises(InvalidInput, match="another processor"):
        opened.search(rows, GradientProcessor(**settings))
    assert opened.search(rows, GradientProcessor(4, fitted.normalizers))
    with pytest.raises(InvalidInput, match="expected gradients of shape"):
        opened.search(rows[:, :-1], fitted)


def test_an_index_whose_statistics_are_of_another_projection_is_refused(copied, spec):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace('"projection": "rademacher"', '"projection": "normal"'))
    with pytest.raises(IndexCorrupt, match="projected"):
        AttributionIndex.open(copied)
