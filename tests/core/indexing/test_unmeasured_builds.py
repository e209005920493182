"""A build that is told not to measure its search does not, says so, and can be queried and extended all the same."""

import pytest

from bergson_core import AttributionIndex, append_documents, build_index
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec, SearchSpec
from bergson_core.search.measuring import recall
from bergson_core.search.measuring.recall import RecallQueries, unmeasured_entry
from bergson_core.storage.manifest import read_manifest
from tests import tiny
from tests.core.helpers import make_spec, query

UNMEASURED = SearchSpec(measure=False)


@pytest.fixture
def no_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it an error to run the model for a measurement."""
    monkeypatch.setattr(RecallQueries, "collect", lambda *arguments: pytest.fail("queries are collected"))


def documents(count: int, start: int = 0) -> tuple[dict, ...]:
    texts = tiny.texts(start + count)[start:]
    return tuple(
        {"id": f"d-{start + k}", "text": text, "source": "x", "number": k} for k, text in enumerate(texts)
    )


@pytest.mark.usefixtures("no_queries")
@pytest.mark.parametrize(("rows", "candidates"), [("float16", 40), ("int8", 40), ("sign", 120)])
def test_the_manifest_says_that_nothing_was_measured(sources, tmp_path, rows, candidates):
    gradients = GradientSpec(projection_dim=4, rows=rows)
    spec = make_spec(sources, dataset=None, documents=documents(120), gradients=gradients, search=UNMEASURED)
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=50)
    manifest = read_manifest(path)
    assert manifest.search.recall_at_10 is manifest.search.opponents_recall_at_10 is manifest.notice is None
    assert (manifest.search.queries, manifest.search.candidates) == (0, candidates)
    assert not manifest.spec.search.measure
    answer = AttributionIndex.open(path).query("Person 3 works", " for company 2.", top_k=3)
    assert len(answer.results) == 3
    assert answer.notice is None
    assert answer.results[0].percentile is not None


@pytest.mark.usefixtures("no_queries")
def test_documents_are_added_to_it_without_a_measurement(sources, tmp_path):
    path = tmp_path / "facts"
    build_index(make_spec(sources, dataset=None, documents=documents(60), search=UNMEASURED), path)
    manifest = append_documents(path, AppendSpec(documents=documents(60, start=60)))
    assert (manifest.rows, manifest.search.rows) == (120, 60)
    assert manifest.search.recall_at_10 is manifest.notice is None
    assert AttributionIndex.open(path).attribute([query(top_k=120)])[0].results[119]


def test_its_rows_are_those_of_a_measured_build(sources, tmp_path):
    for name, search in (("measured", SearchSpec()), ("unmeasured", UNMEASURED)):
        build_index(make_spec(sources, search=search), tmp_path / name)
    rows = [
        (tmp_path / name / "shards/00000/gradients.bin").read_bytes() for name in ("measured", "unmeasured")
    ]
    assert rows[0] == rows[1]
    assert make_spec(sources).rows_fingerprint() == make_spec(sources, search=UNMEASURED).rows_fingerprint()


def test_a_build_that_is_not_told_so_is_measured_and_keeps_the_fingerprint_of_0_1_0(sources):
    spec = make_spec(sources)
    assert spec.search.measure
    assert spec.fingerprint() == make_spec(sources, search={"kind": "auto", "min_recall": 0.99}).fingerprint()
    assert spec.fingerprint() != make_spec(sources, search=UNMEASURED).fingerprint()
    old = spec.model_dump(mode="json")
    del old["search"]["measure"]
    assert BuildSpec.model_validate(old) == spec


def test_a_recall_is_not_asked_of_what_is_not_measured():
    with pytest.raises(InvalidInput, match=r"min_recall is 0\.9, and measure is false"):
        SearchSpec(measure=False, min_recall=0.9)
    assert SearchSpec.model_validate(UNMEASURED.model_dump()) == UNMEASURED


def test_a_large_index_is_compared_exactly_unless_its_recall_is_measured(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(recall, "_MIN_BYTES_FOR_ONE_BIT", 0)
    build_index(make_spec(sources, search=UNMEASURED), tmp_path / "facts")
    assert read_manifest(tmp_path / "facts").search.kind == "float16"


@pytest.mark.parametrize(
    ("kind", "rows", "candidates"),
    [
        ("float16", 10**7, 40),
        ("hamming", 500, 500),
        ("hamming", 10**5, 2000),
        ("hamming", 10**6, 10**4),
        ("rabitq", 10**5, 2000),
    ],
)
def test_more_candidates_are_taken_than_are_usually_needed(kind, rows, candidates):
    assert unmeasured_entry(kind, rows).candidates == candidates
