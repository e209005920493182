"""Results of queries have the intervals of their scores, and say how strong they are."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from bergson_core import AttributionIndex, build_index, fit_profile, take_down_document
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.build import GradientSpec, ScoringSpec, SearchSpec
from bergson_core.schemas.results import ResultRow
from bergson_core.schemas.source import DatasetSpec
from bergson_core.search.features import compute_features
from bergson_core.search.measuring.significance import NO_INFLUENCE_NOTICE
from bergson_core.search.projection_noise.intervals import ScoreError
from bergson_core.search.projection_noise.score_noise import ScoreNoise
from bergson_core.storage.layout import preconditioner_path
from bergson_core.tokens.tokenization import tokenize
from tests import tiny
from tests.core.helpers import SCORING_CASES, make_spec, query

DOCUMENTS = 150


@pytest.fixture(scope="module")
def opened(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> AttributionIndex:
    """An index of so many rows that some can stand out."""
    root = tmp_path_factory.mktemp("many")
    documents = DatasetSpec(path=str(tiny.save_documents(root / "documents.jsonl", DOCUMENTS)))
    build_index(make_spec(sources, dataset=documents), root / "facts", shard_rows=40)
    return AttributionIndex.open(root / "facts")


def errors_by_definition(opened: AttributionIndex, root: Path, profile: str) -> list[ScoreError]:
    """Returns the errors of all documents for the query of `query()`, from φ of the stored rows."""
    spec, collector = opened.manifest.spec, opened.collector
    text = query()
    tokens = tokenize(opened.model.tokenizer, [text.prompt], [text.completion])
    row, _ = collect_rows(collector, tokens, 100)
    preconditioner = None
    if spec.scoring.preconditioner or profile != "default":
        preconditioner = Preconditioner.load(preconditioner_path(root, profile))
    rows = torch.cat([shard.rows(slice(None)) for shard in opened.shards])
    queries = torch.from_numpy(row).reshape(1, *rows.shape[1:])
    phi = compute_features(queries, preconditioner, spec.scoring.normalize)[0].reshape(queries.shape)[0]
    if spec.gradients.rows != "sign":
        rows = compute_features(rows, preconditioner, spec.scoring.normalize)[0].reshape(rows.shape)
    noise = ScoreNoise.of(opened.manifest)
    assert noise is not None
    return noise.errors(rows, phi)


def number_of(row: ResultRow) -> int:
    return int(row.id.removeprefix("doc-"))


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_intervals_are_those_of_phi_of_stored_rows(
    sources, tmp_path, sample, rows, normalize, preconditioner
):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    if rows != "sign":
        fit_profile(tmp_path / "facts", "task", sample)
    opened = AttributionIndex.open(tmp_path / "facts")
    for profile in opened.profiles:
        expected = errors_by_definition(opened, tmp_path / "facts", profile)
        (answer,) = opened.attribute([query(direction="both", top_k=20, profile=profile)])
        for rows_found, is_lowest in ((answer.results, False), (answer.opponents, True)):
            for row in rows_found:
                low, high = row.interval
                assert low <= row.score <= high
                error = expected[number_of(row)]
                interval = error.interval_of_result(row.score, row.rank, 40, is_lowest=is_lowest)
                assert (low, high) == pytest.approx(interval, rel=1e-3, abs=1e-4 * (high - low))


def test_a_filter_and_takedowns_leave_fewer_rows_that_a_result_may_be_the_first_of_by_chance(index_copy):
    opened = AttributionIndex.open(index_copy)

    def first(**changes: object) -> ResultRow:
        (answer,) = opened.attribute([query(top_k=1, **changes)])
        return answer.results[0]

    best = first()
    filtered = first(filter={"source": [best.metadata["source"]]})  # half of the forty
    assert filtered.id == best.id
    assert best.interval[0] < filtered.interval[0] < filtered.score
    assert filtered.interval[1] == pytest.approx(best.interval[1])
    for document_id in [f"doc-{number}" for number in range(40) if f"doc-{number}" != best.id][:20]:
        take_down_document(index_copy, document_id)
    assert first().interval == pytest.approx(filtered.interval)


def test_queries_of_a_batch_have_the_intervals_that_they_have_alone(opened):
    queries = [query(f"Person {k} works", f" for company {k % 3}.", top_k=5 * k + 1) for k in range(4)]
    for together, alone in zip(opened.attribute(queries), queries, strict=True):
        (expected,) = opened.attribute([alone])
        for row, other in zip(together.results, expected.results, strict=True):
            assert row.id == other.id
            assert row.interval == pytest.approx(other.interval, rel=1e-4)
            assert row.strength == other.strength


def test_results_say_how_strong_they_are_and_opponents_do_not(opened):
    (answer,) = opened.attribute([query(top_k=DOCUMENTS, direction="both")])
    strengths = [row.strength for row in answer.results]
    assert strengths[-1] == "none"
    assert set(strengths) <= {"strong", "weak", "none"}
    assert {row.strength for row in answer.opponents} == {None}
    assert None not in {row.interval for row in answer.opponents}


def test_with_the_notice_no_result_is_strong(opened):
    found = []
    for k in range(30):
        (answer,) = opened.attribute([query(f"Person {k % 7} likes", f" dish {k}.", top_k=20)])
        found.append(answer.notice)
        if answer.notice == NO_INFLUENCE_NOTICE:
            assert "strong" not in {row.strength for row in answer.results}
    assert NO_INFLUENCE_NOTICE in found


def test_an_exact_score_has_no_interval_and_keeps_its_strength(opened):
    (plain,) = opened.attribute([query(top_k=10)])
    (answer,) = opened.attribute([query(top_k=10, rescore=6)])
    strengths = {row.id: row.strength for row in plain.results}
    assert {row.exact for row in answer.results} == {True, False}
    for row in answer.results:
        assert (row.interval is None) == row.exact
        assert row.strength == strengths[row.id]


def test_without_a_measured_threshold_no_strength_is_known(sources, tmp_path):
    build_index(make_spec(sources, search=SearchSpec(measure=False)), tmp_path / "facts")
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query()])
    assert {row.strength for row in answer.results} == {None}
    assert None not in {row.interval for row in answer.results}


def test_under_another_profile_no_strength_is_known(index_copy, sample: Dataset):
    fit_profile(index_copy, "task", sample)
    (answer,) = AttributionIndex.open(index_copy).attribute([query(profile="task")])
    assert {row.strength for row in answer.results} == {None}


def test_rows_of_a_single_number_have_neither_interval_nor_strength(sources, tmp_path):
    documents = DatasetSpec(path=str(tiny.save_documents(tmp_path / "documents.jsonl", DOCUMENTS)))
    spec = make_spec(sources, dataset=documents, gradients=GradientSpec(projection_dim=1))
    build_index(spec, tmp_path / "facts")
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query()])
    assert {(row.interval, row.strength) for row in answer.results} == {(None, None)}


def test_gradients_that_were_computed_elsewhere_have_intervals_and_strengths(opened):
    text = query()
    tokens = tokenize(opened.model.tokenizer, [text.prompt], [text.completion])
    row, _ = collect_rows(opened.collector, tokens, 100)
    (found,) = opened.search(torch.from_numpy(row), opened.processor, top_k=5)
    (answer,) = opened.attribute([query(top_k=5)])
    assert [(row.id, row.strength) for row in found] == [(row.id, row.strength) for row in answer.results]
    (opponents,) = opened.search(torch.from_numpy(row), opened.processor, direction="opponents")
    assert {row.strength for row in opponents} == {None}
