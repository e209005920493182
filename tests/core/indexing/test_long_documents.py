"""Documents that are too long are an error that counts them, are cut to their beginning, or are cut into chunks."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from bergson_core import AttributionIndex, append_documents, build_index, compact_index, take_down_document
from bergson_core.errors import Cancelled, DocumentNotFound, IdsExist, InvalidInput, TooLong
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from bergson_core.schemas.results import Answer, Progress
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.storage.document_lookup import find_document, find_existing_ids
from bergson_core.storage.manifest import read_manifest
from bergson_core.tokens.tokenization import tokenize
from tests import tiny
from tests.core.helpers import file_hashes, make_spec, query, stop_after

LONG = " ".join(tiny.texts(14))
LONGER = " ".join(reversed(tiny.texts(30)))
SHORT = tiny.texts(6)
LIMIT = 24


def rows() -> list[dict]:
    texts = [SHORT[0], LONG, *SHORT[1:4], LONGER, *SHORT[4:]]
    return [{"id": f"doc-{k}", "text": text, "source": "wiki", "number": k} for k, text in enumerate(texts)]


def spec_of(sources: Path, documents: list[dict] | None = None, **changes: object) -> BuildSpec:
    settings = GradientSpec(projection_dim=4, max_tokens=LIMIT)
    source = {"dataset": None, "documents": documents or rows(), "gradients": settings}
    return make_spec(sources, **source | changes)


def token_ids(text: str) -> list[int]:
    return tiny.tokenizer(tiny.texts(20))(text)["input_ids"]


def documents_of(path: Path) -> list[dict]:
    index = AttributionIndex.open(path)
    return [row for shard in index.shards for row in shard.documents.to_pylist()]


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory) -> Path:
    """An index of chunks that overlap by four tokens, in several shards."""
    path = tmp_path_factory.mktemp("chunks") / "facts"
    build_index(spec_of(sources, long_documents="chunk", chunk_overlap=4), path, shard_rows=7)
    return path


@pytest.fixture
def chunks(built, tmp_path) -> Path:
    """A copy of it that may be changed."""
    return shutil.copytree(built, tmp_path / "facts")


def test_the_error_counts_all_long_documents_and_names_the_choices(sources, tmp_path):
    documents = [{"text": LONG} for _ in range(8)] + [{"text": SHORT[0]}] * 1200 + [{"text": LONGER}]
    spec = spec_of(sources, documents, columns=ColumnsSpec())
    with pytest.raises(TooLong) as caught:
        build_index(spec, tmp_path / "facts")
    message = str(caught.value)
    assert "9 of 1209 documents" in message
    tokens = len(token_ids(LONG))
    assert f"document '0' (row 0) has {tokens}" in message
    assert "and 4 more" in message
    for choice in ("truncate", "chunk", "error", "skip", "long_documents", str(LIMIT)):
        assert choice in message
    assert not (tmp_path / "facts").exists()


def test_truncated_documents_are_their_beginnings_and_say_so(sources, tmp_path):
    progress: list[Progress] = []
    manifest = build_index(
        spec_of(sources, long_documents="truncate"), tmp_path / "facts", report=progress.append
    )
    assert (manifest.rows, manifest.numbered) == (len(rows()), len(rows()))
    assert (manifest.documents.truncated, manifest.documents.chunked, manifest.documents.left_out) == (
        2,
        0,
        0,
    )
    assert progress[-1].documents == manifest.documents
    opened = AttributionIndex.open(tmp_path / "facts")
    (answer,) = opened.attribute([query(top_k=20)])
    by_id = {row.id: row for row in answer.results}
    assert set(by_id) == {row["id"] for row in rows()}
    assert by_id["doc-0"].chunk is None
    for document_id, text in (("doc-1", LONG), ("doc-5", LONGER)):
        row = by_id[document_id]
        assert (row.chunk.document, row.chunk.start, row.chunk.count) == (document_id, 0, 1)
        assert text.startswith(row.prompt)
        assert len(row.prompt) == row.chunk.end < len(text)
        assert LIMIT - 3 <= len(token_ids(row.prompt)) <= LIMIT


def test_rows_are_those_of_the_same_texts_as_documents_of_their_own(sources, built, tmp_path):
    """A chunk is a document like any other: nothing about its row depends on where it comes from."""
    stored = documents_of(built)
    alone = [{"id": row["id"], "text": row["prompt"], "source": "", "number": 0} for row in stored]
    build_index(spec_of(sources, alone), tmp_path / "facts", shard_rows=7)
    for shard, other in zip(
        AttributionIndex.open(built).shards, AttributionIndex.open(tmp_path / "facts").shards, strict=True
    ):
        assert shard.rows(slice(None)).equal(other.rows(slice(None)))


def test_chunks_have_ids_offsets_and_metadata_of_their_document(built):
    manifest, stored = read_manifest(built), documents_of(built)
    assert (manifest.documents.chunked, manifest.numbered) == (2, len(rows()))
    assert manifest.rows == len(stored) > len(rows())
    for document_id, text in (("doc-1", LONG), ("doc-5", LONGER)):
        parts = [row for row in stored if row.get("document") == document_id]
        assert [row["id"] for row in parts] == [f"{document_id}#{k + 1}" for k in range(len(parts))]
        assert {row["count"] for row in parts} == {len(parts)}
        assert {json.loads(row["metadata"])["number"] for row in parts} == {int(document_id[-1])}
        assert (parts[0]["start"], parts[-1]["end"]) == (0, len(text))
        for row, following in pairwise(parts):
            assert row["prompt"] == text[row["start"] : row["end"]]
            assert row["start"] < following["start"] < row["end"]


def test_results_name_the_chunk_and_may_be_grouped_by_document(built):
    opened = AttributionIndex.open(built)
    chunk_query = query(LONG[:40], LONG[40:80], top_k=50, direction="both")
    by_chunk, grouped = opened.attribute(
        [chunk_query, chunk_query.model_copy(update={"group_by": "document"})]
    )
    assert isinstance(by_chunk, Answer)
    assert isinstance(grouped, Answer)
    for rows_by_chunk, rows_by_document in (
        (by_chunk.results, grouped.results),
        (by_chunk.opponents, grouped.opponents),
    ):
        best = {}
        for row in rows_by_chunk:
            best.setdefault(row.chunk.document if row.chunk else row.id, row)
        assert [row.id for row in rows_by_document] == [row.id for row in best.values()]
        assert [row.score for row in rows_by_document] == [row.score for row in best.values()]
        assert [row.rank for row in rows_by_document] == list(range(1, len(rows()) + 1))
    (first,) = [row for row in grouped.results if row.chunk and row.chunk.document == "doc-5"]
    assert first.chunk.count == sum(row.get("document") == "doc-5" for row in documents_of(built))


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_grouped_results_are_as_many_documents_as_asked_for(sources, tmp_path, top_k):
    """However many chunks of one document come first."""
    texts = [*SHORT[:7], "Person 3 lives in city 1. " * 400]
    documents = [
        {"id": f"d{k}", "text": text, "source": "", "number": k % 2} for k, text in enumerate(texts)
    ] + [{"id": "d9", "text": "the last", "source": "", "number": 1}]
    build_index(spec_of(sources, documents, long_documents="chunk"), tmp_path / "facts")
    grouped = query(top_k=top_k, group_by="document")
    filtered = grouped.model_copy(update={"filter": query(filter={"number": 1}).filter})
    answer, within = AttributionIndex.open(tmp_path / "facts").attribute([grouped, filtered])
    assert len(answer.results) == min(top_k, len(documents))
    assert len(within.results) == min(top_k, sum(row["number"] for row in documents))


def test_tokens_and_verification_work_on_chunks(built):
    opened = AttributionIndex.open(built)
    question = query(
        LONG[:40], LONG[40:80], top_k=3, include=("text", "tokens"), verify={"top": 1, "controls": 2}
    )
    (answer,) = opened.attribute([question])
    for row in answer.results:
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, abs=1e-3)
    shown = {row.chunk.document for row in answer.results if row.chunk}
    assert not {control.id.partition("#")[0] for control in answer.verification.controls} & shown


def test_a_document_is_read_as_a_whole_or_by_its_chunk(built):
    whole, chunk = find_document(built, "doc-5"), find_document(built, "doc-5#2")
    assert whole["prompt"] == LONGER
    assert whole["chunks"][:2] == ["doc-5#1", "doc-5#2"]
    assert (whole["id"], whole["chunk"], whole["metadata"]["number"]) == ("doc-5", None, 5)
    parts = [find_document(built, part) for part in whole["chunks"]]
    assert whole["loss"] == pytest.approx(sum(part["loss"] for part in parts))
    assert whole["n_tokens"] == sum(part["n_tokens"] for part in parts)
    assert chunk["prompt"] == LONGER[chunk["chunk"].start : chunk["chunk"].end]
    assert "chunks" not in find_document(built, "doc-0")
    with pytest.raises(DocumentNotFound):
        find_document(built, "doc-5#99")


def test_a_takedown_of_a_document_takes_down_all_of_its_chunks(chunks):
    opened = AttributionIndex.open(chunks)
    question = query(LONGER[:40], LONGER[40:80], top_k=100)
    (before,) = opened.attribute([question])
    take_down_document(chunks, "doc-5")
    (after,) = opened.attribute([question])
    assert {row.id for row in before.results} - {row.id for row in after.results} == {
        row["id"] for row in documents_of(chunks) if row.get("document") == "doc-5"
    }
    for gone in ("doc-5", "doc-5#1"):
        with pytest.raises(DocumentNotFound):
            find_document(chunks, gone)
        with pytest.raises(DocumentNotFound):
            take_down_document(chunks, gone)
    compacted = compact_index(chunks)
    assert compacted.rows == len(after.results)
    (again,) = AttributionIndex.open(chunks).attribute([question])
    assert [row.chunk for row in again.results] == [row.chunk for row in after.results]
    append_documents(chunks, AppendSpec(documents=[rows()[5]]))
    assert find_document(chunks, "doc-5")["prompt"] == LONGER


def test_a_takedown_of_a_chunk_hides_that_chunk_alone(chunks):
    take_down_document(chunks, "doc-5#2")
    whole = find_document(chunks, "doc-5")
    assert "doc-5#2" not in whole["chunks"]
    assert find_document(chunks, "doc-5#1")
    take_down_document(chunks, "doc-5")
    with pytest.raises(DocumentNotFound):
        find_document(chunks, "doc-5#1")


def test_an_answer_on_its_way_loses_the_chunks_of_a_document(built):
    question = query(LONG[:40], LONG[40:80], top_k=50, direction="both", verify={"top": 1, "controls": 5})
    (answer,) = AttributionIndex.open(built).attribute([question])
    left = answer.without({"doc-5"})
    for part in (left.results, left.opponents, left.verification.controls):
        assert not any(row.id.startswith("doc-5") for row in part)
    assert [row.rank for row in left.results] == list(range(1, len(left.results) + 1))


@pytest.mark.parametrize("new_id", ["doc-5", "doc-5#2", "doc-0"])
def test_an_append_of_an_id_that_exists_as_document_or_chunk_is_refused(chunks, new_id):
    documents = [rows()[0] | {"id": "new"}, rows()[0] | {"id": new_id}]
    with pytest.raises(IdsExist) as caught:
        append_documents(chunks, AppendSpec(documents=documents))
    assert caught.value.ids == (new_id,)
    assert find_existing_ids(chunks, ["x", new_id]) == [new_id]


def test_an_append_whose_chunks_would_get_ids_that_exist_is_refused(chunks):
    append_documents(chunks, AppendSpec(documents=[rows()[0] | {"id": "new#2"}]))
    with pytest.raises(IdsExist, match="new#2"):
        append_documents(chunks, AppendSpec(documents=[rows()[1] | {"id": "new"}]))
    with pytest.raises(IdsExist, match="'doc-1'"):
        append_documents(chunks, AppendSpec(documents=[rows()[1]]))


def test_chunks_may_not_get_the_ids_of_other_documents(sources, tmp_path):
    documents = [*rows(), rows()[0] | {"id": "doc-5#3"}]
    with pytest.raises(InvalidInput, match="'doc-5#3'"):
        build_index(spec_of(sources, documents, long_documents="chunk"), tmp_path / "facts")


def test_an_append_does_with_long_documents_as_the_build_did_or_as_it_is_told(sources, chunks, tmp_path):
    new = [
        {"id": f"new-{k}", "text": text, "source": "", "number": k} for k, text in enumerate([LONG, SHORT[0]])
    ]
    again = AppendSpec(documents=new)
    manifest = append_documents(chunks, again, key="k")
    assert manifest.documents.chunked == 3
    assert (manifest.numbered, append_documents(chunks, again, key="k")) == (len(rows()) + 2, manifest)
    truncated = [row | {"id": f"cut-{row['number']}"} for row in new]
    manifest = append_documents(chunks, AppendSpec(documents=truncated, long_documents="truncate"))
    assert (manifest.documents.chunked, manifest.documents.truncated) == (3, 1)
    assert find_document(chunks, "cut-0")["chunk"].count == 1
    with pytest.raises(TooLong, match="long_documents"):
        append_documents(chunks, AppendSpec(documents=[new[0] | {"id": "z"}], long_documents="error"))
    build_index(spec_of(sources, rows()[:1]), tmp_path / "plain")
    with pytest.raises(TooLong, match="1 of 1"):
        append_documents(tmp_path / "plain", AppendSpec(documents=new[:1]))
    manifest = append_documents(tmp_path / "plain", AppendSpec(documents=new[:1], long_documents="chunk"))
    assert manifest.documents.chunked == 1
    assert find_document(tmp_path / "plain", "new-0")["prompt"] == LONG
    take_down_document(tmp_path / "plain", "doc-0")
    assert compact_index(tmp_path / "plain").rows == manifest.rows - 1


def test_documents_without_ids_are_numbered_by_the_rows_of_their_dataset(sources, tmp_path):
    texts = [SHORT[0], LONG, SHORT[1]]
    spec = spec_of(sources, [{"text": text} for text in texts], columns=ColumnsSpec(), long_documents="chunk")
    build_index(spec, tmp_path / "facts")
    ids = [row["id"] for row in documents_of(tmp_path / "facts")]
    assert [ids[0], ids[1], ids[-1]] == ["0", "1#1", "2"]
    append_documents(tmp_path / "facts", AppendSpec(documents=[{"text": text} for text in texts]))
    ids = [row["id"] for row in documents_of(tmp_path / "facts")]
    assert "3" in ids
    assert "4#1" in ids
    assert ids[-1] == "5"


@pytest.mark.parametrize("long_documents", ["truncate", "chunk"])
def test_a_build_that_is_stopped_goes_on_with_the_same_bytes(sources, tmp_path, long_documents):
    spec = spec_of(sources, long_documents=long_documents)
    whole = build_index(spec, tmp_path / "whole", shard_rows=4)
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "facts", shard_rows=4, report=stop_after(5))
    assert build_index(spec, tmp_path / "facts", shard_rows=4).rows == whole.rows
    assert file_hashes(tmp_path / "facts") == file_hashes(tmp_path / "whole")


WRONG = {
    "a completion": ({"columns": {"completion": "answer"}, "long_documents": "chunk"}, "columns.completion"),
    "chats": ({"columns": {"messages": "chat"}, "long_documents": "truncate"}, "columns.messages"),
    "an overlap without chunks": ({"chunk_overlap": 3}, "chunk_overlap"),
    "an overlap of truncated documents": (
        {"chunk_overlap": 3, "long_documents": "truncate"},
        "chunk_overlap",
    ),
    "too much overlap": ({"chunk_overlap": LIMIT // 2 + 1, "long_documents": "chunk"}, "half"),
    "another word": ({"long_documents": "split"}, "long_documents"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_together_is_refused(sources, changes, message):
    with pytest.raises(InvalidInput, match=message):
        spec_of(sources, **changes)


def test_an_append_to_an_index_of_completions_cannot_cut(sources, tmp_path):
    documents = [{"text": "Person 3", "answer": " lives"}]
    spec = spec_of(sources, documents, columns=ColumnsSpec(completion="answer"))
    build_index(spec, tmp_path / "facts")
    with pytest.raises(InvalidInput, match=r"columns\.completion"):
        append_documents(tmp_path / "facts", AppendSpec(documents=documents, long_documents="chunk"))


def test_too_much_overlap_for_the_context_of_the_model_is_refused(sources, tmp_path):
    spec = spec_of(sources, gradients=GradientSpec(), long_documents="chunk", chunk_overlap=33)
    with pytest.raises(InvalidInput, match="half of the 64"):
        build_index(spec, tmp_path / "facts")


def test_stored_texts_are_what_was_scored(built):
    opened = AttributionIndex.open(built)
    for row in documents_of(built):
        (tokens,) = tokenize(opened.model.tokenizer, [row["prompt"]], None)
        assert tokens.n_labelled == row["n_tokens"]
        assert len(tokens.ids) <= LIMIT


def test_chunks_that_are_all_alike_make_an_index_that_opens(sources, tmp_path):
    documents = [{"id": "d", "text": "Person 3 lives in city 1. " * 400, "source": "", "number": 0}]
    manifest = build_index(spec_of(sources, documents, long_documents="chunk"), tmp_path / "facts")
    assert manifest.rows > 100
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query(group_by="document")])
    assert [row.chunk.document for row in answer.results] == ["d"]
