"""A query that is a chat is rendered and labelled as the chats of the index were, so that a chat finds itself."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from bergson_core import (
    Answer,
    AppendSpec,
    AttributionIndex,
    AttributionQuery,
    BuildSpec,
    ColumnsSpec,
    GradientSpec,
    VerifySpec,
    append_documents,
    build_index,
    score_corpus,
)
from bergson_core.attribution.queries import chat_queries
from bergson_core.attribution.queries.query_tokenizer import QueryTokenizer
from bergson_core.errors import InternalError, InvalidInput, TooLong
from bergson_core.indexing.build import load_tracked_model
from bergson_core.indexing.build_context import BuildContext
from bergson_core.storage.manifest import read_manifest
from bergson_core.tokens import chat_template
from tests import tiny
from tests.core.tokens import chat_templates as templates
from tests.core.tokens.template_runs import run_here

MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def chats(count: int = 24) -> list[list[dict[str, str]]]:
    """Returns different chats of one to three questions, some with a system's turn."""
    result = []
    for k in range(count):
        turns = [{"role": "system", "content": "Be brief."}] if k % 5 == 0 else []
        for n in range(1 + k % 3):
            turns += [
                {"role": "user", "content": f"Person {k} lives where?"},
                {"role": "assistant", "content": f"city {k * (n + 3) % 11}{'!' * n} of {k}"},
            ]
        result.append(turns)
    return result


CHATS = chats()


