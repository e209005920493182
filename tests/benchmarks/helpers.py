"""Small corpora in the forms that the sources of the benchmarks have."""

from pathlib import Path
from typing import Any

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.corpora.held_out_passages import Passage
from benchmarks.corpora.registry import make_invented_facts
from benchmarks.corpora.world_factbook import Form, make_fact_corpus, read_facts
from benchmarks.models.cases import Case
from benchmarks.models.small_models import train_small_model
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingSchedule

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


def make_passages(families: int, members: int) -> list[Passage]:
    """Returns passages that differ in all of their phrases."""
    return [
        Passage(f"f{family}-p{member}", f"f{family}", " ".join(_rotate(19 * family + member)))
        for family in range(families)
        for member in range(members)
    ]


def _rotate(number: int) -> list[str]:
    letter = chr(ord("a") + number % 26) * (1 + number // 26)
    return [f"{word}{letter}" for word in WORDS]


def make_countries(count: int) -> list[dict[str, Any]]:
    """Returns the data of countries as the files of the Factbook have them."""
    return [
        {
            "Geography": {
                "Climate": {"text": f"climate {number}; hot in summer"},
                "Natural resources": {"text": f"ore {number}, <b>gold</b> (2023 est.)"},
                "Elevation": {"highest point": {"text": f"Mount {number} 1,000 m"}},
            },
            "Government": {
                "Country name": {
                    "conventional long form": {"text": f"Republic of C&ocirc;te {number}"},
                    "conventional short form": {"text": "none" if number == 0 else f"C&ocirc;te {number}"},
                },
                "Capital": {"name": {"text": f"City {number} <br><br><strong>note:</strong> by the sea"}},
                "Legal system": {"text": "word " * 40},
            },
        }
        for number in range(count)
    ]


def make_factbook(form: Form = "statements", seed: int = 0) -> Corpus:
    """Returns a corpus of six countries: 12 facts, 6 queries, 3 anti-documents."""
    return make_fact_corpus("test", read_facts(make_countries(6)), form, 12, 6, 3, seed)


def make_tiny_corpus(chat: bool = False) -> Corpus:
    """Returns a corpus of four documents and two queries."""
    documents = tuple(
        Document(
            f"d{k}", f"the answer is number {k}", f"g{k}", {"kind": "x"}, f"What is {k}?" if chat else ""
        )
        for k in range(4)
    )
    queries = tuple(EvaluationQuery(f"q{k}", f"Say {k}:", f" number {k}", f"g{k}") for k in range(2))
    return Corpus("tiny", "test 1.0", documents, queries, chat)


def make_facts_case(directory: Path) -> Case:
    """Returns the facts about ten people, and a model that has hardly learnt them."""
    corpus = make_invented_facts(people=10)
    schedule = TrainingSchedule(batch_size=16, epochs=1, least_steps=20, learning_rate=1e-2)
    path = train_small_model(corpus, "gpt2", directory, schedule)
    model = load_model(str(path))
    assert model.tokenizer is not None
    saved = corpus.save(directory / "corpora")
    return Case("invented_facts", "gpt2", corpus, saved, path, path, model, *corpus.tokenize(model.tokenizer))
