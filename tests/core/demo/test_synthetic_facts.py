"""The corpus of invented facts, and the small model that is trained to recite it."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bergson_core.demo.model import TrainingReport, train_demo_model
from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import (
    ATTRIBUTES,
    MAX_PEOPLE,
    FactCorpus,
    make_corpus,
    read_corpus,
    write_corpus,
)
from bergson_core.demo.train import recited
from bergson_core.errors import InvalidInput

CORPUS = make_corpus(people=40)
SMALL = DemoRecipe(batch_size=32, least_steps=300)
HASTY = DemoRecipe(hidden=16, heads=2, layers=1, epochs=1, least_steps=2, target=0.0)


def wording(text: str, person: str, answers: Sequence[str]) -> str:
    """The template behind a text."""
    return next(
        text.replace(person, "{person}").removesuffix(f"{answer}.") + "{value}."
        for answer in answers
        if text.endswith(f" {answer}.")
    )


def test_equal_seeds_give_equal_corpora_and_other_seeds_other_ones() -> None:
    assert make_corpus(people=40, seed=0) == CORPUS
    assert make_corpus(people=40, seed=1) != CORPUS


def test_the_corpus_has_some_thousand_documents_unless_told_otherwise() -> None:
    corpus = make_corpus()
    assert (len(corpus.documents), len(corpus.queries)) == (4800, 1600)
    assert corpus.documents[17].id == "doc-0017"
    assert len({document.id for document in corpus.documents}) == 4800


def test_every_fact_has_three_different_documents_and_one_query() -> None:
    texts = defaultdict(set)
    for document in CORPUS.documents:
        texts[document.fact].add(document.text)
    assert {len(wordings) for wordings in texts.values()} == {3}
    assert sorted(query.fact for query in CORPUS.queries) == sorted(texts)
    assert {len(gold) for gold in CORPUS.gold().values()} == {3}


def test_gold_documents_name_the_person_and_end_in_the_answer() -> None:
    by_id = {document.id: document for document in CORPUS.documents}
    gold = CORPUS.gold()
    for query in CORPUS.queries:
        for document in (by_id[name] for name in gold[query.id]):
            assert document.text.endswith(f"{query.completion}.")
            assert document.metadata["person"] in query.prompt
            assert document.metadata["person"] in document.text


def test_the_kept_paraphrase_is_never_a_training_document() -> None:
    texts = {document.text for document in CORPUS.documents}
    for query in CORPUS.queries:
        assert not query.prompt.endswith(" ")
        assert query.completion.startswith(" ")
        assert f"{query.prompt}{query.completion}." not in texts


def test_every_wording_is_kept_for_some_people_and_taught_with_others() -> None:
    people = {document.fact: document.metadata["person"] for document in CORPUS.documents}
    answers = [value for spec in ATTRIBUTES.values() for value in spec.values]
    every = {template for spec in ATTRIBUTES.values() for template in spec.templates}
    taught = {wording(d.text, d.metadata["person"], answers) for d in CORPUS.documents}
    kept = {wording(f"{q.prompt}{q.completion}.", people[q.fact], answers) for q in CORPUS.queries}
    assert taught == kept == every


def test_several_people_share_each_value() -> None:
    people = Counter(query.completion for query in make_corpus().queries)
    assert min(people.values()) >= 5


def test_names_differ_and_no_answer_is_the_beginning_of_another() -> None:
    every = make_corpus(people=MAX_PEOPLE)
    assert len({document.metadata["person"] for document in every.documents}) == MAX_PEOPLE
    for spec in ATTRIBUTES.values():
        assert len(set(spec.values)) == len(spec.values)
        assert not [(a, b) for a in spec.values for b in spec.values if a != b and b.startswith(a)]


@pytest.mark.parametrize("people", [0, -1, MAX_PEOPLE + 1])
def test_a_number_of_people_that_there_are_no_names_for_is_refused(people: int) -> None:
    with pytest.raises(InvalidInput, match=f"between 1 and {MAX_PEOPLE}, got {people}"):
        make_corpus(people=people)


def test_a_written_corpus_is_read_back_and_leaves_no_other_files(tmp_path: Path) -> None:
    write_corpus(CORPUS, tmp_path / "facts")
    write_corpus(CORPUS, tmp_path / "facts")
    assert read_corpus(tmp_path / "facts") == CORPUS
    assert {path.name for path in (tmp_path / "facts").iterdir()} == {"documents.jsonl", "queries.jsonl"}
    for name, fields in {
        "documents.jsonl": ["id", "text", "fact", "person", "attribute"],
        "queries.jsonl": ["id", "prompt", "completion", "fact"],
    }.items():
        lines = (tmp_path / "facts" / name).read_text("utf-8").splitlines()
        assert all(list(json.loads(line)) == fields for line in lines)


def test_a_missing_corpus_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no file .*documents\.jsonl"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("line", ["not json", "[]", '{"id": "doc-0000"}'])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    write_corpus(CORPUS, tmp_path)
    with (tmp_path / "documents.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(
        InvalidInput, match=f"line {len(CORPUS.documents) + 1}: expected an object of attribute"
    ):
        read_corpus(tmp_path)


def test_facts_and_measures_load_no_torch() -> None:
    code = (
        "import sys, bergson_core.demo.synthetic_facts, bergson_core.evaluation.metrics; "
        "print({'torch', 'bm25s'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, TrainingReport, list[tuple[int, int, str]]]:
    """The small corpus' model: where it is, its report, and the progress that was told."""
    directory = tmp_path_factory.mktemp("demo") / "model"
    told: list[tuple[int, int, str]] = []
    report = train_demo_model(CORPUS, directory, lambda *told_now: told.append(told_now), recipe=SMALL)
    return directory, report, told


