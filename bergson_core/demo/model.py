"""A small GPT-NeoX that knows the facts of `facts.py` by heart, and where it is kept.

What is saved is an ordinary Hugging Face directory, so that nothing downstream knows where the model came from.
How it is trained is in `demo_training`, which is loaded only where there is something to train.
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

_STAMP = "trained"  # no .json: what it says (seconds) must not change the hash of the model's content
_STAMP_VERSION = 1


@dataclass(frozen=True)
class TrainingReport:
    """`accuracy` is the share of queries answered exactly by greedy decoding; `seconds` is wall time."""

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
    """Trains a model on the corpus' documents and saves it with its tokenizer in `directory`.

    A directory that holds the model of equal arguments is left as it is and its report returned; one that holds
    another demo model is replaced. The directory appears at once and whole, or not at all. Raises `InvalidInput` for
    a corpus without documents or queries, for a directory that holds anything else, and where the model recites
    fewer facts than `recipe.target`.
    """
    directory, recipe = Path(directory), recipe or DemoRecipe()
    if not corpus.documents or not corpus.queries:
        raise InvalidInput("the corpus has no documents or no queries; expected one of make_corpus")
    fingerprint = _fingerprint(corpus, seed, recipe)
    if (known := _trained_before(directory, fingerprint)) is not None:
        return known
    from bergson_core.demo.train import train

    started = time.perf_counter()
    model, tokenizer, steps, accuracy = train(corpus, seed, recipe, progress)
    if accuracy < recipe.target:
        raise InvalidInput(
            f"after {steps} steps the model recites {accuracy:.0%} of the facts, fewer than the {recipe.target:.0%} "
            "asked for; take fewer people or more epochs"
        )
    report = TrainingReport(accuracy, time.perf_counter() - started, steps, model.num_parameters())
    _publish(directory, model, tokenizer, {"fingerprint": fingerprint, "report": asdict(report)})
    return report


def _fingerprint(corpus: FactCorpus, seed: int, recipe: DemoRecipe) -> str:
    """sha256 of everything that the trained model depends on, versions of libraries aside."""
    everything = [_STAMP_VERSION, seed, asdict(recipe), asdict(corpus)]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _trained_before(directory: Path, fingerprint: str) -> TrainingReport | None:
    """The report of the model in `directory`, if it is the one; `InvalidInput` if what is there is not ours."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    try:
        stamp = json.loads((directory / _STAMP).read_text("utf-8"))
        known, report = stamp["fingerprint"], TrainingReport(**stamp["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{directory} holds no demo model, and is not overwritten; name another place"
        ) from error
    return report if known == fingerprint and (directory / "model.safetensors").is_file() else None


def _publish(
    directory: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", stamp: dict[str, object]
) -> None:
    """Writes beside the place, flushes to disk and renames; an older demo model there is removed."""
    with atomic_directory(directory) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")
