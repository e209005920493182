"""An index opens only if it is intact, and answers with scores that are those of the definition."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import IndexCorrupt, IndexNotFound, InvalidInput, TooLong
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.manifest import read_manifest
from tests import tiny
from tests.core.helpers import make_spec, query, scores_by_definition


@pytest.mark.parametrize("preconditioner", [True, False])
@pytest.mark.parametrize(
    ("rows", "normalize"),
    [("float16", "row"), ("float16", "block"), ("float16", "none"), ("int8", "block"), ("sign", "block")],
)
@pytest.mark.parametrize("normalizer", ["adafactor", "kfac"])
def test_scores_are_those_of_the_definition(sources, tmp_path, normalizer, rows, normalize, preconditioner):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, normalizer=normalizer, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    whole_index = query(top_k=40)
    expected = scores_by_definition(path, spec, whole_index)
    (answer,) = AttributionIndex.open(path).attribute([whole_index])
    scores = torch.zeros(40, dtype=torch.float64)
    for row in answer.results:
        scores[int(row.id.removeprefix("doc-"))] = row.score
    torch.testing.assert_close(
        scores, expected, rtol=0, atol=(2e-2 if rows == "int8" else 2e-3) * expected.abs().max().item()
    )
    assert [row.score for row in answer.results] == sorted(
        (row.score for row in answer.results), reverse=True
    )


def test_a_batch_gives_each_query_what_it_gets_alone(index):
    opened = AttributionIndex.open(index)
    queries = [query(f"Person {k} lives in", " city 2 and works", direction="both") for k in range(9)]
    for alone_query, batched in zip(queries, opened.attribute(queries), strict=True):
        (alone,) = opened.attribute([alone_query])
        assert batched.query.loss == pytest.approx(alone.query.loss, rel=1e-5)
        for rows, others in ((batched.results, alone.results), (batched.opponents, alone.opponents)):
            assert [row.score for row in rows] == pytest.approx([row.score for row in others], abs=1e-5)


def test_a_document_taken_as_query_finds_itself(sources, tmp_path):
    rows = [{"text": text, "id": f"t{k}"} for k, text in enumerate(dict.fromkeys(tiny.texts(40)))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = make_spec(sources, dataset=DatasetSpec(path=str(path)), columns=ColumnsSpec(id="id"))
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    # a document's loss covers all tokens but the first, as does a completion after a prompt of one token
    queries = [query(row["text"][:1], row["text"][1:], top_k=1) for row in rows]
    for row, answer in zip(rows, opened.attribute(queries), strict=True):
        assert answer.results[0].id == row["id"]
        assert answer.results[0].score == pytest.approx(1, abs=2e-3)


def test_opponents_are_the_lowest_scores(index):
    opened = AttributionIndex.open(index)
    (everything,) = opened.attribute([query(top_k=40)])
    (both,) = opened.attribute([query(top_k=3, direction="both")])
    lowest = [row.score for row in everything.results[::-1][:3]]
    assert [row.score for row in both.opponents] == pytest.approx(lowest, abs=1e-6)
    (opponents,) = opened.attribute([query(top_k=3, direction="opponents")])
    assert opponents.results is None
    assert [row.id for row in opponents.opponents] == [row.id for row in both.opponents]


def test_results_have_the_parts_that_the_query_includes(index):
    opened = AttributionIndex.open(index)
    (full,) = opened.attribute([query(top_k=1)])
    row = full.results[0]
    number = int(row.id.removeprefix("doc-"))
    assert row.prompt == tiny.texts(40)[number]
    assert row.metadata == {"source": "wiki" if number % 2 else "web", "number": number}
    assert row.loss > 0
    (bare,) = opened.attribute([query(top_k=1, include=[])])
    assert (bare.results[0].prompt, bare.results[0].metadata) == (None, None)


def test_a_bad_query_does_not_affect_the_others_of_its_batch(index):
    good, long, empty = query(), query(prompt="too long " * 90), query(prompt="", completion="a")
    answers = AttributionIndex.open(index).attribute([long, good, empty])
    assert isinstance(answers[0], TooLong)
    assert "64 allowed" in str(answers[0])
    assert answers[1].results
    assert isinstance(answers[2], InvalidInput)


def test_a_document_without_labelled_tokens_scores_zero_and_is_numbered(sources, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "a b c", "b c d")))
    spec = make_spec(sources, dataset=DatasetSpec(path=str(path)), columns=ColumnsSpec())
    build_index(spec, tmp_path / "facts")
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query()])
    assert {row.id for row in answer.results} == {"0", "1", "2"}
    assert [row.score for row in answer.results if row.id == "0"] == [0]


def test_only_completions_have_a_gradient_where_the_index_has_a_completion_column(sources, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"q": f"city {k} is", "a": f" number {k * 7}"} for k in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    columns = ColumnsSpec(prompt="q", completion="a")
    spec = make_spec(sources, dataset=DatasetSpec(path=str(path)), columns=columns)
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    for k, answer in enumerate(opened.attribute([query(row["q"], row["a"], top_k=1) for row in pairs])):
        assert answer.results[0].id == str(k)
        assert answer.results[0].completion == pairs[k]["a"]
        assert answer.results[0].score == pytest.approx(1, abs=2e-3)
        assert answer.results[0].loss == pytest.approx(answer.query.loss, rel=1e-4)


@pytest.mark.parametrize("part", ["search/float16/00001.faiss", "statistics/normalizers.safetensors"])
def test_an_altered_file_is_refused_before_it_is_read(spec, tmp_path, part):
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    content = bytearray((path / part).read_bytes())
    content[len(content) // 2] ^= 1
    (path / part).write_bytes(content)
    with pytest.raises(IndexCorrupt, match=part):
        AttributionIndex.open(path)


def test_a_truncated_shard_is_refused(spec, tmp_path):
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    rows = path / "shards" / "00001" / "gradients.bin"
    rows.write_bytes(rows.read_bytes()[:-2])
    with pytest.raises(IndexCorrupt, match="00001"):
        AttributionIndex.open(path)


def test_a_changed_model_is_refused(sources, tmp_path):
    tiny.save_model(tmp_path / "model")
    build_index(make_spec(sources, model=str(tmp_path / "model")), tmp_path / "facts")
    tiny.save_model(tmp_path / "model", seed=1)
    with pytest.raises(IndexCorrupt, match="model"):
        AttributionIndex.open(tmp_path / "facts")


def test_a_directory_without_an_index_is_refused(tmp_path):
    with pytest.raises(IndexNotFound, match="build one first"):
        AttributionIndex.open(tmp_path / "nothing")


def test_the_profile_holds_the_second_moment_of_all_rows(index):
    profile = load_file(index / "profiles" / "default" / "preconditioner.safetensors")
    manifest = read_manifest(index)
    modules = len(manifest.modules)
    rows = torch.cat([shard.rows(slice(None)) for shard in AttributionIndex.open(index).shards])
    expected = torch.einsum("nmi,nmj->mij", rows, rows) / manifest.rows
    assert profile["second_moment"].shape == (modules, 16, 16)
    torch.testing.assert_close(
        profile["second_moment"], expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item()
    )
