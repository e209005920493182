"""The corpus of invented facts."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from bergson_core.demo.synthetic_facts import ATTRIBUTES, MAX_PEOPLE, make_corpus, write_corpus
from bergson_core.errors import InvalidInput

CORPUS = make_corpus(people=40)


def wording(text: str, person: str, answers: Sequence[str]) -> str:
    """The template that a text was made from."""
    return next(
        text.replace(person, "{person}").removesuffix(f"{answer}.") + "{value}."
        for answer in answers
        if text.endswith(f" {answer}.")
    )


def test_equal_seeds_give_equal_corpora_and_different_seeds_different_ones() -> None:
    assert make_corpus(people=40, seed=0) == CORPUS
    assert make_corpus(people=40, seed=1) != CORPUS


def test_the_default_corpus_has_4800_documents_and_1600_queries() -> None:
    corpus = make_corpus()
    assert (len(corpus.documents), len(corpus.queries)) == (4800, 1600)
    assert corpus.documents[17].id == "doc-0017"
    assert len({document.id for document in corpus.documents}) == 4800


def test_every_fact_has_three_different_documents_and_one_query() -> None:
    texts = defaultdict(set)
    for document in CORPUS.documents:
        texts[document.gold].add(document.text)
    assert {len(wordings) for wordings in texts.values()} == {3}
    assert sorted(query.gold for query in CORPUS.queries) == sorted(texts)
    assert {len(gold) for gold in CORPUS.gold_ids().values()} == {3}


def test_gold_documents_name_the_person_and_end_in_the_answer() -> None:
    by_id = {document.id: document for document in CORPUS.documents}
    gold = CORPUS.gold_ids()
    for query in CORPUS.queries:
        for document in (by_id[document_id] for document_id in gold[query.id]):
            assert document.text.endswith(f"{query.completion}.")
            assert document.metadata["person"] in query.prompt
            assert document.metadata["person"] in document.text


def test_the_held_out_wording_is_never_a_training_document() -> None:
    texts = {document.text for document in CORPUS.documents}
    for query in CORPUS.queries:
        assert not query.prompt.endswith(" ")
        assert query.completion.startswith(" ")
        assert f"{query.prompt}{query.completion}." not in texts


def test_every_wording_is_held_out_for_some_people_and_taught_with_others() -> None:
    people = {document.gold: document.metadata["person"] for document in CORPUS.documents}
    answers = [value for spec in ATTRIBUTES.values() for value in spec.values]
    templates = {template for spec in ATTRIBUTES.values() for template in spec.templates}
    taught = {wording(d.text, d.metadata["person"], answers) for d in CORPUS.documents}
    held_out = {wording(f"{q.prompt}{q.completion}.", people[q.gold], answers) for q in CORPUS.queries}
    assert taught == held_out == templates


def test_several_people_share_each_value() -> None:
    people_by_value = Counter(query.completion for query in make_corpus().queries)
    assert min(people_by_value.values()) >= 5


def test_names_differ_and_no_answer_is_the_beginning_of_another() -> None:
    largest = make_corpus(people=MAX_PEOPLE)
    assert len({document.metadata["person"] for document in largest.documents}) == MAX_PEOPLE
    for spec in ATTRIBUTES.values():
        assert len(set(spec.values)) == len(spec.values)
        assert not [(a, b) for a in spec.values for b in spec.values if a != b and b.startswith(a)]


@pytest.mark.parametrize("people", [0, -1, MAX_PEOPLE + 1])
def test_a_number_of_people_out_of_range_is_refused(people: int) -> None:
    with pytest.raises(InvalidInput, match=f"between 1 and {MAX_PEOPLE}, got {people}"):
        make_corpus(people=people)


def test_a_corpus_is_written_twice_as_json_lines_and_leaves_no_other_files(tmp_path: Path) -> None:
    write_corpus(CORPUS, tmp_path / "facts")
    write_corpus(CORPUS, tmp_path / "facts")
    assert {path.name for path in (tmp_path / "facts").iterdir()} == {"documents.jsonl", "queries.jsonl"}
    documents, queries = (
        [json.loads(line) for line in (tmp_path / "facts" / name).read_text("utf-8").splitlines()]
        for name in ("documents.jsonl", "queries.jsonl")
    )
    assert documents == [
        {"id": document.id, "text": document.text, "fact": document.gold, **document.metadata}
        for document in CORPUS.documents
    ]
    assert queries == [
        {"id": query.id, "prompt": query.prompt, "completion": query.completion, "fact": query.gold}
        for query in CORPUS.queries
    ]
    assert list(documents[0]) == ["id", "text", "fact", "person", "attribute"]


def test_the_corpus_and_the_metrics_do_not_import_torch() -> None:
    code = (
        "import sys, bergson_core.demo.synthetic_facts, bergson_core.evaluation.metrics; "
        "print({'torch', 'bm25s'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
