"""Candidates are measured against exact scores, and nothing below min_recall is published."""

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import IndexNotFound, InvalidInput
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.build import GradientSpec, ScoringSpec, SearchSpec
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.measuring import recall
from bergson_core.search.measuring.recall import RecallQueries, measure_recall, search_kinds_to_try
from bergson_core.shards.shard import RowShape
from bergson_core.storage.manifest import read_manifest
from bergson_core.tokens.tokenization import tokenize
from tests import tiny
from tests.core.helpers import make_spec, query, scores_by_definition

DOCUMENTS = 400


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A directory with a model and more documents than there are candidates."""
    root = tmp_path_factory.mktemp("many")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl", DOCUMENTS)
    return root


@pytest.fixture
def few_candidates(monkeypatch):
    """Takes so few candidates that one bit per number cannot reach the recall."""
    monkeypatch.setitem(recall._MIN_CANDIDATES, "rabitq", 10)
    monkeypatch.setitem(recall._MAX_CANDIDATES, "rabitq", 10)


def spec_of(sources, search: dict, **gradients):
    return make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, **gradients),
        scoring=ScoringSpec(preconditioner=False),
        search=SearchSpec(**search),
    )


@pytest.mark.parametrize("kind", ["float16", "rabitq", "hamming"])
def test_the_recall_is_the_share_of_the_best_ten_among_the_candidates(sources, tmp_path, kind):
    settings = {"rows": "sign"} if kind == "hamming" else {}
    search = {"kind": "rabitq"} if kind == "rabitq" else {}
    build_index(
        spec_of(sources, search | {"min_recall": 0.01}, **settings), tmp_path / "facts", shard_rows=150
    )
    index = AttributionIndex.open(tmp_path / "facts")
    assert index.manifest.search.kind == kind
    numbers = np.array([3, 77, 390])
    documents = [row["prompt"] for shard in index.shards for row in shard.documents.to_pylist()]
    rows = rows_of(index, [documents[k] for k in numbers])
    queries = RecallQueries(numbers, rows.reshape(3, len(index.collector.slices), -1))
    profile = index.profiles["default"]
    search = index.searcher.candidate_search
    entry = measure_recall(queries, profile, index.shards, search, min_recall=0.01)
    phi, weights = profile.prepare_queries(queries.rows)
    all_rows = torch.cat([shard.rows(slice(None)) for shard in index.shards])
    lengths = torch.from_numpy(np.concatenate([np.array(in_shard) for in_shard in profile.lengths]))
    for sign, recall_at_10 in ((1, entry.recall_at_10), (-1, entry.opponents_recall_at_10)):
        exact = sign * torch.einsum("nmd,qmd->qn", all_rows / lengths[..., None].clamp_min(1e-30), weights)
        candidates = search.find_row_numbers(sign * phi, entry.candidates)
        shares = []
        for q, number in enumerate(numbers):
            exact[q, number] = -torch.inf
            best = set(exact[q].topk(10).indices.tolist())
            shares.append(len(best & set(candidates[q].tolist())) / 10)
        assert recall_at_10 == pytest.approx(np.mean(shares))


def rows_of(index: AttributionIndex, texts: list[str]) -> torch.Tensor:
    tokens = tokenize(index.model.tokenizer, texts, None)
    rows, _ = collect_rows(index.collector, tokens, 1000)
    return torch.from_numpy(rows)


def test_one_bit_a_number_takes_less_space_and_gives_the_exact_scores(sources, tmp_path):
    spec = spec_of(sources, {"kind": "rabitq", "min_recall": 0.5})
    build_index(spec, tmp_path / "lean", shard_rows=150)
    build_index(spec_of(sources, {}), tmp_path / "full", shard_rows=150)
    lean, full = (read_manifest(tmp_path / name) for name in ("lean", "full"))
    assert (lean.search.kind, full.search.kind) == ("rabitq", "float16")
    assert full.search.recall_at_10 == 1
    sizes = [
        sum(file.bytes for file in manifest.files if file.path.startswith("search/"))
        for manifest in (lean, full)
    ]
    assert sizes[0] < 0.2 * sizes[1]
    (answer,) = AttributionIndex.open(tmp_path / "lean").attribute([query(top_k=5)])
    expected = scores_by_definition(tmp_path / "lean", spec, query())
    for row in answer.results:
        assert row.score == pytest.approx(expected[int(row.id.removeprefix("doc-"))].item(), abs=2e-3)


def test_a_large_index_tries_one_bit_a_number_and_falls_back_to_float16(
    sources, tmp_path, monkeypatch, few_candidates
):
    shape = RowShape("float16", 8, 16)
    assert search_kinds_to_try(SearchSpec(), shape, 1000) == ("float16",)
    assert search_kinds_to_try(SearchSpec(), shape, 10**7) == ("rabitq", "float16")
    assert search_kinds_to_try(SearchSpec(kind="exact"), shape, 10**7) == ("float16",)
    assert search_kinds_to_try(SearchSpec(), RowShape("sign", 8, 16), 10**7) == ("hamming",)
    monkeypatch.setattr(recall, "_MIN_BYTES_FOR_ONE_BIT", 0)
    manifest = build_index(spec_of(sources, {}), tmp_path / "facts", shard_rows=150)
    assert manifest.search.kind == "float16"
    assert manifest.search.recall_at_10 >= 0.99
    assert AttributionIndex.open(tmp_path / "facts").attribute([query()])[0].results


def test_below_min_recall_nothing_is_published_and_the_rows_are_kept(sources, tmp_path, few_candidates):
    path = tmp_path / "facts"
    with pytest.raises(
        InvalidInput, match=r"recall@10 of 0\.\d+ by rabitq at 10 candidates.*search kind exact"
    ):
        build_index(spec_of(sources, {"kind": "rabitq"}), path, shard_rows=150)
    with pytest.raises(IndexNotFound):
        read_manifest(path)
    written_at = (path / "shards" / "00000" / "gradients.bin").stat().st_mtime_ns
    manifest = build_index(spec_of(sources, {"kind": "exact"}), path, shard_rows=150)
    assert (path / "shards" / "00000" / "gradients.bin").stat().st_mtime_ns == written_at
    assert manifest.search.kind == "float16"


def test_sign_rows_take_as_many_candidates_as_reach_the_recall(sources, tmp_path):
    counts = []
    for number, min_recall in enumerate((0.2, 1.0)):
        spec = spec_of(sources, {"min_recall": min_recall}, rows="sign")
        manifest = build_index(spec, tmp_path / str(number), shard_rows=150)
        assert manifest.search.recall_at_10 >= min_recall
        counts.append(manifest.search.candidates)
    assert counts[0] == 200 <= counts[1] <= DOCUMENTS


def test_scores_are_read_once_for_proponents_and_opponents(sources, tmp_path, monkeypatch):
    calls = []
    score_range = ExactScorer.score_range
    monkeypatch.setattr(
        ExactScorer,
        "score_range",
        lambda scorer, *places: calls.append(places) or score_range(scorer, *places),
    )
    build_index(spec_of(sources, {}), tmp_path / "facts", shard_rows=150)
    shards_of_recall, batches_of_notice = 3, len(calls) // 3 - 1
    assert len(calls) == shards_of_recall * (1 + batches_of_notice)
    assert [place[0] for place in calls[:3]] == [0, 1, 2]
    assert batches_of_notice <= 4


def test_where_every_row_is_a_candidate_the_recall_needs_no_query(sources, tmp_path):
    documents = tuple(
        {"id": str(k), "text": text, "source": "x", "number": k} for k, text in enumerate(tiny.texts(40))
    )
    manifest = build_index(make_spec(sources, dataset=None, documents=documents), tmp_path / "facts")
    search = manifest.search
    assert (search.candidates, search.recall_at_10, search.opponents_recall_at_10) == (40, 1, 1)
    assert search.queries == 0


def test_without_queries_the_recall_of_a_larger_index_is_not_known(sources, tmp_path):
    build_index(spec_of(sources, {}), tmp_path / "facts", shard_rows=150)
    index = AttributionIndex.open(tmp_path / "facts")
    queries = RecallQueries(np.empty(0, dtype=np.int64), torch.empty(0, len(index.collector.slices), 16))
    arguments = (index.profiles["default"], index.shards, index.searcher.candidate_search, 0.99)
    entry = measure_recall(queries, *arguments)
    assert (entry.recall_at_10, entry.candidates, entry.queries) == (None, 40, 0)


def test_an_index_of_one_document_has_full_recall(sources, tmp_path):
    spec = make_spec(
        sources, dataset=None, documents=({"id": "a", "text": "alone here", "source": "x", "number": 1},)
    )
    manifest = build_index(spec, tmp_path / "facts")
    assert manifest.search.recall_at_10 == 1
