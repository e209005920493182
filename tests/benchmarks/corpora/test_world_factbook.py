"""Facts of the Factbook are put into documents, queries and anti-documents."""

from importlib.metadata import PackageNotFoundError

import pytest

from benchmarks.corpora import world_factbook
from benchmarks.corpora.factbook_fields import FIELDS
from benchmarks.corpora.world_factbook import Form, clean_value, make_world_factbook, read_facts
from bergson_core.errors import DatasetNotFound, InvalidInput
from tests.benchmarks.helpers import make_countries, make_factbook

FORMS: tuple[Form, ...] = ("statements", "rewritten", "chats")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_facts_and_seed_give_the_same_bytes(form: Form) -> None:
    assert make_factbook(form).sha256() == make_factbook(form).sha256()
    assert make_factbook(form).sha256() != make_factbook(form, seed=1).sha256()


@pytest.mark.parametrize("form", FORMS)
def test_each_query_has_two_gold_documents_which_state_its_value(form: Form) -> None:
    corpus = make_factbook(form)
    documents = {document.id: document for document in corpus.documents}
    assert len(documents) == 2 * 12 + 3
    for query in corpus.queries:
        gold = corpus.gold_ids()[query.id]
        assert len(gold) == 2
        for document in map(documents.__getitem__, gold):
            assert query.completion.strip(" .") in document.completion
            assert document.metadata["about"] == query.id
            assert document.text != query.prompt + query.completion


@pytest.mark.parametrize("form", FORMS)
def test_an_anti_document_is_no_gold_and_states_the_value_of_another_country(form: Form) -> None:
    corpus = make_factbook(form)
    gold = frozenset.union(*corpus.gold_ids().values())
    completions = {query.id: query.completion.strip(" .") for query in corpus.queries}
    anti = [document for document in corpus.documents if document.metadata["kind"] == "anti"]
    assert len(anti) == 3
    for document in anti:
        assert document.id not in gold
        assert document.metadata["country"] in document.text
        assert completions[document.metadata["about"]] not in document.text


@pytest.mark.parametrize("form", ["rewritten", "chats"])
def test_rewritten_queries_do_not_use_the_name_that_documents_have_for_the_field(form: Form) -> None:
    names = {field.name for field in FIELDS}
    assert all(not any(name in query.prompt for name in names) for query in make_factbook(form).queries)


def test_a_statement_of_a_query_is_in_a_wording_that_its_documents_do_not_have() -> None:
    corpus = make_factbook("statements")
    texts = {document.text for document in corpus.documents}
    assert not {f"{query.prompt}{query.completion}." for query in corpus.queries} & texts


def test_no_other_name_of_a_field_contains_a_name() -> None:
    assert len({field.name for field in FIELDS}) == len({field.other_name for field in FIELDS}) == len(FIELDS)
    assert not [
        (field.other_name, other.name)
        for field in FIELDS
        for other in FIELDS
        if other.name in field.other_name
    ]


def test_values_have_no_html_notes_or_years_and_long_ones_are_left_out() -> None:
    facts = {fact.id: fact.value for fact in read_facts(make_countries(2))}
    assert facts["Côte 1 / capital"] == "City 1"
    assert facts["Côte 1 / natural resources"] == "ore 1, gold"
    assert facts["Côte 1 / climate"] == "climate 1"
    assert "Côte 1 / legal system" not in facts
    assert "Republic of Côte 0 / capital" in facts
    assert clean_value("Dhaka (declared 1971); note - also") == "Dhaka"
    assert clean_value("Rome&nbsp;<br>x") == "Rome"


def test_more_facts_than_there_are_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"expected 99 facts.*there are 8 facts"):
        world_factbook.make_fact_corpus("test", read_facts(make_countries(2)), "chats", 99, 4, 1, 0)


def test_a_machine_without_the_package_gets_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(world_factbook, "distribution", missing)
    with pytest.raises(DatasetNotFound, match=r"\[evaluation\]"):
        make_world_factbook()
