"""Trains the demo's model, a small GPT-NeoX that recites the facts of a corpus, and keeps it in a directory.

The directory is an ordinary Hugging Face model directory, so that whatever reads it need not know where the model came
from. Beside the model it holds the file `trained`, with a fingerprint of what the model was trained from and the report
of its training. `bergson_core.demo.training`, which needs torch, is imported only if there is something to train.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import FactCorpus
from bergson_core.errors import InvalidInput
from bergson_core.schemas.training import TrainingProgress
from bergson_core.utils.atomic_files import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STAMP_FILE = "trained"
"""Has no suffix .json, so that its content (which includes the seconds of the training) stays out of the hash of the
model's content."""
_STAMP_VERSION = 1


@dataclass(frozen=True)
class TrainingReport:
    """How a training of the demo's model went.

    Attributes:
        accuracy: Share of the queries whose completion greedy decoding writes exactly, from 0 to 1.
        seconds: Wall time of the training.
        steps: Optimizer steps.
        parameters: Number of parameters of the model.
    """

    accuracy: float
    seconds: float
    steps: int
    parameters: int


def train_demo_model(
    corpus: FactCorpus,
    directory: Path | str,
    progress: TrainingProgress | None = None,
    seed: int = 0,
    recipe: DemoRecipe | None = None,
) -> TrainingReport:
    """Trains a model on the documents of a corpus and saves it, with its tokenizer, in `directory`.

    A directory that already holds the model of equal arguments is left as it is, and the report of that training is
    returned. A directory that holds another demo model is replaced. The new directory appears in one step.

    Args:
        corpus: Documents to train on, and the queries that the model has to answer afterwards.
        directory: Where the model is saved.
        progress: Called after each optimizer step.
        seed: Seed of the weights and of the order of the documents.
        recipe: Size of the model and training schedule; by default those of `DemoRecipe`.

    Raises:
        InvalidInput: The corpus has no documents or no queries, the directory holds something other than a demo model,
            or the model recites fewer facts than `recipe.target`.
    """
    directory, recipe = Path(directory), recipe or DemoRecipe()
    if not corpus.documents or not corpus.queries:
        raise InvalidInput("the corpus has no documents or no queries; expected one of make_corpus")
    fingerprint = _fingerprint(corpus, seed, recipe)
    if (earlier := _read_report(directory, fingerprint)) is not None:
        return earlier
    from bergson_core.demo.training import train_on_corpus

    started = time.perf_counter()
    trained = train_on_corpus(corpus, seed, recipe, progress)
    if trained.accuracy < recipe.target:
        raise InvalidInput(
            f"after {trained.steps} steps the model recites {trained.accuracy:.0%} of the facts; expected at least "
            f"{recipe.target:.0%}. Take fewer people or more epochs"
        )
    report = TrainingReport(
        trained.accuracy, time.perf_counter() - started, trained.steps, trained.model.num_parameters()
    )
    stamp = {"fingerprint": fingerprint, "report": asdict(report)}
    _publish(directory, trained.model, trained.tokenizer, stamp)
    return report


def _fingerprint(corpus: FactCorpus, seed: int, recipe: DemoRecipe) -> str:
    """Returns the sha256 of everything that the trained model depends on, except the versions of libraries."""
    documents = [
        {"id": d.id, "text": d.text, "fact": d.gold, "metadata": dict(d.metadata)} for d in corpus.documents
    ]
    queries = [
        {"id": q.id, "prompt": q.prompt, "completion": q.completion, "fact": q.gold} for q in corpus.queries
    ]
    inputs = [_STAMP_VERSION, seed, asdict(recipe), {"documents": documents, "queries": queries}]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _read_report(directory: Path, fingerprint: str) -> TrainingReport | None:
    """Returns the report of the model in `directory` if the model has this fingerprint, else None.

    Raises `InvalidInput` if the directory holds anything other than a demo model.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    try:
        stamp = json.loads((directory / _STAMP_FILE).read_text("utf-8"))
        stored_fingerprint, report = stamp["fingerprint"], TrainingReport(**stamp["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{directory} does not hold a demo model and is not overwritten; choose another directory"
        ) from error
    same_model = stored_fingerprint == fingerprint and (directory / "model.safetensors").is_file()
    return report if same_model else None


def _publish(
    directory: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", stamp: dict[str, object]
) -> None:
    """Writes the model's directory in one step, and removes an older demo model that is there."""
    with atomic_directory(directory) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / _STAMP_FILE).write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")
