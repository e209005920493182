"""A document that cannot be indexed is named by id and row, or is left out and reported."""

import json
import math
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from bergson_core import AttributionIndex, append_documents, build_index
from bergson_core.errors import Cancelled, DocumentNotFound, InvalidInput, TooLong
from bergson_core.indexing.estimation.estimate import estimate_build
from bergson_core.indexing.estimation.trial_build import run_trial_build
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from bergson_core.schemas.documents import MAX_LISTED, DocumentReport
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.document_lookup import find_document
from bergson_core.storage.manifest import read_manifest
from tests import tiny
from tests.core.helpers import CHAT, CHAT_TEMPLATE, file_hashes, make_spec, stop_after

GOOD = tiny.texts(12)
CHATS = ColumnsSpec(messages="messages", id="id")
TEMPLATE = "{% if messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A directory with a model whose tokenizer has a token too many and a template that wants a user first."""
    directory = tiny.save_model(tmp_path_factory.mktemp("models") / "model")
    tokenizer = tiny.tokenizer(tiny.texts(20))
    tokenizer.add_tokens([f"<extra {k}>" for k in range(40)])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def text_rows(bad: object, at: int = 7) -> list[dict]:
    return [{"id": f"doc-{k}", "text": bad if k == at else text} for k, text in enumerate(GOOD)]


def spec_of(model: Path, tmp_path: Path, rows: list[dict], **changes: object) -> BuildSpec:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(model),
        "dataset": DatasetSpec(path=str(path)),
        "columns": ColumnsSpec(id="id"),
        "gradients": GradientSpec(projection_dim=4),
    }
    return BuildSpec.model_validate(settings | changes)


BAD_TEXTS = {
    "no text": (None, InvalidInput, "is null or missing, expected text"),
    "a token without an embedding": ("a <extra 39> b", InvalidInput, "'<extra 39>'"),
    "a text that is too long": ("a long text " * 90, TooLong, "64 allowed"),
}