def save_chat_model(directory: Path, template: Any, adds_bos: bool = False) -> Path:
    """Saves a small model, whose tokenizer has a chat template, and returns the directory."""
    tokenizer = tiny.tokenizer([message["content"] for chat in CHATS for message in chat])
    special = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<think>"]
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": special})
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
        )
    tokenizer.chat_template = template
    network = tiny.llama(len(tokenizer))
    network.config.max_position_embeddings = 512
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def chat_spec(model: Path, documents: Any = CHATS, **changes: Any) -> BuildSpec:
    rows = tuple({"id": f"chat-{k}", "messages": chat, "n": k} for k, chat in enumerate(documents))
    columns = ColumnsSpec(id="id", messages="messages", metadata=("n",))
    return BuildSpec(
        model=str(model), documents=rows, columns=columns, gradients=GradientSpec(projection_dim=8), **changes
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("chats")
    build_index(
        chat_spec(save_chat_model(directory / "model", templates.DATED, adds_bos=True)), directory / "facts"
    )
    return directory / "facts"


@pytest.fixture(scope="module")
def opened(index) -> AttributionIndex:
    return AttributionIndex.open(index)


def first_results(index: AttributionIndex, documents: Any = CHATS) -> list[tuple[str, float]]:
    """Returns the id and the score of the best result of each chat as a query."""
    answers = index.attribute([AttributionQuery(messages=chat, top_k=1) for chat in documents])
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [
        (row.id, row.score)
        for answer in answers
        if isinstance(answer, Answer)
        for row in answer.results or []
    ]


@pytest.mark.parametrize(
    ("template", "adds_bos"),
    [
        (templates.CHATML, False),
        (templates.CHATML, True),
        ("{{ bos_token }}" + templates.CHATML, False),
        ("{{ bos_token }}" + templates.CHATML, True),
        (templates.QWEN_3, False),
        (templates.PHI_3, False),
        (templates.NO_GENERATION_PROMPT, True),
        (MARKED, True),
    ],
    ids=[
        *("no bos", "the tokenizer's bos", "the template's bos", "both write bos"),
        *("the last turn differs", "eos at the end", "no generation prompt", "marks"),
    ],
)
def test_every_chat_finds_itself_first(tmp_path, monkeypatch, template, adds_bos):
    monkeypatch.setattr(chat_template.sandbox, "run_sandboxed", run_here)
    build_index(chat_spec(save_chat_model(tmp_path / "model", template, adds_bos)), tmp_path / "facts")
    results = first_results(AttributionIndex.open(tmp_path / "facts"))
    assert [name for name, _ in results] == [f"chat-{k}" for k in range(len(CHATS))]
    np.testing.assert_allclose([score for _, score in results], 1, atol=1e-3)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_the_tokens_of_a_chat_are_those_of_the_document(tmp_path, monkeypatch, opened, loss):
    monkeypatch.setattr(chat_template.sandbox, "run_sandboxed", run_here)
    spec = opened.manifest.spec.model_copy(update={"gradients": GradientSpec(loss=loss)})
    from bergson_core.data.documents import load_documents
    from bergson_core.models.index_tokens import tokenize_documents

    documents = tokenize_documents(load_documents(chat_spec(tmp_path)).read(range(24)), spec, opened.model)
    tokenizer = QueryTokenizer(opened.model, loss)
    for document, chat in zip(documents, CHATS, strict=True):
        query = tokenizer.complete_and_tokenize(AttributionQuery(messages=chat))
        assert query.tokens.ids.tolist() == document.ids.tolist()
        assert query.tokens.labels.tolist() == document.labels.tolist()
        assert query.tokens.weight == document.weight


def test_the_answer_shows_the_rendered_text_before_and_in_the_last_turn(opened):
    chat = CHATS[5]
    answer = opened.query(messages=chat, top_k=3)
    text = opened.model.tokenizer.apply_chat_template(chat, tokenize=False)
    assert answer.query.prompt + answer.query.completion + "\n" == text
    assert answer.query.completion == chat[-1]["content"] + "<|im_end|>"
    assert not answer.query.generated
    assert answer.query.n_tokens == answer_tokens(opened, chat)
    assert answer.query.loss > 0


def answer_tokens(opened: AttributionIndex, chat: Any) -> int:
    (row,) = opened.query(messages=chat, top_k=1, include=("text",)).results or []
    assert opened.model.tokenizer is not None
    (tokens,) = chat_template.tokenize_chats(opened.model.tokenizer, [chat])
    assert row.prompt == json.dumps(chat)
    return tokens.n_labelled


def test_chats_and_prompts_are_answered_together_as_alone(opened):
    queries = [
        AttributionQuery(messages=CHATS[2], top_k=3),
        AttributionQuery(prompt="Person 3", completion=" city 1", top_k=3),
        AttributionQuery(messages=CHATS[4], top_k=3),
    ]
    together = opened.attribute(queries)
    for query, answer in zip(queries, together, strict=True):
        (alone,) = opened.attribute([query])
        assert [row.id for row in answer.results] == [row.id for row in alone.results]
        np.testing.assert_allclose(
            [row.score for row in answer.results], [row.score for row in alone.results], atol=1e-4
        )


def test_chats_of_a_batch_are_rendered_in_one_process(opened, monkeypatch):
    calls = []
    render = chat_template.sandbox.run_sandboxed
    monkeypatch.setattr(
        chat_template.sandbox, "run_sandboxed", lambda *args: calls.append(args) or render(*args)
    )
    first_results(opened, CHATS[:5])
    opened.attribute([AttributionQuery(prompt="Person 3", completion=" city 1")])
    assert len(calls) == 1


def test_a_chat_that_cannot_be_rendered_fails_alone(opened):
    refused = AttributionQuery(messages=[{"role": "user"}, *CHATS[0]])
    answers = opened.attribute(
        [AttributionQuery(messages=CHATS[0]), refused, AttributionQuery(messages=CHATS[1])]
    )
    assert [isinstance(answer, Answer) for answer in answers] == [True, False, True]
    assert isinstance(answers[1], InvalidInput)
    with pytest.raises(InvalidInput, match="the chat template refuses it"):
        opened.query(messages=refused.messages)


def test_a_chat_that_takes_too_long_fails_alone(opened, monkeypatch):
    render = chat_queries.render_chats

    def refuse_slow(tokenizer: PreTrainedTokenizerFast, rendered: list[Any], *options: Any) -> list[Any]:
        if any(chat[0]["content"] == "slow" for chat in rendered):
            raise InvalidInput("the chat template takes more than 10 s")
        return render(tokenizer, rendered, *options)

    monkeypatch.setattr(chat_queries, "render_chats", refuse_slow)
    slow = [{"role": "user", "content": "slow"}, *CHATS[0][1:]]
    answers = opened.attribute([AttributionQuery(messages=chat) for chat in (CHATS[0], slow)])
    assert [isinstance(answer, Answer) for answer in answers] == [True, False]


class PanicException(BaseException):
    """Named as what tokenizers raise where their Rust code panics."""


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), MemoryError(), OSError("no process"), PanicException()]
)
def test_an_unexpected_error_of_rendering_fails_its_own_chat_alone(opened, monkeypatch, error):
    render = chat_queries.render_chats

    def fail_on_poison(tokenizer: PreTrainedTokenizerFast, rendered: list[Any], *options: Any) -> list[Any]:
        if any(chat[0]["content"] == "poison" for chat in rendered):
            raise error
        return render(tokenizer, rendered, *options)

    monkeypatch.setattr(chat_queries, "render_chats", fail_on_poison)
    poison = AttributionQuery(messages=[{"role": "user", "content": "poison"}, *CHATS[1][1:]])
    plain = AttributionQuery(prompt="Person 3", completion=" city 1")
    answers = opened.attribute([AttributionQuery(messages=CHATS[0]), poison, plain, poison])
    expected = TooLong if isinstance(error, MemoryError) else InternalError
    assert [type(answer) for answer in answers] == [Answer, expected, Answer, expected]
    with pytest.raises(expected):
        opened.query(messages=poison.messages)


