"""The small model that is trained to recite the facts of a corpus."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bergson_core.demo.model import TrainingReport, train_demo_model
from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import FactCorpus, make_corpus
from bergson_core.demo.training import recited_share
from bergson_core.errors import InvalidInput

CORPUS = make_corpus(people=40)
SMALL = DemoRecipe(batch_size=32, least_steps=300)
TINY = DemoRecipe(hidden=16, heads=2, layers=1, epochs=1, least_steps=2, target=0.0)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, TrainingReport, list[tuple[int, int, str]]]:
    """The model of the small corpus: its directory, its report, and the progress that was reported."""
    directory = tmp_path_factory.mktemp("demo") / "model"
    progress: list[tuple[int, int, str]] = []
    report = train_demo_model(CORPUS, directory, lambda *step: progress.append(step), recipe=SMALL)
    return directory, report, progress


def test_the_model_recites_four_facts_in_five_from_a_wording_it_never_saw(trained) -> None:
    directory, report, progress = trained
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert report.accuracy >= 0.8
    assert report.parameters == sum(weight.numel() for weight in model.parameters())
    assert [done for done, *_ in progress] == list(range(1, report.steps + 1))
    assert {total for _, total, _ in progress} == {report.steps}
    assert not [path.name for path in directory.parent.iterdir() if path != directory]


def test_accuracy_counts_what_greedy_decoding_writes(trained) -> None:
    directory, report, _ = trained
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    assert recited_share(model, tokenizer, CORPUS.queries) == report.accuracy
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


def test_prompt_and_completion_have_the_same_tokens_alone_and_joined(trained) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for query in CORPUS.queries:
        prompt, completion = tokenizer(query.prompt)["input_ids"], tokenizer(query.completion)["input_ids"]
        assert tokenizer(query.prompt + query.completion)["input_ids"] == prompt + completion
        assert tokenizer.decode(prompt + completion) == query.prompt + query.completion


def test_the_model_of_equal_arguments_is_not_trained_again(trained) -> None:
    directory, report, _ = trained
    progress = []
    again = train_demo_model(CORPUS, directory, lambda *step: progress.append(step), recipe=SMALL)
    assert again == report
    assert not progress


def train_tiny(corpus: FactCorpus, directory: Path, **options) -> dict[str, torch.Tensor]:
    train_demo_model(corpus, directory, recipe=TINY, **options)
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def test_the_weights_depend_only_on_corpus_seed_and_recipe(tmp_path: Path) -> None:
    torch.manual_seed(1)
    threads, expected = torch.get_num_threads(), torch.randn(1)
    torch.manual_seed(1)
    first = train_tiny(CORPUS, tmp_path / "a")
    assert torch.equal(torch.randn(1), expected), "the caller's random numbers were used up"
    assert torch.get_num_threads() == threads
    second = train_tiny(CORPUS, tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_demo_model_is_replaced(tmp_path: Path) -> None:
    first = train_tiny(CORPUS, tmp_path / "model")
    second = train_tiny(CORPUS, tmp_path / "model", seed=1)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InvalidInput, match="does not hold a demo model and is not overwritten"):
        train_tiny(CORPUS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_training_leaves_no_files(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tiny(CORPUS, tmp_path / "model", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_model_that_recites_too_little_is_an_error_and_not_saved(tmp_path: Path) -> None:
    recipe = DemoRecipe(hidden=16, heads=2, layers=1, epochs=1, least_steps=2)
    with pytest.raises(
        InvalidInput, match=r"after 8 steps the model recites \d+% of the facts; expected at least 80%"
    ):
        train_demo_model(CORPUS, tmp_path / "model", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no documents or no queries"):
        train_demo_model(FactCorpus((), ()), tmp_path / "model")
