"""How a result compares with random rows of the index, and when an answer says that nothing stands out."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import AttributionIndex, append_documents, build_index, fit_profile, take_down_document
from bergson_core.indexing.build_context import ignore_progress
from bergson_core.schemas.build import AppendSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.source import DatasetSpec
from bergson_core.search import background_sample
from bergson_core.search.background_sample import (
    HISTOGRAM_BINS,
    BackgroundSample,
    percentiles,
    score_histogram,
)
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.measuring.null_queries import NullQueries, QuerySources, collect_null_queries
from bergson_core.search.measuring.significance import (
    NO_INFLUENCE_NOTICE,
    calibrate_notice,
    extrapolate_threshold,
    prominences,
    significance_notice,
    strengths_of,
)
from bergson_core.storage.manifest import NoticeEntry, read_manifest
from bergson_core.tokens.tokenization import tokenize
from tests import tiny
from tests.core.helpers import make_spec, query

DOCUMENTS = 150


@pytest.fixture(scope="module", params=["float16", "sign"])
def large_index(request, sources, tmp_path_factory):
    """Returns an index of so many rows that some can stand out."""
    root = tmp_path_factory.mktemp("many")
    documents = DatasetSpec(path=str(tiny.save_documents(root / "documents.jsonl", DOCUMENTS)))
    spec = make_spec(
        sources,
        dataset=documents,
        gradients=GradientSpec(projection_dim=4, rows=request.param),
        scoring=ScoringSpec(normalize="block"),
    )
    build_index(spec, root / "facts", shard_rows=40)
    return root / "facts"


def test_the_percentile_counts_the_random_rows_that_score_lower(large_index):
    """Here the sample is the whole index. A row of signs counts as lower only if it is so by more than its error."""
    opened = AttributionIndex.open(large_index)
    (answer,) = opened.attribute([query(top_k=DOCUMENTS, direction="both")])
    scores = np.array([row.score for row in answer.results])
    assert len(scores) == DOCUMENTS
    error = 0.02 * scores.std() if opened.manifest.spec.gradients.rows == "sign" else 0
    for row in (*answer.results, *answer.opponents):
        just_lower = row.score - 1e-5 * abs(row.score)
        fewest, most = ((scores < bound).sum() for bound in (just_lower - error, just_lower))
        assert 100 * fewest <= (row.percentile + 0.011) * (DOCUMENTS + 1)
        assert 100 * most >= (row.percentile - 0.011) * (DOCUMENTS + 1)


def test_above_all_of_4096_rows_is_99_98():
    assert percentiles([1.0, 0.0], np.zeros(4096, np.float32)) == [99.98, 0]
    assert percentiles([1.0], np.zeros(0, np.float32)) == [None]


def test_the_histogram_counts_each_sampled_score_once():
    scores = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    histogram = score_histogram(scores)
    assert histogram is not None
    assert (histogram.edges[0], histogram.edges[-1]) == (scores.min(), scores.max())
    bounds = list(zip(histogram.edges, histogram.edges[1:], strict=False))
    counted = [((scores >= low) & (scores < high)).sum() for low, high in bounds[:-1]]
    assert histogram.counts == [*counted, (scores >= bounds[-1][0]).sum()]
    assert len(histogram.counts) == HISTOGRAM_BINS
    np.testing.assert_allclose(np.diff(histogram.edges), np.ptp(scores.astype(float)) / HISTOGRAM_BINS)


def test_equal_scores_have_a_histogram_and_no_scores_have_none():
    same = score_histogram(np.zeros(7, np.float32))
    assert same is not None and sum(same.counts) == 7
    assert score_histogram(np.zeros(0, np.float32)) is None


@pytest.mark.parametrize("changes", [{}, {"order": "fused"}, {"group_by": "near_duplicates"}, {"top_k": 3}])
def test_an_answer_has_the_background_only_if_it_is_asked_for(large_index, tmp_path, changes):
    opened = AttributionIndex.open(shutil.copytree(large_index, tmp_path / "facts"))
    (everything,) = opened.attribute([query(top_k=DOCUMENTS)])
    asked, plain = opened.attribute([query(include=["background"], **changes), query(**changes)])
    assert plain.background is None
    assert sum(asked.background.counts) == DOCUMENTS
    scores = [row.score for row in everything.results]
    # A row of signs counts as high as its error allows.
    tolerance = 0.02 * np.std(scores)
    assert asked.background.edges[0] == pytest.approx(min(scores), abs=tolerance)
    assert asked.background.edges[-1] == pytest.approx(max(scores), abs=tolerance)


def test_documents_that_were_taken_down_are_not_compared_with(spec, tmp_path):
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    (before,) = opened.attribute([query(top_k=40)])
    for row in before.results[1:]:
        take_down_document(tmp_path / "facts", row.id)
    (after,) = opened.attribute([query(top_k=40)])
    assert [row.percentile for row in after.results] == [0]


def test_the_sample_does_not_depend_on_how_shards_are_distributed(index, monkeypatch):
    monkeypatch.setattr(background_sample, "MIN_SAMPLE_ROWS", 1)
    monkeypatch.setattr(background_sample, "MAX_SAMPLE_ROWS", 12)
    shards = AttributionIndex.open(index).shards
    whole = BackgroundSample.read(shards, 40, seed=0)
    parts = [BackgroundSample.read(part, 40, seed=0) for part in (shards[:1], shards[1:])]
    assert len(whole.offsets) == 12
    torch.testing.assert_close(
        torch.cat([part.rows.blocks for part in parts], 1), whole.rows.blocks, rtol=0, atol=0
    )
    assert not np.array_equal(BackgroundSample.read(shards, 40, seed=1).offsets, whole.offsets)


def test_shards_without_a_sampled_row_give_no_background_scores(large_index, monkeypatch):
    monkeypatch.setattr(background_sample, "MIN_SAMPLE_ROWS", 1)
    monkeypatch.setattr(background_sample, "MAX_SAMPLE_ROWS", 1)
    opened = AttributionIndex.open(large_index)
    unsampled = [
        shard for shard in opened.shards if not BackgroundSample.read([shard], DOCUMENTS, seed=0).offsets.size
    ]
    sample = BackgroundSample.read(unsampled, DOCUMENTS, seed=0)
    _, weights = opened.profiles["default"].prepare_queries(torch.randn(3, len(opened.collector.slices), 16))
    assert sample.scores(opened.profiles["default"], weights, [None] * len(unsampled)).shape == (3, 0)


def test_a_sample_takes_no_more_memory_than_the_limit(index, monkeypatch):
    monkeypatch.setattr(background_sample, "MIN_SAMPLE_ROWS", 1)
    monkeypatch.setattr(background_sample, "MAX_SAMPLE_BYTES", 4 * 128 * 7)
    sample = BackgroundSample.read(AttributionIndex.open(index).shards, 40, seed=0)
    assert sample.rows.blocks.nbytes == 4 * 128 * 7


def test_appended_documents_are_sampled_too(spec, tmp_path):
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    rows = tuple(
        {"id": f"new-{k}", "text": text, "source": "x", "number": k} for k, text in enumerate(tiny.texts(30))
    )
    append_documents(path, AppendSpec(documents=rows))
    opened = AttributionIndex.open(path)
    assert len(opened.searcher.background.offsets) == 70
    assert opened.manifest.notice is not None  # 40 rows were too few to say, 70 are enough
    assert opened.attribute([query()])[0].results[0].percentile > 90


def test_another_profile_has_percentiles_and_no_notice(spec, tmp_path):
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    sample = {"prompt": [f"Person {k} works" for k in range(9)], "completion": [" for company 2."] * 9}
    fit_profile(path, "work", Dataset.from_dict(sample), mixing=0.7)
    opened = with_threshold(AttributionIndex.open(path), threshold=1e9)
    by_default, by_profile = opened.attribute([query(top_k=40), query(top_k=40, profile="work")])
    assert by_default.results[0].percentile == by_profile.results[0].percentile > 90
    assert by_profile.notice is None


def with_threshold(opened: AttributionIndex, threshold: float) -> AttributionIndex:
    """Returns the index with another threshold of the notice."""
    entry = NoticeEntry(threshold=threshold, false_alarms=0.05, queries=256)
    manifest = opened.manifest.model_copy(update={"notice": entry})
    return replace(opened, manifest=manifest, answerer=replace(opened.answerer, manifest=manifest))


def test_an_answer_has_the_notice_where_its_best_result_does_not_stand_out(large_index):
    opened = AttributionIndex.open(large_index)
    for threshold, notice in ((-1e9, None), (1e9, NO_INFLUENCE_NOTICE)):
        best, both, opponents = with_threshold(opened, threshold).attribute(
            [query(), query(direction="both"), query(direction="opponents")]
        )
        assert (best.notice, both.notice, opponents.notice) == (notice, notice, None)
        assert best.results  # are returned all the same


def make_null_queries(opened: AttributionIndex, numbers: list[int]) -> NullQueries:
    """Returns null queries that are made of the documents with these numbers."""
    texts = tiny.texts(DOCUMENTS)
    tokens = tokenize(opened.model.tokenizer, [texts[number] for number in numbers], None)
    sources = QuerySources.of_rows(opened.shards, numbers, tokens)
    return collect_null_queries(opened.collector, sources, 100, 1000, ignore_progress)


def calibrate(
    opened: AttributionIndex, queries: NullQueries, candidates: int = DOCUMENTS
) -> NoticeEntry | None:
    searcher = opened.searcher
    return calibrate_notice(
        queries, opened.profiles["default"], searcher.candidate_search, candidates, searcher.background
    )


def prominences_by_definition(opened: AttributionIndex, queries: NullQueries) -> np.ndarray:
    """Returns the prominence of each query's best document among all that it is not made of."""
    answers = opened.search(queries.rows.flatten(1), opened.processor, top_k=DOCUMENTS)
    values = []
    for results, sources in zip(answers, queries.sources.tolist(), strict=True):
        left_out = {f"doc-{number}" for number in sources}
        scores = [row.score for row in results if row.id not in left_out]
        assert len(scores) == DOCUMENTS - 2
        median, high = np.quantile(scores, (0.5, 0.99))
        values.append((scores[0] - median) / (high - median))
    return np.array(values)