@pytest.mark.parametrize("depth", [20_000, 100_000])
def test_a_message_that_is_nested_too_deeply_is_refused(opened, depth):
    nested: Any = "deep"
    for _ in range(depth):
        nested = [nested]
    with pytest.raises(InvalidInput, match="nested too deeply"):
        opened.query(messages=[{**CHATS[0][0], "extra": nested}, *CHATS[0][1:]])


def test_a_chat_that_is_too_long_is_refused(opened):
    chat = [*CHATS[0][:-1], {"role": "assistant", "content": "city " * 600}]
    with pytest.raises(TooLong):
        opened.query(messages=chat)


def test_a_tokenizer_without_a_template_refuses_chats(index, tmp_path):
    build_index(
        BuildSpec(
            model=str(tiny.save_model(tmp_path / "model")),
            documents=tuple({"text": text} for text in tiny.texts(8)),
        ),
        tmp_path / "facts",
    )
    with pytest.raises(InvalidInput, match="no chat template"):
        AttributionIndex.open(tmp_path / "facts").query(messages=CHATS[0])


@pytest.mark.parametrize(
    ("span", "expected"),
    [((0, 4), "city"), ((5, 7), "9!"), ((0, 12), "city 9! of 7")],
    ids=["the beginning", "the middle", "all"],
)
def test_a_span_selects_characters_of_the_last_message(opened, span, expected):
    chat = [*CHATS[7][:-1], {"role": "assistant", "content": "city 9! of 7"}]
    query = AttributionQuery(messages=chat, span=span)
    tokens = opened.answerer.query_tokenizer.complete_and_tokenize(query).tokens
    labelled = opened.model.tokenizer.decode(tokens.ids[tokens.labels])
    assert labelled.strip() == expected
    assert opened.attribute([query])[0].query.n_tokens == tokens.n_labelled


