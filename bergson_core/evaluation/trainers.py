"""Ways to train a model again on some of its documents: the built-in training loop, and a command of the user's.

Legend: n documents.

A trainer is told which documents to train on by a mask over all documents, and gets a seed for each run. Trainers are
pickled and sent to other processes.
"""

import hashlib
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, cast

import numpy as np
from jaxtyping import Bool
from transformers import AutoModelForCausalLM

from bergson_core.errors import InvalidInput
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.loading import default_device, load_model
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.scratch_directories import scratch_directory

_QUOTED_CHARACTERS: Final = 300
"""Characters from the end of a failed command's output that the error message quotes."""


class Trainer(Protocol):
    """Trains a model on some of the documents."""

    def cache_key(self) -> dict[str, Any]:
        """Returns, as JSON, everything that a run depends on except its documents and its seed."""
        ...

    def train(self, subset: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        """Trains on the documents where `subset` is true and returns the model."""
        ...


@dataclass(frozen=True)
class BuiltInTrainer:
    """Trains with the loop of `training_loop`.

    With `scratch`, training starts from new weights, which are the same in all runs: the seed of a run decides only the
    order of its documents.

    Attributes:
        start: Name or path of the model that training starts from, or, with `scratch`, whose shape it takes.
        documents: All documents.
        schedule: Batch size, number of steps and learning rate.
        scratch: Start from new weights instead of those of `start`.
        sha256: Hash of the content of the model `start`.
        revision: Revision of `start` on the Hugging Face Hub.
        adapter_base: Directory of the model that the adapters `start` belong to, in place of the name that they give.
    """

    start: str
    documents: Sequence[Tokens]
    schedule: TrainingSchedule
    scratch: bool
    sha256: str
    revision: str | None = None
    adapter_base: str | None = None

    def cache_key(self) -> dict[str, Any]:
        """Returns, as JSON, everything that a run depends on except its documents and its seed."""
        return {"own": [tokens_sha256(self.documents), asdict(self.schedule), self.scratch, self.sha256]}

    def train(self, subset: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        """Trains on the documents where `subset` is true and returns the model."""
        threads = self.schedule.threads
        start = load_model(self.start, self.revision, device=default_device(), adapter_base=self.adapter_base)
        assert start.tokenizer is not None  # load_model always returns one
        with reproducible(0, threads):
            model = AutoModelForCausalLM.from_config(start.model.config) if self.scratch else start.model
        model = model.to(start.device).requires_grad_(True)
        documents = [document for document, included in zip(self.documents, subset, strict=True) if included]
        end_token = cast("int | None", start.tokenizer.eos_token_id)
        with reproducible(seed, threads):
            train_causal_model(model, documents, end_token, self.schedule)
        return as_language_model(model.requires_grad_(False), start.tokenizer)


@dataclass(frozen=True)
class CommandTrainer:
    """Trains with a command, which runs without a shell.

    Attributes:
        command: The command. `{dataset}` in it is replaced by a JSON Lines file of the documents to train on,
            `{output}` by the directory where the command leaves the model, as `save_pretrained` writes it, and
            `{seed}` by the seed of the run.
        documents: All documents, as they are written to the JSON Lines file.
    """

    command: str
    documents: Sequence[dict[str, Any]]

    def cache_key(self) -> dict[str, Any]:
        """Returns, as JSON, everything that a run depends on except its documents and its seed."""
        documents_sha256 = hashlib.sha256(json.dumps(self.documents).encode()).hexdigest()
        return {"command": self.command, "rows": documents_sha256}

    def train(self, subset: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        """Runs the command on the documents where `subset` is true and returns the model that it leaves.

        Raises:
            InvalidInput: The command cannot be run or fails; the message quotes the end of its output.
            ModelNotFound: The command leaves no model.
        """
        with scratch_directory() as directory:
            dataset, output = directory / "documents.jsonl", directory / "model"
            documents = (
                document for document, included in zip(self.documents, subset, strict=True) if included
            )
            dataset.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
            values = {"{dataset}": str(dataset), "{output}": str(output), "{seed}": str(seed)}
            arguments = [_fill_placeholders(word, values) for word in shlex.split(self.command)]
            try:
                process = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
            except OSError as error:
                raise InvalidInput(f"the training command cannot be run: {error}") from None
            if process.returncode != 0:
                message = (process.stderr or process.stdout).strip()[-_QUOTED_CHARACTERS:]
                raise InvalidInput(f"the training command ended with status {process.returncode}: {message}")
            return load_model(str(output))


def require_placeholders(command: str) -> None:
    """Raises `InvalidInput` unless a training command contains both {dataset} and {output}."""
    missing = [placeholder for placeholder in ("{dataset}", "{output}") if placeholder not in command]
    if missing:
        raise InvalidInput(
            f"the training command has no {' and no '.join(missing)}; expected something like 'python train.py --data "
            "{dataset} --output {output} --seed {seed}'"
        )


def tokens_sha256(documents: Sequence[Tokens]) -> str:
    """Returns the sha256 of tokenised documents: their ids, labels and weights."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.ids).to_bytes(8, "little"))
        digest.update(document.ids.tobytes() + document.labels.tobytes())
        digest.update(np.float64(document.weight).tobytes())
        if document.pair is not None:
            digest.update(repr(document.pair).encode())
    return digest.hexdigest()


def _fill_placeholders(word: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word