def test_the_documents_that_a_null_query_is_made_of_are_not_among_its_results(large_index):
    opened = AttributionIndex.open(large_index)
    queries = make_null_queries(opened, list(range(0, DOCUMENTS, 3)))
    assert len(queries.rows) == 100
    by_definition = prominences_by_definition(opened, queries)
    entry = calibrate(opened, queries)
    rounding = 5e-3 if opened.manifest.spec.gradients.rows == "sign" else 1e-3
    assert entry.threshold == pytest.approx(extrapolate_threshold(by_definition), rel=rounding)
    assert (entry.false_alarms, entry.queries) == (0.05, len(queries.rows))


def test_the_best_row_of_few_queries_is_looked_for_among_their_candidates(large_index, monkeypatch):
    opened = AttributionIndex.open(large_index)
    queries = make_null_queries(opened, list(range(0, DOCUMENTS, 3)))
    few = NullQueries(queries.rows[:6], queries.sources[:6])
    expected = calibrate(opened, few)
    monkeypatch.setattr(ExactScorer, "iter_scores", lambda scorer, weights: pytest.fail("all rows are read"))
    assert calibrate(opened, few, candidates=20).threshold == pytest.approx(expected.threshold, rel=0.2)


def test_copies_of_a_few_documents_hardly_raise_the_threshold():
    """An eighth of the null queries has an answer all the same, in a copy of what the query is made of."""
    random = np.random.default_rng(0)
    thresholds = []
    for copies in (0, 128):
        best = random.gumbel(1.5, 0.2, size=1024)
        best[:copies] = random.uniform(4, 12, size=copies)
        thresholds.append(extrapolate_threshold(best))
    exact = 1.5 - 0.2 * np.log(-np.log(0.95))
    assert thresholds[0] == pytest.approx(exact, rel=0.03)
    assert thresholds[0] < thresholds[1] < 1.25 * exact < np.quantile(best, 0.95) / 2