def test_a_span_is_found_although_the_template_trims(tmp_path):
    template = templates.CHATML.replace("message['content']", "message['content'] | trim")
    build_index(chat_spec(save_chat_model(tmp_path / "model", template), CHATS[:8]), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    chat = [CHATS[1][0], {"role": "assistant", "content": "\n  city 9 of 7 "}]
    tokens = opened.answerer.query_tokenizer.complete_and_tokenize(
        AttributionQuery(messages=chat, span=(8, 9))
    ).tokens
    assert opened.model.tokenizer.decode(tokens.ids[tokens.labels]).strip() == "9"


def test_a_span_that_the_template_changes_is_refused(opened, monkeypatch):
    chat = chat_template.RenderedChat("<user>x<assistant>CITY", [(18, 22)])
    query = AttributionQuery(messages=[CHATS[0][1], {"role": "assistant", "content": "city"}], span=(0, 2))
    with pytest.raises(InvalidInput, match="leave span out"):
        chat_queries.tokenize_chat_query(opened.model, query, chat)


def test_results_of_a_chat_are_verified_and_split(opened):
    answer = opened.query(
        messages=CHATS[3],
        top_k=2,
        include=("text", "tokens", "modules"),
        verify=VerifySpec(top=1, controls=2),
    )
    (first, *_) = answer.results
    assert first.id == "chat-3"
    assert sum(token.influence for token in first.tokens) == pytest.approx(first.score, abs=1e-3)
    assert first.verified.log_probability == pytest.approx(first.verified.own_log_probability, rel=1e-3)


def test_a_corpus_is_scored_with_chats_as_queries(opened):
    queries = [AttributionQuery(messages=chat) for chat in CHATS[:3]]
    scores = np.array(score_corpus(opened, queries, aggregate="each").read_all()["scores"].to_pylist())
    assert scores.argmax(0).tolist() == [0, 1, 2]
    with pytest.raises(InvalidInput, match="query 1 has no messages"):
        score_corpus(opened, [*queries[:1], AttributionQuery(prompt="a", completion="b")])


# The date that a template asks for


def test_the_date_of_the_build_is_in_the_manifest(index):
    today = datetime.now(UTC).date()
    assert (today - read_manifest(index).chat_date).days in (0, 1)


def test_appends_and_queries_are_given_the_date_of_the_build(tmp_path, monkeypatch):
    root = tmp_path / "facts"
    spec = chat_spec(save_chat_model(tmp_path / "model", templates.DATED), CHATS[:8])
    dated = date(2020, 2, 29)
    monkeypatch.setattr("bergson_core.indexing.build.write_build_stamp", lambda *_: dated)
    build_index(spec, root)
    assert read_manifest(root).chat_date == dated
    append_documents(root, AppendSpec(documents=[{"id": "again", "messages": CHATS[3], "n": 0}]))
    assert read_manifest(root).chat_date == dated
    answer = AttributionIndex.open(root).query(messages=CHATS[3], top_k=2)
    assert "Today Date: 29 Feb 2020" in answer.query.prompt
    assert {row.id for row in answer.results} == {"chat-3", "again"}
    np.testing.assert_allclose([row.score for row in answer.results], 1, atol=1e-3)


def test_a_build_that_is_resumed_keeps_the_date_of_its_first_run(tmp_path):
    from bergson_core.indexing.output_directory import write_build_stamp
    from bergson_core.storage.layout import BUILD_STAMP_FILE

    spec = chat_spec(save_chat_model(tmp_path / "model", templates.DATED), CHATS[:8])
    (tmp_path / "facts").mkdir()
    write_build_stamp(tmp_path / "facts", spec)
    stamp = tmp_path / "facts" / BUILD_STAMP_FILE
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"date": "2020-02-29"}))
    assert build_index(spec, tmp_path / "facts").chat_date == date(2020, 2, 29)


def test_rows_of_chats_that_were_told_another_date_are_not_taken_for_the_same(tmp_path):
    from dataclasses import replace

    from bergson_core.data.documents import load_documents
    from bergson_core.indexing.build import rows_fingerprint
    from bergson_core.indexing.checked_documents import check_documents

    spec = chat_spec(save_chat_model(tmp_path / "model", templates.DATED), CHATS[:3])
    model = load_tracked_model(BuildContext(spec, tmp_path))
    documents = check_documents(spec, load_documents(spec), model, lambda _: None)
    fingerprints = [
        rows_fingerprint(spec, replace(model, chat_date=chat_date), documents)
        for chat_date in (None, date(2020, 1, 1), date(2020, 1, 2))
    ]
    assert len(set(fingerprints)) == 3


def test_an_index_without_a_date_is_told_todays(index, tmp_path):
    manifest = index / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["chat_date"]
    original = manifest.read_text()
    manifest.write_text(json.dumps(content))
    try:
        answer = AttributionIndex.open(index).query(messages=CHATS[0], top_k=1)
    finally:
        manifest.write_text(original)
    assert f"Today Date: {datetime.now():%d %b %Y}" in answer.query.prompt
