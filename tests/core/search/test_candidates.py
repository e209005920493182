"""Candidates are the best rows of all shards together, whatever looks for them and however many cores there are."""

import numpy as np
import pytest
import torch

from bergson_core.search import candidates
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.faiss_index import build_faiss_file
from bergson_core.search.thread_pool import parallel_map
from bergson_core.shards.shard import RowShape
from tests.core.search.random_shards import ROWS, write_shards

SHAPES = {
    "float16": RowShape("float16", 3, 16),
    "rabitq": RowShape("float16", 3, 16),
    "hamming": RowShape("sign", 3, 13),  # whose bytes are not whole
}


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=SHAPES)
def kind(request):
    return request.param


@pytest.fixture
def shards(tmp_path, kind):
    """Three shards of random rows, with FAISS files where the kind needs them."""
    opened = write_shards(tmp_path, SHAPES[kind])
    if kind != "hamming":
        for shard in opened:
            build_faiss_file(tmp_path, shard, None, "row", kind)
    return opened


def random_queries(count, kind):
    shape = SHAPES[kind]
    return torch.randn(count, shape.modules * shape.width, generator=torch.Generator().manual_seed(9))


def similarities(shards, queries, kind):
    """Returns how like each query each row of all shards is, by the definition of what is compared."""
    rows = torch.cat([shard.rows(slice(None)) for shard in shards]).flatten(1)
    if kind == "hamming":
        return queries.sign() @ rows.sign().mT
    return queries @ torch.nn.functional.normalize(rows, dim=1).mT


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_best_of_all_shards_are_found_in_order(tmp_path, shards, kind, threads, low_memory):
    queries = random_queries(5, kind)
    search = CandidateSearch.open(tmp_path, shards, kind, low_memory=low_memory)
    row_numbers = search.find_row_numbers(queries, 20)
    expected = similarities(shards, queries, kind)
    scores = expected.gather(1, torch.from_numpy(row_numbers))
    if kind == "rabitq":  # which only estimates
        assert (scores.mean(1) > expected.mean(1) + 0.5 * expected.std(1)).all()
    else:
        torch.testing.assert_close(scores, expected.topk(20).values, atol=2e-3, rtol=0)


def test_a_batch_finds_what_its_queries_find_alone(tmp_path, shards, kind, threads):
    queries = random_queries(4, kind)
    search = CandidateSearch.open(tmp_path, shards, kind)
    alone = [search.find_row_numbers(query[None], 9)[0] for query in queries]
    assert np.array_equal(search.find_row_numbers(queries, 9), alone)


def test_only_allowed_rows_are_found_and_missing_ones_are_marked(tmp_path, shards, kind):
    allowed = [np.zeros(count, dtype=bool) for count in ROWS]
    allowed[0][[3, 40]] = allowed[2][[0, 119]] = True
    queries = random_queries(2, kind)
    shard_numbers, offsets = CandidateSearch.open(tmp_path, shards, kind).find(
        queries, 6, [allowed[0], allowed[1], allowed[2]]
    )
    for query in range(2):
        is_row = offsets[query] >= 0
        assert is_row.tolist() == [True] * 4 + [False] * 2
        assert set(zip(shard_numbers[query][is_row], offsets[query][is_row], strict=True)) == {
            (0, 3),
            (0, 40),
            (2, 0),
            (2, 119),
        }


def test_asking_for_more_rows_than_there_are_gives_all(tmp_path, shards, kind):
    queries = random_queries(1, kind)
    row_numbers = CandidateSearch.open(tmp_path, shards, kind).find_row_numbers(queries, 1000)
    assert sorted(row_numbers[0].tolist()) == list(range(sum(ROWS)))


def test_equal_rows_come_in_their_order_however_the_scores_are_gathered(monkeypatch):
    shard_results = [
        (np.array([[1.0, 2.0, 2.0]], np.float32), np.array([[0, 1, 2]])),
        (np.array([[2.0, 0.0, 2.0]], np.float32), np.array([[3, 4, 5]])),
    ]
    for merge_at in (1, 2**16):
        monkeypatch.setattr(candidates, "_MERGE_AT_SCORES", merge_at)
        scores, rows = candidates._merge_best(shard_results, 1, 3)
        assert (scores.tolist(), rows.tolist()) == ([[2, 2, 2]], [[1, 2, 3]])


def test_parallel_work_comes_back_in_order_and_raises_what_an_item_raised(threads):
    assert list(parallel_map(lambda k: k * k, range(50))) == [k * k for k in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda k: 1 // (9 - k), range(50)))


@pytest.mark.parametrize("merge_at", [1, 50, 2**16])
@pytest.mark.parametrize("query_count", [1, 4])
def test_the_best_rows_are_those_of_all_scores_together_with_equal_ones_in_their_order(
    monkeypatch, merge_at, query_count
):
    monkeypatch.setattr(candidates, "_MERGE_AT_SCORES", merge_at)
    random = np.random.default_rng(query_count)
    parts = [random.integers(0, 30, (query_count, count)).astype(np.float32) for count in (40, 1, 90, 40, 7)]
    for part in parts:
        part[random.random(part.shape) < 0.1] = -np.inf
    first_rows = np.cumsum([0, *(part.shape[1] for part in parts)])
    results = [
        (part, first + np.arange(part.shape[1])[None]) for part, first in zip(parts, first_rows, strict=False)
    ]
    scores, rows = candidates._merge_best(results, query_count, 12)
    together = np.concatenate(parts, axis=1)
    expected = np.argsort(-together, axis=1, kind="stable")[:, :12]
    assert np.array_equal(rows, expected)
    assert np.array_equal(scores, np.take_along_axis(together, expected, axis=1))
