"""Results say whether they state the completion, and may be in the order of words, or of words and influence."""

import json
import shutil
from pathlib import Path

import pytest

from bergson_core import (
    AppendSpec,
    AttributionIndex,
    AttributionQuery,
    append_documents,
    build_index,
    compact_index,
    fit_profile,
    take_down_document,
)
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.query import FUSION_DEPTH, VerifySpec
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.utils.background import run_to_completion
from tests import tiny
from tests.core.attribution.queries.test_chat_queries import CHATS, chat_spec, save_chat_model
from tests.core.helpers import make_spec, query
from tests.core.indexing.test_long_documents import rows as long_rows
from tests.core.indexing.test_long_documents import spec_of
from tests.core.tokens import chat_templates as templates

ALL = 40
"""Documents of the fixture index."""
TEXTS = tiny.texts(ALL)
QUESTION = query().prompt + query().completion


@pytest.fixture(scope="module")
def index(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the index, since the words of its documents are written into its directory."""
    return shutil.copytree(index, tmp_path_factory.mktemp("words") / index.name)


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def answer_of(opened: AttributionIndex, **changes: object) -> Answer:
    (answer,) = opened.attribute([query(**changes)])
    assert isinstance(answer, Answer), answer
    return answer


def number_of(row: ResultRow) -> int:
    return int(row.id.removeprefix("doc-"))


def bm25_by_number(shown: list[int] | range = range(ALL), question: str = QUESTION) -> dict[int, float]:
    (scores,) = bm25_scores([TEXTS[number] for number in shown], [question])
    return dict(zip(shown, scores.tolist(), strict=True))


def words_order(scores: dict[int, float]) -> list[int]:
    """Returns the numbers of documents by their BM25 scores, of equal ones the first."""
    return sorted(
        (number for number, score in scores.items() if score > 0), key=lambda n: (-round(scores[n], 5), n)
    )


def require_words(rows: list[ResultRow], scores: dict[int, float], completion: str = "city 1") -> None:
    """Checks the words of results against the scores of bm25s and a plain search for the completion."""
    for row in rows:
        score = scores[number_of(row)]
        assert row.words.score == pytest.approx(score, rel=1e-5, abs=1e-6)
        higher = sum(other > score * (1 + 1e-5) for other in scores.values())
        assert row.words.rank == (1 + higher if score > 0 else None)
        assert row.words.states == (completion in TEXTS[number_of(row)])


def test_words_are_added_to_results_that_stay_as_they_are(opened):
    plain, answer = (
        answer_of(opened, top_k=ALL, direction="both", include=include) for include in ([], ["words"])
    )
    require_words([*answer.results, *answer.opponents], bm25_by_number())
    for rows, plain_rows in ((answer.results, plain.results), (answer.opponents, plain.opponents)):
        assert [row.model_copy(update={"words": None}) for row in rows] == plain_rows
    assert {row.words.states for row in answer.results} == {True, False}
    assert plain.results[0].words is None
    assert answer.timing_ms.words > 0 == plain.timing_ms.words


def test_the_order_of_words_is_that_of_the_whole_corpus_with_the_influence_of_each(opened):
    every = {row.id: row for row in answer_of(opened, top_k=ALL).results}
    answer = answer_of(opened, top_k=7, order="words")
    assert [number_of(row) for row in answer.results] == words_order(bm25_by_number())[:7]
    require_words(answer.results, bm25_by_number())
    for rank, row in enumerate(answer.results, start=1):
        own = {"words": None, "interval": row.interval, "strength": row.strength}  # not chosen by the score
        assert row.model_copy(update={"words": None}) == every[row.id].model_copy(update={"rank": rank} | own)
        assert row.interval[0] >= every[row.id].interval[0]


@pytest.mark.parametrize("direction", ["proponents", "opponents", "both"])
def test_the_fused_order_is_that_of_the_sums_of_reciprocal_ranks(opened, direction):
    plain = answer_of(opened, top_k=ALL, direction="both")
    by_words = words_order(bm25_by_number())
    answer = answer_of(opened, top_k=8, order="fused", direction=direction)
    assert FUSION_DEPTH > ALL
    for rows, plain_rows in ((answer.results, plain.results), (answer.opponents, plain.opponents)):
        if rows is None:
            continue
        by_influence = [number_of(row) for row in plain_rows]
        sums = dict.fromkeys(by_influence, 0.0)
        for order in (by_influence, by_words):
            for rank, number in enumerate(order, start=1):
                sums[number] += 1 / (60 + rank)
        expected = sorted(by_influence, key=lambda number: -sums[number])[:8]
        assert [number_of(row) for row in rows] == expected
        assert [row.rank for row in rows] == list(range(1, 9))
        noise = {row.id: (row.interval, row.strength) for row in plain_rows}  # chosen by their scores as well
        assert [(row.interval, row.strength) for row in rows] == [noise[row.id] for row in rows]
    asked = {"proponents": (True, False), "opponents": (False, True), "both": (True, True)}[direction]
    assert (answer.results is not None, answer.opponents is not None) == asked


def test_the_fused_order_takes_the_best_of_each_order_alone(opened, monkeypatch):
    monkeypatch.setattr("bergson_core.schemas.query.FUSION_DEPTH", 3)
    best = {number_of(row) for row in answer_of(opened, top_k=3).results}
    answer = answer_of(opened, top_k=3, order="fused")
    assert {number_of(row) for row in answer.results} <= best | set(words_order(bm25_by_number())[:3])


@pytest.mark.parametrize("order", ["words", "fused"])
def test_documents_that_were_taken_down_are_neither_shown_nor_counted(index_copy, order):
    opened = AttributionIndex.open(index_copy)
    gone = [number_of(row) for row in answer_of(opened, top_k=3, order=order).results]
    for number in gone:
        take_down_document(index_copy, f"doc-{number}")
    left = [number for number in range(ALL) if number not in gone]
    answer = answer_of(opened, top_k=ALL, order=order)
    assert not {number_of(row) for row in answer.results} & set(gone)
    require_words(answer.results, bm25_by_number(left))
    compact_index(index_copy)
    compacted = answer_of(AttributionIndex.open(index_copy), top_k=ALL, order=order)
    assert [(row.id, row.words) for row in compacted.results] == [
        (row.id, row.words) for row in answer.results
    ]


def test_a_compaction_leaves_no_words_of_the_documents_that_it_removes(index_copy):
    append_documents(index_copy, one_document("new", "an unmistakable xylophone"))
    answer_of(AttributionIndex.open(index_copy), include=["words"])
    take_down_document(index_copy, "new")
    assert any(b"xylophone" in path.read_bytes() for path in (index_copy / "words").iterdir())
    compact_index(index_copy)
    assert not any(b"xylophone" in path.read_bytes() for path in (index_copy / "words").iterdir())


def one_document(document_id: str, text: str) -> AppendSpec:
    return AppendSpec(documents=({"id": document_id, "text": text, "source": "wiki", "number": 1},))


def test_appended_documents_are_found_by_their_words(index_copy):
    answer_of(AttributionIndex.open(index_copy), include=["words"])
    append_documents(index_copy, one_document("new", "Person 3 lives in city 1, in city 1."))
    (best,) = answer_of(AttributionIndex.open(index_copy), order="words", top_k=1).results
    assert (best.id, best.words.rank, best.words.states) == ("new", 1, True)


@pytest.mark.parametrize("order", ["influence", "words", "fused"])
def test_ranks_are_among_the_documents_that_meet_the_filter(opened, order):
    scores = bm25_by_number()
    wiki = {number: score for number, score in scores.items() if number % 2}
    answer = answer_of(opened, top_k=ALL, order=order, include=["words"], filter={"source": "wiki"})
    require_words(answer.results, wiki)
    if order == "words":
        assert [number_of(row) for row in answer.results] == words_order(wiki)


def test_results_in_the_order_of_words_have_all_that_is_asked_for(opened):
    answer = answer_of(
        opened,
        order="words",
        top_k=2,
        include=["text", "metadata", "tokens", "modules"],
        verify=VerifySpec(top=1),
    )
    (first, second) = answer.results
    for row in (first, second):
        assert row.prompt == TEXTS[number_of(row)]
        assert row.metadata["number"] == number_of(row)
        assert sum(row.modules.values()) == pytest.approx(row.score, rel=1e-5)
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, rel=1e-4)
    assert (first.verified is None, second.verified is None) == (False, True)


def test_rescored_results_have_words_and_keep_their_order(opened):
    plain, answer = (answer_of(opened, top_k=6, rescore=10, include=include) for include in ([], ["words"]))
    assert [(row.id, row.score) for row in answer.results] == [(row.id, row.score) for row in plain.results]
    require_words(answer.results, bm25_by_number())


def test_the_queries_of_a_batch_are_answered_as_alone(opened):
    queries = [
        query(order="words", top_k=3),
        query(top_k=3),
        query(prompt="Person 2 works for", completion=" company 2.", order="fused", top_k=3),
        query(include=["words"], direction="opponents", top_k=3),
    ]
    together, alone = opened.attribute(queries), [opened.attribute([each])[0] for each in queries]
    assert [answer.results and [(row.id, row.words) for row in answer.results] for answer in together] == [
        answer.results and [(row.id, row.words) for row in answer.results] for answer in alone
    ]


@pytest.mark.parametrize(
    ("rows", "normalize", "preconditioner"),
    [("sign", "row", True), ("int8", "none", False), ("float16", "block", True)],
)
def test_scores_in_the_order_of_words_are_those_of_the_search(
    sources, tmp_path, rows, normalize, preconditioner
):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring={"normalize": normalize, "preconditioner": preconditioner},
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    every = {row.id: row for row in answer_of(opened, top_k=ALL).results}
    for row in answer_of(opened, order="words", top_k=10).results:
        assert (row.score, row.percentile) == (every[row.id].score, every[row.id].percentile)


def test_a_profile_changes_the_scores_and_not_the_order_of_words(index_copy, sample):
    fit_profile(index_copy, "cities", sample)
    opened = AttributionIndex.open(index_copy)
    plain, answer = (
        answer_of(opened, order="words", top_k=5, profile=profile) for profile in ("default", "cities")
    )
    assert [row.id for row in answer.results] == [row.id for row in plain.results]
    every = {row.id: row.score for row in answer_of(opened, top_k=ALL, profile="cities").results}
    assert [row.score for row in answer.results] == [every[row.id] for row in answer.results]
    assert [row.score for row in answer.results] != [row.score for row in plain.results]


def test_what_is_stated_is_the_span_or_the_completion_that_is_explained(opened):
    asked = {"completion": " city 1 and works for company 1.", "top_k": ALL, "include": ["words"]}
    whole = answer_of(opened, **asked)
    require_words(
        whole.results,
        bm25_by_number(question="Person 3 lives in" + asked["completion"]),
        asked["completion"][1:],
    )
    part = answer_of(opened, span=(7, len(asked["completion"])), **asked)
    for row in part.results:
        assert row.words.states == ("and works for company 1." in TEXTS[number_of(row)])
    assert [row.words.score for row in part.results if row.id == "doc-1"] == [
        row.words.score for row in whole.results if row.id == "doc-1"
    ]


def test_a_contrast_is_about_the_words_of_the_completion(opened):
    answer = answer_of(opened, instead_of=" city 2.", top_k=ALL, direction="both", order="fused")
    require_words([*answer.results, *answer.opponents], bm25_by_number())


def test_a_generated_completion_is_what_is_stated(opened):
    (answer,) = opened.attribute(
        [AttributionQuery(prompt="Person 3 lives in", max_new_tokens=3, include=("text", "words"), top_k=ALL)]
    )
    assert answer.query.generated
    (expected,) = bm25_scores(TEXTS, [answer.query.prompt + answer.query.completion])
    for row in answer.results:
        assert row.words.score == pytest.approx(float(expected[number_of(row)]), rel=1e-5, abs=1e-6)


def test_chats_are_compared_by_what_their_messages_say(tmp_path):
    model = save_chat_model(tmp_path / "model", templates.DATED, adds_bos=True)
    build_index(chat_spec(model), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    texts = ["\n".join(message["content"] for message in chat) for chat in CHATS]
    (answer,) = opened.attribute([AttributionQuery(messages=CHATS[4], order="words", top_k=len(CHATS))])
    (expected,) = bm25_scores(texts, [texts[4]])
    assert answer.results[0].id == "chat-4"
    last = CHATS[4][-1]["content"].removesuffix("!").removesuffix("!")
    for row in answer.results:
        number = int(row.id.removeprefix("chat-"))
        assert row.words.score == pytest.approx(float(expected[number]), rel=1e-5, abs=1e-6)
        assert row.words.states == (last.replace("!", "") in texts[number].replace("!", ""))


@pytest.mark.parametrize("order", ["words", "fused"])
def test_documents_that_were_cut_are_returned_once_by_their_best_chunk(sources, tmp_path, order):
    build_index(spec_of(sources, long_documents="chunk", chunk_overlap=4), tmp_path / "facts", shard_rows=7)
    opened = AttributionIndex.open(tmp_path / "facts")
    chunks = answer_of(opened, order=order, top_k=100)
    answer = answer_of(opened, order=order, top_k=100, group_by="document")
    documents = [row.chunk.document if row.chunk else row.id for row in answer.results]
    assert len(documents) == len(set(documents)) == len(long_rows())
    assert len(chunks.results) > len(documents)
    if order == "words":
        in_order = [row.chunk.document if row.chunk else row.id for row in chunks.results]
        assert documents == list(dict.fromkeys(in_order))


REFUSED = {
    "opponents by words": ({"order": "words", "direction": "opponents"}, "has no direction"),
    "both by words": ({"order": "words", "direction": "both"}, "has no direction"),
    "rescored by words": ({"order": "words", "rescore": 5}, "exact scores"),
    "rescored and fused": ({"order": "fused", "rescore": 5}, "exact scores"),
    "an order that there is not": ({"order": "bm25"}, "influence"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_an_order_that_does_not_go_together_with_the_rest_is_refused(fields, message):
    with pytest.raises(InvalidInput, match=message):
        query(**fields)


def test_a_document_that_says_nothing_of_the_question_has_no_rank(index_copy):
    append_documents(index_copy, one_document("other", "an unmistakable xylophone"))
    rows = answer_of(AttributionIndex.open(index_copy), top_k=100, include=["words"]).results
    (row,) = [row for row in rows if row.id == "other"]
    assert (row.words.rank, row.words.score, row.words.states) == (None, 0, False)


def test_the_answer_survives_its_way_as_json(opened):
    answer = answer_of(opened, order="fused")
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
    assert json.loads(answer.model_dump_json())["results"][0]["words"].keys() == {"rank", "score", "states"}


def test_the_words_of_results_that_are_taken_down_meanwhile_are_not_returned(index_copy):
    opened = AttributionIndex.open(index_copy)
    asked = query(include=["words"], top_k=5)
    (plain,) = opened.attribute([asked.for_search()])
    take_down_document(index_copy, plain.results[0].id)
    answer = run_to_completion(opened.follow_up(asked, plain))
    assert [row.id for row in answer.results] == [row.id for row in plain.results[1:]]
    assert [row.rank for row in answer.results] == [1, 2, 3, 4]
