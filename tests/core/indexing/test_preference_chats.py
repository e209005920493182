"""Preference pairs that are chats, in the forms of trainers of DPO."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bergson_core import AttributionIndex, build_index
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import record_from_stored
from bergson_core.storage.document_lookup import find_document
from bergson_core.tokens.document_tokens import tokenize_records
from bergson_core.tokens.tokenization import Tokens
from tests.core.helpers import CHAT_TEMPLATE, write_rows

COLUMNS = {"chosen": "chosen", "rejected": "rejected", "id": "id"}


def question(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Who?"},
        {"role": "user", "content": f"p{number}"},
    ]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


EXPLICIT = [
    {
        "id": f"c-{k}",
        "prompt": question(k % 5),
        "chosen": reply(f"city {k % 3}"),
        "rejected": reply(f"city {k % 3} or {k % 4}"),
    }
    for k in range(20)
]
IMPLICIT = [
    {
        "id": values["id"],
        "chosen": values["prompt"] + values["chosen"],
        "rejected": values["prompt"] + values["rejected"],
    }
    for values in EXPLICIT
]


@pytest.fixture(scope="module")
def chat_model(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = shutil.copytree(sources / "model", tmp_path_factory.mktemp("chat") / "model")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


def build(model: Path, directory: Path, rows: list[dict[str, Any]], name: str, **columns: Any) -> Path:
    (directory / name).mkdir()
    spec = {
        "model": str(model),
        "dataset": write_rows(directory / name, *rows),
        "columns": COLUMNS | columns,
        "gradients": {"projection_dim": 4},
    }
    build_index(BuildSpec.model_validate(spec), directory / name / "index")
    return directory / name / "index"


def tokens_of(index: Path, document_id: str) -> Tokens:
    opened = AttributionIndex.open(index)
    record = record_from_stored(find_document(index, document_id), opened.manifest.spec.columns)
    assert opened.model.tokenizer is not None
    (tokens,) = tokenize_records(opened.model.tokenizer, [record], chat_date=opened.manifest.chat_date)
    return tokens


def test_both_forms_give_the_same_rows_and_texts(chat_model: Path, tmp_path: Path) -> None:
    explicit = build(chat_model, tmp_path, EXPLICIT, "explicit", prompt="prompt")
    implicit = build(chat_model, tmp_path, IMPLICIT, "implicit")
    fields = ("prompt", "completion", "rejected", "n_tokens", "loss", "is_chat")
    for number in range(20):
        documents = [find_document(index, f"c-{number}") for index in (explicit, implicit)]
        assert [documents[0][name] for name in fields] == [documents[1][name] for name in fields]
    assert documents[0]["is_chat"] and documents[0]["rejected"].startswith('[{"role": "assistant"')
    asked = {
        "messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In city 1."}]
    }
    answers = [AttributionIndex.open(index).query(**asked, top_k=20) for index in (explicit, implicit)]
    scores = [{row.id: row.score for row in answer.results or ()} for answer in answers]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert len(scores[0]) == 20


def test_what_the_assistant_says_before_is_labelled_alike_in_both(chat_model: Path, tmp_path: Path) -> None:
    tokens = tokens_of(build(chat_model, tmp_path, EXPLICIT, "chats", prompt="prompt"), "c-3")
    chosen, rejected = tokens.sequences
    decode = load_model(str(chat_model)).tokenizer.decode
    said = [decode(sequence.ids[sequence.labels]) for sequence in (chosen, rejected)]
    assert said == ["Who?city 0", "Who?city 0 or 3"]


def test_results_split_by_token_and_verify(chat_model: Path, tmp_path: Path) -> None:
    index = AttributionIndex.open(build(chat_model, tmp_path, IMPLICIT, "implicit"))
    answer = index.query(
        "Where?",
        " city 1",
        top_k=2,
        include=["text", "tokens"],
        verify={"top": 1, "controls": 1},
    )
    for row in answer.results or ():
        tokens = row.tokens or []
        assert {token.sequence for token in tokens} == {"chosen", "rejected"}
        assert sum(token.influence for token in tokens) == pytest.approx(row.score, abs=1e-4)
        assert all(token.start is None for token in tokens)


def test_words_are_those_of_the_messages(chat_model: Path, tmp_path: Path) -> None:
    index = AttributionIndex.open(build(chat_model, tmp_path, IMPLICIT, "words"))
    answer = index.query("Where", " city 1", top_k=20, order="words", include=["text"])
    by_id = {row.id: row.words for row in answer.results or ()}
    assert any(words is not None and words.states for words in by_id.values())
    assert all(by_id[f"c-{k}"].states == (k % 3 == 1) for k in range(20) if by_id.get(f"c-{k}"))


def test_texts_and_chats_may_stand_in_one_dataset(chat_model: Path, tmp_path: Path) -> None:
    texts = [{"id": "t-1", "chosen": "A city is large.", "rejected": "A city is small."}]
    index = build(chat_model, tmp_path, [*IMPLICIT[:3], *texts], "mixed")
    assert not find_document(index, "t-1")["is_chat"]
    assert find_document(index, "c-1")["is_chat"]
    assert find_document(index, "t-1")["prompt"] == "A city is"