@pytest.mark.parametrize(("bad", "error", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
@pytest.mark.parametrize("at", [0, 7, 11])
def test_the_error_names_the_document_by_id_and_row(model, tmp_path, bad, error, message, at):
    with pytest.raises(error) as caught:
        build_index(spec_of(model, tmp_path, text_rows(bad, at)), tmp_path / "facts")
    assert f"document 'doc-{at}' (row {at})" in str(caught.value)
    assert message in str(caught.value)
    assert not (tmp_path / "facts").exists()


@pytest.mark.parametrize(("bad", "error", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_with_skip_the_document_is_left_out_and_reported(model, tmp_path, bad, error, message):
    progress: list[Progress] = []
    spec = spec_of(model, tmp_path, text_rows(bad), on_bad_document="skip")
    manifest = build_index(spec, tmp_path / "facts", report=progress.append)
    assert (manifest.rows, manifest.numbered, manifest.skipped) == (11, 12, 0)
    assert manifest.documents.left_out == 1
    (left_out,) = manifest.documents.first_left_out
    assert (left_out.id, left_out.row) == ("doc-7", 7)
    assert message in left_out.reason
    reports = {step.stage: step.documents for step in progress if step.documents is not None}
    assert reports["read"] == reports["done"] == read_manifest(tmp_path / "facts").documents
    with pytest.raises(DocumentNotFound):
        find_document(tmp_path / "facts", "doc-7")
    assert find_document(tmp_path / "facts", "doc-8")["prompt"] == GOOD[8]


def test_the_rows_of_the_others_are_those_without_the_bad_documents(model, tmp_path):
    rows = text_rows(None)
    build_index(spec_of(model, tmp_path, rows, on_bad_document="skip"), tmp_path / "facts", shard_rows=4)
    build_index(
        spec_of(model, tmp_path, [row for row in rows if row["text"]]), tmp_path / "others", shard_rows=4
    )
    for shard, other in zip(
        *(AttributionIndex.open(tmp_path / name).shards for name in ("facts", "others")), strict=True
    ):
        assert shard.rows(slice(None)).equal(other.rows(slice(None)))
        assert shard.documents["id"].to_pylist() == other.documents["id"].to_pylist()


BAD_CHATS = {
    "the template refuses it": ([{"role": "system", "content": "x"}], "no user"),
    "no messages": ([], "not a chat"),
    "no list": (None, "not a chat"),
}


@pytest.mark.parametrize(("chat", "message"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_bad_chat_among_good_ones_is_found_and_left_out(model, tmp_path, chat, message):
    rows = [{"id": f"c{k}", "messages": chat if k == 5 else CHAT} for k in range(9)]
    with pytest.raises(InvalidInput, match=rf"document 'c5' \(row 5\).*{message}"):
        build_index(spec_of(model, tmp_path, rows, columns=CHATS), tmp_path / "facts")
    spec = spec_of(model, tmp_path, rows, columns=CHATS, on_bad_document="skip")
    manifest = build_index(spec, tmp_path / "facts")
    assert manifest.rows == 8
    assert message in manifest.documents.first_left_out[0].reason


def test_a_weight_that_is_no_number_is_a_bad_document(model, tmp_path):
    rows = [row | {"reward": None if k == 2 else 1.5} for k, row in enumerate(text_rows("fine"))]
    columns = ColumnsSpec(id="id", weight="reward")
    with pytest.raises(InvalidInput, match=r"document 'doc-2' \(row 2\).*finite number"):
        build_index(spec_of(model, tmp_path, rows, columns=columns), tmp_path / "facts")
    spec = spec_of(model, tmp_path, rows, columns=columns, on_bad_document="skip")
    assert build_index(spec, tmp_path / "facts").rows == 11


def test_a_tokenizer_that_gives_up_on_a_text_makes_it_a_bad_document(model, tmp_path, monkeypatch):
    from bergson_core.tokens import tokenization

    encode = tokenization.encode

    def give_up(tokenizer, text, **options):
        if "poison" in str(text):
            raise InvalidInput("the tokenizer gives up on a text")
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(tokenization, "encode", give_up)
    spec = spec_of(model, tmp_path, text_rows("poison"), on_bad_document="skip")
    assert build_index(spec, tmp_path / "facts").documents.first_left_out[0].id == "doc-7"


def test_many_bad_documents_are_counted_and_some_are_listed(model, tmp_path):
    rows = [{"id": f"doc-{k}", "text": GOOD[k % 12] if k % 2 else None} for k in range(2400)]
    spec = spec_of(model, tmp_path, rows, on_bad_document="skip")
    manifest = build_index(spec, tmp_path / "facts")
    assert (manifest.rows, manifest.documents.left_out) == (1200, 1200)
    assert len(manifest.documents.first_left_out) == MAX_LISTED
    assert [one.row for one in manifest.documents.first_left_out[:3]] == [0, 2, 4]


def test_nothing_but_bad_documents_is_an_error(model, tmp_path):
    rows = [{"id": f"doc-{k}", "text": "x " * 99} for k in range(3)]
    with pytest.raises(InvalidInput, match=r"no document is left.*left out: 3.*'doc-0' \(row 0\)"):
        build_index(spec_of(model, tmp_path, rows, on_bad_document="skip"), tmp_path / "facts")


def test_a_document_of_one_token_or_of_none_is_no_bad_document(model, tmp_path):
    rows = [*text_rows("a"), {"id": "empty", "text": ""}]
    manifest = build_index(spec_of(model, tmp_path, rows, on_bad_document="skip"), tmp_path / "facts")
    assert (manifest.rows, manifest.documents) == (13, DocumentReport())


def test_an_append_leaves_out_too_and_adds_to_the_report(model, tmp_path):
    spec = spec_of(model, tmp_path, text_rows(None), on_bad_document="skip", columns=ColumnsSpec())
    build_index(spec, tmp_path / "facts")
    progress: list[Progress] = []
    new = [{"text": "fine"}, {"text": "x " * 99}, {"text": "fine too"}]
    manifest = append_documents(
        tmp_path / "facts", AppendSpec(documents=new), key="k", report=progress.append
    )
    assert (manifest.rows, manifest.numbered, manifest.documents.left_out) == (13, 15, 2)
    assert progress[-1].documents.left_out == 1
    assert [(one.id, one.row) for one in manifest.documents.first_left_out] == [("7", 7), ("13", 1)]
    assert find_document(tmp_path / "facts", "14")["prompt"] == "fine too"
    assert append_documents(tmp_path / "facts", AppendSpec(documents=new), key="k") == manifest
    with pytest.raises(TooLong, match=r"document '16' \(row 1\)"):
        append_documents(tmp_path / "facts", AppendSpec(documents=new, on_bad_document="error"), key="l")


def test_long_documents_are_cut_and_the_other_bad_ones_left_out(model, tmp_path):
    rows = [*text_rows(None), {"id": "long", "text": "a long text " * 90}]
    spec = spec_of(model, tmp_path, rows, on_bad_document="skip", long_documents="chunk")
    report = build_index(spec, tmp_path / "facts").documents
    assert (report.left_out, report.chunked) == (1, 1)
    assert len(report.sentences()) == 2


@pytest.mark.parametrize("long_documents", ["error", "chunk"])
def test_a_build_that_leaves_documents_out_goes_on_with_the_same_bytes(model, tmp_path, long_documents):
    rows = [*text_rows(None), {"id": "long", "text": "a long text " * 90}]
    spec = spec_of(model, tmp_path, rows, on_bad_document="skip", long_documents=long_documents)
    build_index(spec, tmp_path / "whole", shard_rows=4)
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "facts", shard_rows=4, report=stop_after(5))
    build_index(spec, tmp_path / "facts", shard_rows=4)
    assert file_hashes(tmp_path / "facts") == file_hashes(tmp_path / "whole")


@pytest.mark.parametrize("long_documents", ["truncate", "chunk"])
def test_an_estimate_counts_what_would_be_indexed(model, tmp_path, long_documents):
    rows = [*text_rows(None), {"id": "long", "text": "a long text " * 90}]
    spec = spec_of(model, tmp_path, rows, on_bad_document="skip", long_documents=long_documents)
    estimate = run_trial_build(spec, tmp_path / "trial", lambda progress: None, sample_size=60)
    assert estimate.documents == build_index(spec, tmp_path / "facts").rows


def test_fingerprints_of_the_first_version_stay(sources):
    """An index that 0.1.0 built is recognised by the same build."""
    spec = make_spec(sources)
    old = spec.model_dump(exclude={"long_documents", "chunk_overlap", "on_bad_document"})
    assert BuildSpec.model_validate(old).fingerprint() == spec.fingerprint()
    assert "long_documents" not in spec.model_dump_json(exclude_defaults=True)
    skipping = spec.model_copy(update={"on_bad_document": "skip"})
    assert skipping.fingerprint() != spec.fingerprint()


@pytest.mark.parametrize(
    "bad", ["\ud800", b"\xff", object(), 10**5000], ids=["surrogate", "bytes", "object", "huge"]
)
def test_a_python_value_that_json_cannot_hold_leaves_its_own_row_out(model, tmp_path, bad):
    rows = [row | {"unused": bad} for row in text_rows(bad)]
    spec = spec_of(model, tmp_path, text_rows("a"), dataset=None, documents=rows, on_bad_document="skip")
    manifest = build_index(spec, tmp_path / "facts")
    assert [(row.id, row.row) for row in manifest.documents.first_left_out] == [("doc-7", 7)]
    assert build_index(spec, tmp_path / "facts").rows == 11


def test_a_build_of_python_values_is_the_same_build_when_it_is_started_again(model, tmp_path):
    unused = {
        "day": date(2024, 5, 1),
        "price": Decimal("1.5"),
        "share": math.nan,
        "key": {1: 2},
        "count": np.int64(3),
    }
    rows = [row | unused for row in text_rows("a")]
    spec = spec_of(model, tmp_path, text_rows("a"), dataset=None, documents=rows)
    first = build_index(spec, tmp_path / "facts")
    assert build_index(spec, tmp_path / "facts").created_at == first.created_at


def test_an_estimate_refuses_what_the_build_refuses(model, tmp_path):
    spec = spec_of(model, tmp_path, text_rows("a"), dataset=None, documents=text_rows(b"a"))
    with pytest.raises(InvalidInput, match=r"'doc-7' .row 7.*is bytes"):
        estimate_build(spec)
