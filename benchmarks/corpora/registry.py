"""The corpora by name, as the benchmarks use them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.corpora.docstring_paragraphs import make_docstring_paragraphs
from benchmarks.corpora.package_descriptions import make_package_descriptions
from benchmarks.corpora.world_factbook import make_world_factbook
from bergson_core.demo.synthetic_facts import make_corpus
from service.cli.demo import default_directory

VOCABULARY: Final = 2048
"""Tokens of the tokenizers that are fitted to a corpus."""

PRETRAINED_SIZE: Final = {"facts": 100, "queries": 60, "anti_documents": 30}
"""Size of the corpora for the pretrained model, whose gradients take a second a document on a CPU."""


def default_cache() -> Path:
    """Returns the directory that keeps corpora, package lists and models where no other is given."""
    return default_directory().parent / "benchmarks"


def make_invented_facts(people: int = 100, seed: int = 0) -> Corpus:
    """Returns the demo's corpus of facts about invented people."""
    facts = make_corpus(people, seed)
    documents = (
        Document(document.id, document.text, document.gold, document.metadata) for document in facts.documents
    )
    return Corpus("invented_facts", "bergson_core.demo", tuple(documents), facts.queries)


CORPORA: Mapping[str, Callable[[Path, int], Corpus]] = {
    "package_descriptions": lambda cache, seed: make_package_descriptions(cache, seed=seed),
    "docstring_paragraphs": lambda cache, seed: make_docstring_paragraphs(seed=seed),
    "world_factbook": lambda cache, seed: make_world_factbook(seed=seed),
    "world_factbook_rewritten": lambda cache, seed: make_world_factbook(
        "rewritten", **PRETRAINED_SIZE, seed=seed
    ),
    "world_factbook_chats": lambda cache, seed: make_world_factbook("chats", **PRETRAINED_SIZE, seed=seed),
    "invented_facts": lambda cache, seed: make_invented_facts(seed=seed),
}
"""Name → function that makes the corpus in its default size, from a directory for what it downloads, and a seed."""
