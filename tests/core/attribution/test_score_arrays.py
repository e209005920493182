"""An array of scores has a score for each document at its position in the dataset, or is refused."""

import json

import numpy as np
import pyarrow as pa
import pytest

from bergson_core import (
    AttributionIndex,
    build_index,
    compact_index,
    score_corpus,
    score_self_influence,
    take_down_document,
    top_documents,
    write_score_array,
)
from bergson_core.errors import InvalidInput
from tests.core.helpers import make_spec, query

QUERIES = [query("Person 3 lives in", " city 1."), query("Person 5 works", " for company 1.")]
NAMES = ["scores.json", "scores.npy"]


@pytest.fixture
def opened(index) -> AttributionIndex:
    return AttributionIndex.open(index)


def read(path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.array(json.loads(path.read_text()))


def each_score(index: AttributionIndex) -> np.ndarray:
    scores = score_corpus(index, QUERIES, aggregate="each").read_all()["scores"]
    return np.array(scores.to_pylist())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_a_file_has_the_scores_of_all_documents_in_the_order_of_the_corpus(opened, tmp_path, name, aggregate):
    assert (
        write_score_array(opened, score_corpus(opened, QUERIES, aggregate=aggregate), tmp_path / name) == 40
    )
    expected = score_corpus(opened, QUERIES, aggregate=aggregate).read_all()["score"].to_pylist()
    assert read(tmp_path / name).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_each_score_has_a_list_of_all_documents_for_each_query(opened, tmp_path, name):
    write_score_array(opened, score_corpus(opened, QUERIES, aggregate="each"), tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name), each_score(opened).T)


def test_a_file_may_have_the_scores_of_documents_with_themselves(opened, tmp_path):
    write_score_array(opened, score_self_influence(opened), tmp_path / "scores.json")
    assert (
        read(tmp_path / "scores.json").tolist()
        == score_self_influence(opened).read_all()["score"].to_pylist()
    )


def test_a_file_is_replaced_only_on_request(opened, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("precious")
    with pytest.raises(InvalidInput, match="exists already"):
        write_score_array(opened, score_corpus(opened, QUERIES), path)
    assert path.read_text() == "precious"
    write_score_array(opened, score_corpus(opened, QUERIES), path, overwrite=True)
    assert len(read(path)) == 40


@pytest.mark.parametrize("name", ["scores.pt", "scores.jsonl", "scores"])
def test_another_suffix_is_refused(opened, tmp_path, name):
    with pytest.raises(InvalidInput, match=r"expected \.json, \.npy"):
        write_score_array(opened, score_corpus(opened, QUERIES), tmp_path / name)


def test_the_best_documents_alone_are_refused_even_if_they_are_all(opened, tmp_path):
    for count in (3, 40):
        best = top_documents(score_corpus(opened, QUERIES), count).to_reader()
        with pytest.raises(InvalidInput, match=r"all 40 documents of facts in the order.*\.jsonl, \.csv"):
            write_score_array(opened, best, tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())


def test_scores_of_another_index_are_refused(opened, tmp_path):
    scores = score_corpus(opened, QUERIES).read_all()
    ids = pa.array([f"other-{k}" for k in range(len(scores))])
    with pytest.raises(InvalidInput, match="are not those of all 40 documents"):
        write_score_array(opened, scores.set_column(0, "id", ids).to_reader(), tmp_path / "scores.json")


@pytest.mark.parametrize("compacted", [False, True])
def test_an_index_from_which_a_document_was_taken_down_is_refused(index_copy, tmp_path, compacted):
    take_down_document(index_copy, "doc-39")
    if compacted:
        compact_index(index_copy)
    opened = AttributionIndex.open(index_copy)
    with pytest.raises(InvalidInput, match="taken down"):
        write_score_array(opened, score_corpus(opened, QUERIES), tmp_path / "scores.json")


BAD_DOCUMENTS = {
    "left out": {"on_bad_document": "skip"},
    "cut into chunks": {"long_documents": "chunk"},
}


@pytest.mark.parametrize("reason", BAD_DOCUMENTS)
def test_an_index_whose_documents_are_not_those_of_the_dataset_is_refused(sources, tmp_path, reason):
    texts = ["Person 1 lives in city 2.", "Person 2 works " * 40, "Person 3 works for company 1."]
    documents = tuple(
        {"id": f"d{k}", "text": text, "source": "a", "number": k} for k, text in enumerate(texts)
    )
    spec = make_spec(sources, dataset=None, documents=documents, **BAD_DOCUMENTS[reason])
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    with pytest.raises(InvalidInput, match=reason):
        write_score_array(opened, score_corpus(opened, QUERIES), tmp_path / "scores.json")