def test_there_is_no_threshold_where_no_document_stands_out_from_equal_ones(large_index):
    assert extrapolate_threshold(np.array([1.0, 2.0, np.inf, np.inf])) == np.inf
    assert extrapolate_threshold(np.full(9, -np.inf)) == np.inf
    assert extrapolate_threshold(np.array([1.0, 2.0])) == np.inf
    opened = AttributionIndex.open(large_index)
    zeros = NullQueries(torch.zeros(20, len(opened.collector.slices), 16), np.zeros((20, 2), dtype=np.int64))
    assert calibrate(opened, zeros) is None


def test_a_threshold_of_0_1_0_is_used_as_it_is(large_index):
    opened = AttributionIndex.open(large_index)
    entry = NoticeEntry.model_validate({"threshold": 5.5, "false_alarms": 0.05, "queries": 256})
    scores = np.linspace(0, 1, 101, dtype=np.float32)
    assert significance_notice(0.5 + 5.4 * 0.49, scores, entry) == NO_INFLUENCE_NOTICE
    assert significance_notice(0.5 + 5.6 * 0.49, scores, entry) is None
    assert opened.manifest.notice.model_dump().keys() == entry.model_dump().keys()


def test_prominence_is_in_units_of_the_99th_percentile():
    scores = np.linspace(0, 1, 101, dtype=np.float32)
    assert prominences([0.5 + 3 * 0.49, 0.5], scores) == pytest.approx([3, 0])
    assert prominences([7 * (0.5 + 3 * 0.49) - 2], 7 * scores - 2) == pytest.approx([3], rel=1e-5)
    flat = np.zeros(101, np.float32)
    assert prominences([1.0, -1.0, 0.0], flat).tolist() == [np.inf, -np.inf, -np.inf]


