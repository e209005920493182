"""Prompts and completions meet as the query says; a completion that lacks its space is told; EOS is not explained."""

import logging
from pathlib import Path

import pytest

from bergson_core import (
    Answer,
    AttributionIndex,
    BuildSpec,
    EvaluationQuery,
    VerifySpec,
    build_index,
    score_corpus,
)
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.inputs import tokenize_queries
from tests import tiny
from tests.core import tokenizer_kinds
from tests.core.helpers import make_spec, query, write_rows

PROMPT, GIVEN, MEANT = "Person 3 lives in", "city 1.", " city 1."


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def answer_to(index: AttributionIndex, **changes: object) -> Answer:
    (answer,) = index.attribute([query(**changes)])
    assert isinstance(answer, Answer), answer
    return answer


def test_a_completion_without_its_space_is_answered_as_given_with_a_warning(opened: AttributionIndex):
    answer = answer_to(opened, completion=GIVEN)
    (warning,) = answer.warnings
    assert (warning.code, warning.suggestion) == ("missing_space", MEANT)
    assert answer.query.completion == GIVEN
    assert Answer.model_validate_json(answer.model_dump_json()).warnings == answer.warnings
    assert answer_to(opened, completion=MEANT).warnings == []


def test_join_space_asks_the_question_that_was_meant(opened: AttributionIndex):
    joined, meant = answer_to(opened, completion=GIVEN, join="space"), answer_to(opened, completion=MEANT)
    assert joined.model_copy(update={"timing_ms": meant.timing_ms}) == meant
    unchanged = answer_to(opened, completion=MEANT, join="space")
    assert unchanged.query == meant.query


def test_a_span_counts_characters_of_the_completion_as_it_was_given(opened: AttributionIndex):
    joined = answer_to(opened, completion=GIVEN, join="space", span=(5, 7))
    meant = answer_to(opened, completion=MEANT, span=(6, 8))
    assert joined.query == meant.query
    assert GIVEN[5:7] == MEANT[6:8] == "1."


def test_verification_measures_the_joined_completion(opened: AttributionIndex):
    changes = {"verify": VerifySpec(top=1, controls=1)}
    joined, meant = (
        answer_to(opened, completion=GIVEN, join="space", **changes),
        answer_to(opened, completion=MEANT, **changes),
    )
    assert joined.results == meant.results
    assert joined.verification == meant.verification


def test_a_batch_has_the_warnings_of_its_queries_alone(opened: AttributionIndex):
    queries = [
        query(completion=GIVEN),
        query(),
        query(completion=GIVEN, join="space"),
        query(prompt="Person 3 ", completion=" lives"),
    ]
    codes = [[warning.code for warning in answer.warnings] for answer in opened.attribute(queries)]
    assert codes == [["missing_space"], [], [], ["double_space"]]


def test_query_logs_the_warning(opened: AttributionIndex, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        opened.query(PROMPT, MEANT)
        assert not caplog.records
        opened.query(PROMPT, GIVEN)
    assert "missing_space" in caplog.text


def test_a_prompt_that_ends_with_a_space_is_told_where_the_space_belongs_to_the_next_word(
    opened: AttributionIndex, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = opened.model.tokenizer

    def say(text: str) -> None:
        ids = tokenizer(text).input_ids
        monkeypatch.setattr(
            type(opened.model.model),
            "generate",
            lambda self, context, **_: context.new_tensor([[*context[0].tolist(), *ids]]),
        )

    say("city 1.")
    (warning,) = answer_to(opened, prompt=f"{PROMPT} ", completion=None).warnings
    assert (warning.code, warning.suggestion) == ("trailing_space", PROMPT)
    assert answer_to(opened, prompt=PROMPT, completion=None).warnings == []
    assert answer_to(opened, prompt=f"{PROMPT}\n", completion=None).warnings == []
    say("🐑")  # whose first token has no space in any text
    assert answer_to(opened, prompt=f"{PROMPT} ", completion=None).warnings == []


def test_join_is_exact_or_space():
    with pytest.raises(InvalidInput, match="join"):
        query(join="newline")


def test_scores_of_the_corpus_join_as_their_queries_say(opened: AttributionIndex):
    tables = [
        score_corpus(opened, [query(completion=completion, join=join)]).read_all()
        for completion, join in ((GIVEN, "space"), (MEANT, "exact"), (GIVEN, "exact"))
    ]
    joined, meant, given = (table["score"].to_pylist() for table in tables)
    assert joined == meant != given


@pytest.fixture(scope="module")
def with_eos(tmp_path_factory: pytest.TempPathFactory) -> AttributionIndex:
    """Returns an index whose tokenizer puts BOS before and EOS after each text."""
    directory = tmp_path_factory.mktemp("eos")
    tiny.model("llama", dtype=tiny.torch.float32).save_pretrained(directory / "model")
    tokenizer = tokenizer_kinds.byte_level(tiny.VOCABULARY, bos=True, eos=True)
    tokenizer.save_pretrained(directory / "model")
    rows = [{"q": "Ada was born in", "a": f" {place}."} for place in ("London", "Paris", "Sylvania City")] * 4
    columns = {"prompt": "q", "completion": "a"}
    build_index(
        make_spec(directory, dataset=write_rows(directory, *rows), columns=columns), directory / "facts"
    )
    return AttributionIndex.open(directory / "facts")


def test_what_is_explained_is_the_text_of_the_completion_and_no_eos(with_eos: AttributionIndex):
    tokenizer = with_eos.model.tokenizer
    text = " London."
    n_tokens = len(tokenizer(text, add_special_tokens=False).input_ids)
    answer = answer_to(with_eos, prompt="Ada was born in", completion=text)
    assert answer.query.n_tokens == n_tokens
    asked = query("Ada was born in", text)
    (scores,) = score_corpus(with_eos, [asked], aggregate="each").read_all()["scores"].chunks
    assert max(row[0] for row in scores.to_pylist()) == pytest.approx(answer.results[0].score, rel=1e-4)
    (tokens,) = tokenize_queries(with_eos, [EvaluationQuery(id="q", prompt=asked.prompt, completion=text)])
    assert tokens.n_labelled == n_tokens


@pytest.mark.parametrize(
    ("completion", "warned"), [("London.", True), (" London.", False)], ids=["without", "with"]
)
def test_a_build_says_that_most_completions_lack_their_space(
    sources: Path, tmp_path: Path, completion: str, warned: bool, caplog: pytest.LogCaptureFixture
):
    rows = [{"q": f"Person {k} lives in", "a": completion} for k in range(6)]
    spec: BuildSpec = make_spec(
        sources, dataset=write_rows(tmp_path, *rows), columns={"prompt": "q", "completion": "a"}
    )
    with caplog.at_level(logging.WARNING):
        build_index(spec, tmp_path / "index")
    assert ("6 of the first 6 documents have a completion without the space" in caplog.text) == warned
