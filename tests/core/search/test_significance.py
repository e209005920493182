"""How a result compares with random rows of the index, and when an answer says that nothing stands out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import AttributionIndex, append_documents, build_index, fit_profile, take_down_document
from bergson_core.schemas.build import AppendSpec, DatasetSpec, GradientSpec, ScoringSpec
from bergson_core.search import background_sample
from bergson_core.search.background_sample import BackgroundSample, percentile
from bergson_core.search.significance import (
    NO_INFLUENCE_NOTICE,
    _splice,
    calibrate_notice,
    collect_null_rows,
    prominence,
    significance_notice,
)
from bergson_core.storage.manifest import NoticeEntry, read_manifest
from bergson_core.tokens.tokenization import Tokens
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
    """Here the sample is the whole index."""
    (answer,) = AttributionIndex.open(large_index).attribute([query(top_k=DOCUMENTS, direction="both")])
    scores = np.array([row.score for row in answer.results])
    assert len(scores) == DOCUMENTS
    for row in (*answer.results, *answer.opponents):
        lower = (scores < row.score - 1e-5 * abs(row.score)).sum()
        assert row.percentile == pytest.approx(100 * lower / (DOCUMENTS + 1), abs=0.011)


def test_above_all_of_4096_rows_is_99_98():
    assert percentile(1.0, np.zeros(4096, np.float32)) == 99.98
    assert percentile(0.0, np.zeros(4096, np.float32)) == 0
    assert percentile(1.0, np.zeros(0, np.float32)) is None


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
    torch.testing.assert_close(torch.cat([part.blocks for part in parts], 1), whole.blocks, rtol=0, atol=0)
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


def test_a_sample_has_no_more_numbers_than_the_limit(index, monkeypatch):
    monkeypatch.setattr(background_sample, "MIN_SAMPLE_ROWS", 1)
    monkeypatch.setattr(background_sample, "MAX_SAMPLE_NUMBERS", 128 * 7)
    assert BackgroundSample.read(AttributionIndex.open(index).shards, 40, seed=0).blocks.numel() == 128 * 7


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


def test_five_percent_of_null_queries_lie_above_the_threshold(large_index):
    opened, manifest = AttributionIndex.open(large_index), read_manifest(large_index)
    assert manifest.notice.queries > 200
    rng = np.random.default_rng(0)
    documents = [
        Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=s), 1) for s in rng.integers(4, 12, 40)
    ]
    null_rows = collect_null_rows(opened.collector, documents, 1000)
    profile, candidates = opened.profiles["default"], opened.searcher.candidate_search
    entry = calibrate_notice(null_rows, profile, candidates, DOCUMENTS, opened.searcher.background)
    _, weights = profile.prepare_queries(null_rows)
    opened = with_threshold(opened, entry.threshold)
    results = opened.search(null_rows.flatten(1), opened.processor, top_k=1)
    background_scores = opened.searcher.background.scores(profile, weights, opened.visible())
    has_notice = [
        significance_notice(rows[0].score, scores, entry) is not None
        for rows, scores in zip(results, background_scores, strict=True)
    ]
    assert len(has_notice) == len(null_rows)
    assert 0.9 < np.mean(has_notice) < 1


def test_a_null_query_is_half_of_one_document_and_half_of_another():
    document, other = (Tokens.labelled_from(np.arange(start, start + 5), 1) for start in (10, 20))
    spliced = _splice(document, other)
    assert spliced.ids.tolist() == [10, 11, 22, 23, 24]
    assert spliced.labels.nonzero()[0].tolist() == [2, 3, 4]


def test_prominence_is_in_units_of_the_99th_percentile():
    scores = np.linspace(0, 1, 101, dtype=np.float32)
    assert prominence(0.5 + 3 * 0.49, scores) == pytest.approx(3)
    assert prominence(7 * (0.5 + 3 * 0.49) - 2, 7 * scores - 2) == pytest.approx(3, rel=1e-5)
    flat = np.zeros(101, np.float32)
    assert (prominence(1.0, flat), prominence(-1.0, flat)) == (np.inf, -np.inf)


def test_an_index_of_few_rows_has_no_notice(index):
    assert read_manifest(index).notice is None
    (answer,) = AttributionIndex.open(index).attribute([query()])
    assert answer.notice is None
    assert answer.results[0].percentile is not None