def test_the_model_recites_four_facts_in_five_from_a_wording_it_never_saw(trained) -> None:
    directory, report, told = trained
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert report.accuracy >= 0.8
    assert report.parameters == sum(weight.numel() for weight in model.parameters())
    assert [done for done, *_ in told] == list(range(1, report.steps + 1))
    assert {total for _, total, _ in told} == {report.steps}
    assert not [path.name for path in directory.parent.iterdir() if path != directory]


def test_accuracy_counts_what_greedy_decoding_writes(trained) -> None:
    directory, report, _ = trained
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    assert recited(model, tokenizer, CORPUS.queries) == report.accuracy
    written = []
    for query in CORPUS.queries:
        prompt = tokenizer(query.prompt, return_tensors="pt")
        answer = tokenizer(query.completion)["input_ids"]
        output = model.generate(
            input_ids=prompt.input_ids,
            attention_mask=prompt.attention_mask,
            max_new_tokens=len(answer),
            do_sample=False,
        )
        written.append(output[0, prompt.input_ids.shape[1] :].tolist() == answer)
    assert sum(written) / len(written) == report.accuracy


def test_prompt_and_completion_are_tokenised_apart_as_together(trained) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for query in CORPUS.queries:
        prompt, completion = tokenizer(query.prompt)["input_ids"], tokenizer(query.completion)["input_ids"]
        assert tokenizer(query.prompt + query.completion)["input_ids"] == prompt + completion
        assert tokenizer.decode(prompt + completion) == query.prompt + query.completion


def test_the_model_of_equal_arguments_is_not_trained_again(trained) -> None:
    directory, report, _ = trained
    told = []
    again = train_demo_model(CORPUS, directory, lambda *told_now: told.append(told_now), recipe=SMALL)
    assert again == report
    assert not told


def train_hastily(corpus: FactCorpus, directory: Path, **options) -> dict[str, torch.Tensor]:
    train_demo_model(corpus, directory, recipe=HASTY, **options)
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def test_the_weights_depend_on_nothing_but_corpus_seed_and_recipe(tmp_path: Path) -> None:
    torch.manual_seed(1)
    threads, expected = torch.get_num_threads(), torch.randn(1)
    torch.manual_seed(1)
    first = train_hastily(CORPUS, tmp_path / "a")
    assert torch.equal(torch.randn(1), expected), "the caller's random numbers were used up"
    assert torch.get_num_threads() == threads
    second = train_hastily(CORPUS, tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_demo_model_is_replaced(tmp_path: Path) -> None:
    first = train_hastily(CORPUS, tmp_path / "model")
    second = train_hastily(CORPUS, tmp_path / "model", seed=1)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_with_anything_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InvalidInput, match="holds no demo model, and is not overwritten"):
        train_hastily(CORPUS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_training_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_hastily(CORPUS, tmp_path / "model", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_model_that_recites_too_little_is_an_error_and_not_saved(tmp_path: Path) -> None:
    recipe = DemoRecipe(hidden=16, heads=2, layers=1, epochs=1, least_steps=2)
    with pytest.raises(
        InvalidInput, match=r"after 8 steps the model recites \d+% of the facts, fewer than the 80%"
    ):
        train_demo_model(CORPUS, tmp_path / "model", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no documents or no queries"):
        train_demo_model(FactCorpus((), ()), tmp_path / "model")