def test_an_index_of_few_rows_has_no_notice(index):
    assert read_manifest(index).notice is None
    (answer,) = AttributionIndex.open(index).attribute([query()])
    assert answer.notice is None
    assert answer.results[0].percentile is not None


@pytest.mark.parametrize(
    ("score", "low", "expected"),
    [
        (300.0, 150.0, "strong"),
        (300.0, 90.0, "weak"),  # its noise may be the reason
        (120.0, 110.0, "weak"),  # surely above random rows, but no higher than the best of any query
        (120.0, 90.0, "none"),
        (10.0, 5.0, "none"),
    ],
)
def test_an_influence_is_strong_if_it_stands_out_and_its_interval_is_above_random_rows(score, low, expected):
    background = np.arange(101, dtype=np.float32)  # the 99th percentile is 99
    entry = NoticeEntry(threshold=2.0, false_alarms=0.05, queries=64)
    assert strengths_of([0.0, score], [None, (low, score + 1)], background, entry) == [None, expected]


def test_strength_is_unknown_without_threshold_interval_or_enough_random_rows():
    background = np.arange(101, dtype=np.float32)
    entry = NoticeEntry(threshold=2.0, false_alarms=0.05, queries=64)
    assert strengths_of([300.0], [(200.0, 400.0)], background, None) == [None]
    assert strengths_of([300.0], [None], background, entry) == [None]
    assert strengths_of([300.0], [(200.0, 400.0)], background[:49], entry) == [None]
