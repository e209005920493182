"""Fine-tunes a model on a corpus: all of its weights, or LoRA adapters.

`FineTuner` is a trainer of `bergson_core.evaluation.retraining`, so that the model can be trained again on a part of
the documents in the same way.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from jaxtyping import Bool
from torch import nn
from transformers import PreTrainedModel

from benchmarks.corpora.corpus import Corpus
from benchmarks.models.model_cache import cached_model
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.trainers import tokens_sha256
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingProgress, TrainingSchedule
from bergson_core.tokens.tokenization import Tokens

FULL_SCHEDULE: Final = TrainingSchedule(
    batch_size=16, epochs=3, least_steps=1, learning_rate=5e-5, weight_decay=0
)
LORA_SCHEDULE: Final = TrainingSchedule(
    batch_size=16, epochs=3, least_steps=1, learning_rate=1e-3, weight_decay=0
)
LORA_RANK: Final = 8


@dataclass(frozen=True)
class FineTuner:
    """Trains a pretrained model further on some of the documents.

    Attributes:
        start: Directory of the model that training starts from.
        documents: All documents.
        schedule: Batch size, number of steps and learning rate.
        sha256: Hash of the content of the model `start`.
        lora_rank: Rank of the LoRA adapters that are trained, or None to train all weights.
        progress: Called after each step.
    """

    start: str
    documents: Sequence[Tokens]
    schedule: TrainingSchedule
    sha256: str
    lora_rank: int | None = None
    progress: TrainingProgress | None = None

    def cache_key(self) -> dict[str, Any]:
        """Returns, as JSON, everything that a run depends on except its documents and its seed."""
        inputs = [tokens_sha256(self.documents), asdict(self.schedule), self.lora_rank, self.sha256]
        return {"fine-tuned": inputs}

    def train(self, subset: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        """Trains on the documents where `subset` is true and returns the model.

        The adapters of all runs start from the same weights: the seed decides only the order of the documents.
        """
        start = load_model(self.start)
        assert start.tokenizer is not None  # load_model always returns one
        model = start.model
        with reproducible(0, self.schedule.threads):
            if self.lora_rank is None:
                model.requires_grad_(True)
            else:
                model = _add_adapters(model, self.lora_rank)
        documents = [document for document, included in zip(self.documents, subset, strict=True) if included]
        end_token = cast("int | None", start.tokenizer.eos_token_id)
        with reproducible(seed, self.schedule.threads):
            train_causal_model(model, documents, end_token, self.schedule, self.progress)
        return as_language_model(model.requires_grad_(False), start.tokenizer)


def fine_tune(
    corpus: Corpus,
    start: Path,
    cache: Path,
    lora_rank: int | None = None,
    schedule: TrainingSchedule | None = None,
    seed: int = 0,
    progress: TrainingProgress | None = None,
) -> Path:
    """Returns the directory of a model that was trained further on all documents of a corpus, with its tokenizer.

    Args:
        corpus: Documents to train on.
        start: Directory of the model that training starts from. Adapters refer to it by its path.
        cache: Directory that keeps models.
        lora_rank: Rank of the LoRA adapters that are trained and saved, or None to train all weights.
        schedule: Batch size, number of steps and learning rate; by default one for the kind of training.
        seed: Seed of the order of the documents.
        progress: Called after each step.

    Raises:
        InvalidInput: peft is not installed, and adapters are to be trained.
    """
    schedule = schedule or (FULL_SCHEDULE if lora_rank is None else LORA_SCHEDULE)
    model = load_model(str(start))
    assert model.tokenizer is not None  # load_model always returns one
    documents, _ = corpus.tokenize(model.tokenizer)
    tuner = FineTuner(str(start), documents, schedule, model.sha256, lora_rank, progress)

    def make(directory: Path) -> None:
        trained = tuner.train(np.ones(len(documents), dtype=bool), seed)
        cast(PreTrainedModel, trained.model).save_pretrained(directory)
        cast(Any, trained.tokenizer).save_pretrained(directory)

    kind = "full" if lora_rank is None else f"lora-{lora_rank}"
    inputs = [tuner.cache_key(), seed, str(start) if lora_rank else None]
    return cached_model(cache, f"{start.name.rpartition('-')[0]}-{corpus.name}-{kind}", inputs, make)


def _add_adapters(model: nn.Module, rank: int) -> nn.Module:
    """Returns the model with new LoRA adapters on all Linear modules but the head; only they are trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InvalidInput(
            "peft is not installed; expected the extra [evaluation], which trains LoRA adapters"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(cast(PreTrainedModel, model), config)
