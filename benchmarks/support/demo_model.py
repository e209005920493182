"""The demo's corpus, and the model that was trained on it, for the benchmarks that need a model that knows something.

The model is trained where `bergson demo` trains it, and only if it is not there yet, which takes about a minute.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from bergson_core.demo.model import train_demo_model
from bergson_core.demo.synthetic_facts import FactCorpus, make_corpus, write_corpus
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.tokens.tokenization import Tokens, tokenize
from service.cli.demo import default_directory


@dataclass(frozen=True)
class Demo:
    """The demo's model in memory, and the tokens of its corpus.

    Attributes:
        directory: Holds the directories `model` and `corpus`, and what a benchmark keeps there.
        corpus: The documents that the model was trained on, and the queries.
        model: The model.
        documents: Tokens of the documents.
        queries: Tokens of the queries; the completions are labelled.
    """

    directory: Path
    corpus: FactCorpus
    model: LanguageModel
    documents: list[Tokens]
    queries: list[Tokens]

    @property
    def model_path(self) -> Path:
        """The directory of the model."""
        return self.directory / "model"


def add_demo_options(parser: argparse.ArgumentParser, people: int = 400) -> None:
    """Adds the options that choose a corpus, where `people` is the default."""
    parser.add_argument(
        "--people", type=int, default=people, help="people in the corpus; each has four facts"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus and of the training")
    parser.add_argument(
        "--data_dir", type=Path, default=default_directory(), help="directory that keeps the models"
    )


def prepare_demo_files(people: int = 400, seed: int = 0, data_dir: Path | None = None) -> Path:
    """Writes the corpus and trains the model unless it is there; returns the directory with `corpus` and `model`."""
    directory = (data_dir or default_directory()).expanduser().absolute() / f"people-{people}-seed-{seed}"
    corpus = make_corpus(people, seed)
    write_corpus(corpus, directory / "corpus")
    train_demo_model(corpus, directory / "model", seed=seed)
    return directory


def load_demo(options: argparse.Namespace) -> Demo:
    """Prepares the corpus and the model that the options of `add_demo_options` choose, and loads them."""
    directory = prepare_demo_files(options.people, options.seed, options.data_dir)
    corpus, model = make_corpus(options.people, options.seed), load_model(str(directory / "model"))
    assert model.tokenizer is not None  # load_model always returns one
    documents = tokenize(model.tokenizer, [document.text for document in corpus.documents], None)
    prompts = [query.prompt for query in corpus.queries]
    completions = [query.completion for query in corpus.queries]
    return Demo(directory, corpus, model, documents, tokenize(model.tokenizer, prompts, completions))
