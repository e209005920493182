"""The cases that quality is measured on: a corpus, and a model that was trained on it.

package_descriptions         GPT-2, trained from scratch
docstring_paragraphs         Llama, trained from scratch
world_factbook               GPT-2, trained from scratch
world_factbook-smollm2       SmolLM2-135M-Instruct, all weights fine-tuned
world_factbook-lora          SmolLM2-135M-Instruct, LoRA adapters
world_factbook_chats-lora    the same on chats
invented_facts               GPT-2, trained from scratch
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.registry import CORPORA
from benchmarks.models.fine_tuning import FULL_SCHEDULE, LORA_RANK, LORA_SCHEDULE, FineTuner, fine_tune
from benchmarks.models.small_models import SCHEDULE, train_small_model
from benchmarks.models.smollm2 import prepare_smollm2
from bergson_core.evaluation.trainers import BuiltInTrainer, Trainer
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingProgress
from bergson_core.tokens.tokenization import Tokens

ModelKind = Literal["gpt2", "llama", "smollm2", "lora"]

CASES: Final[Mapping[str, tuple[str, ModelKind]]] = {
    "package_descriptions": ("package_descriptions", "gpt2"),
    "docstring_paragraphs": ("docstring_paragraphs", "llama"),
    "world_factbook": ("world_factbook", "gpt2"),
    "world_factbook_rewritten": ("world_factbook_rewritten", "smollm2"),
    "world_factbook_lora": ("world_factbook_rewritten", "lora"),
    "world_factbook_chats": ("world_factbook_chats", "lora"),
    "invented_facts": ("invented_facts", "gpt2"),
}
"""Name of a case → name of its corpus, kind of its model."""


@dataclass(frozen=True)
class Case:
    """A corpus and a model that was trained on it, in memory.

    Attributes:
        name: Name of the case.
        kind: Kind of the model.
        corpus: The documents that the model was trained on, and the queries.
        directory: Holds the corpus, in the form of `Corpus.save`.
        start: Directory of the model that the training started from; of the trained one where it began with new
            weights.
        model_path: Directory of the trained model.
        model: The trained model.
        documents: Tokens of the documents.
        queries: Tokens of the queries; the completions are labelled.
    """

    name: str
    kind: ModelKind
    corpus: Corpus
    directory: Path
    start: Path
    model_path: Path
    model: LanguageModel
    documents: list[Tokens]
    queries: list[Tokens]

    def trainer(self) -> Trainer:
        """Returns a trainer that trains the same model again on a part of the documents."""
        if self.kind in {"gpt2", "llama"}:
            return BuiltInTrainer(
                str(self.model_path), self.documents, SCHEDULE, scratch=True, sha256=self.model.sha256
            )
        rank, schedule = (LORA_RANK, LORA_SCHEDULE) if self.kind == "lora" else (None, FULL_SCHEDULE)
        start_sha256 = load_model(str(self.start)).sha256
        return FineTuner(str(self.start), self.documents, schedule, start_sha256, rank)


def load_case(name: str, cache: Path, seed: int = 0, progress: TrainingProgress | None = None) -> Case:
    """Makes the corpus and the model of a case, unless they are there, and loads them.

    Args:
        name: A key of `CASES`.
        cache: Directory that keeps corpora and models.
        seed: Seed of the corpus and of the training.
        progress: Called after each step of a training.

    Raises:
        DatasetNotFound: What the corpus is made from is not on this machine.
        ModelNotFound: The pretrained model is not on this machine.
    """
    corpus_name, kind = CASES[name]
    corpus = CORPORA[corpus_name](cache, seed)
    if kind in {"gpt2", "llama"}:
        start = model_path = train_small_model(corpus, kind, cache, seed=seed, progress=progress)
    else:
        start, rank = prepare_smollm2(cache), LORA_RANK if kind == "lora" else None
        model_path = fine_tune(corpus, start, cache, rank, seed=seed, progress=progress)
    model = load_model(str(model_path))
    assert model.tokenizer is not None  # load_model always returns one
    documents, queries = corpus.tokenize(model.tokenizer)
    directory = corpus.save(cache / "corpora")
    return Case(name, kind, corpus, directory, start, model_path, model, documents, queries)
