"""Trains a model again on parts of its data: what would it say without these documents?

Legend: n documents, q queries, M runs.

Each run keeps some documents and is given a seed of its own; what is known of it afterwards are the losses of the
queries. These are kept on disk under a hash of all that they depend on, one file a run: what was computed before is not
computed again, and a broken series goes on where it was.
"""

import hashlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
from jaxtyping import Bool, Float64
from transformers import AutoModelForCausalLM

from bergson_core.data.batching import Tokens
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.evaluation.training_loop import reproducible, train
from bergson_core.models.forward_backward import document_losses
from bergson_core.models.loading import LanguageModel, as_language_model, load_model
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.utils.atomic_files import write_atomically

_SAID: Final = 300
"""Characters of a failed command's last words that its error repeats."""

Told = Callable[[int, int], None]
"""Called with (runs done, runs in all)."""


class Trainer(Protocol):
    """Makes a model from some of the documents. It is sent to other processes."""

    def key(self) -> dict[str, Any]:
        """All that a run depends on but its documents and seed, as JSON."""
        ...

    def run(self, kept: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        """The model that was trained on the documents that are `kept`."""
        ...


@dataclass(frozen=True)
class BuiltInTrainer:
    """Our own loop (`trainer`), from the weights of the model `start`, or, with `scratch`, from new ones of its shape.

    New weights are the same in all runs; a run's seed decides the order of its documents.
    """

    start: str
    documents: Sequence[Tokens]
    schedule: TrainingSchedule
    scratch: bool
    sha256: str
    """Content of the model `start`."""
    revision: str | None = None

    def key(self) -> dict[str, Any]:
        about = [documents_sha256(self.documents), asdict(self.schedule), self.scratch, self.sha256]
        return {"own": about}

    def run(self, kept: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        threads = self.schedule.threads
        start = load_model(self.start, self.revision)
        assert start.tokenizer is not None  # load_model always gives one
        with reproducible(0, threads):
            model = AutoModelForCausalLM.from_config(start.model.config) if self.scratch else start.model
        model = model.to(start.device).requires_grad_(True)
        with reproducible(seed, threads):
            documents = [one for one, keep in zip(self.documents, kept, strict=True) if keep]
            train(model, documents, cast("int | None", start.tokenizer.eos_token_id), self.schedule)
        return as_language_model(model.requires_grad_(False), start.tokenizer)


@dataclass(frozen=True)
class CommandTrainer:
    """A command of the user's, with {dataset}, {output} and {seed} in it; no shell is between.

    {dataset} is a JSON Lines file of the `rows` that are kept, {output} the directory where the command leaves the
    model as save_pretrained writes it.
    """

    command: str
    rows: Sequence[dict[str, Any]]

    def key(self) -> dict[str, Any]:
        return {"command": self.command, "rows": hashlib.sha256(json.dumps(self.rows).encode()).hexdigest()}

    def run(self, kept: Bool[np.ndarray, " n"], seed: int) -> LanguageModel:
        """Raises `InvalidInput`, with the command's last words, where it fails or leaves no model."""
        with tempfile.TemporaryDirectory(prefix="bergson-") as directory:
            dataset, output = Path(directory) / "documents.jsonl", Path(directory) / "model"
            rows = (row for row, keep in zip(self.rows, kept, strict=True) if keep)
            dataset.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            places = {"{dataset}": str(dataset), "{output}": str(output), "{seed}": str(seed)}
            words = [_filled(word, places) for word in shlex.split(self.command)]
            try:
                done = subprocess.run(words, capture_output=True, text=True, errors="replace")
            except OSError as error:
                raise InvalidInput(f"the training command cannot be run: {error}") from None
            if done.returncode != 0:
                said = (done.stderr or done.stdout).strip()[-_SAID:]
                raise InvalidInput(f"the training command ended with status {done.returncode}: {said}")
            return load_model(str(output))


def check_command(command: str) -> None:
    """Raises `InvalidInput` where a training command does not say where data and model go."""
    missing = [place for place in ("{dataset}", "{output}") if place not in command]
    if missing:
        raise InvalidInput(
            f"the training command has no {' and no '.join(missing)}; expected something like 'python train.py --data "
            "{dataset} --output {output} --seed {seed}'"
        )


def random_subsets(documents: int, runs: int, share: float, seed: int) -> list[Bool[np.ndarray, " n"]]:
    """`runs` random parts that keep `share` of the documents, the same for the same seed."""
    generator = np.random.Generator(np.random.Philox(seed))
    kept = []
    for _ in range(runs):
        part = np.zeros(documents, dtype=bool)
        part[generator.permutation(documents)[: round(share * documents)]] = True
        kept.append(part)
    return kept


def losses_after_retraining(
    trainer: Trainer,
    parts: Sequence[Bool[np.ndarray, " n"]],
    seeds: Sequence[int],
    queries: Sequence[Tokens],
    cache: Path,
    *,
    processes: int = 1,
    told: Told = lambda done, total: None,
) -> Float64[np.ndarray, "M q"]:
    """The loss of each query's labelled tokens, in nats, after training on each of `parts` with the seed beside it.

    Runs that failed raise one `InvalidInput` that names them, when the others are done and kept.
    """
    cache.mkdir(parents=True, exist_ok=True)
    shared = [trainer.key(), documents_sha256(queries)]
    files = [cache / f"{_run_key(shared, *one)}.json" for one in zip(parts, seeds, strict=True)]
    wanted = [_Run(k, parts[k], seeds[k], path) for k, path in enumerate(files) if not path.is_file()]
    failed: dict[int, str] = {}
    known = len(files) - len(wanted)
    told(known, len(files))
    for done, (number, error) in enumerate(_outcomes(trainer, queries, wanted, processes), start=known + 1):
        if error is not None:
            failed[number] = error
        told(done, len(files))
    if failed:
        number, why = min(failed.items())
        raise InvalidInput(
            f"{len(failed)} of {len(files)} training runs failed, the first of them run {number}: {why}. The others "
            f"are kept in {cache}: mend it and start again"
        )
    return np.array([json.loads(path.read_text()) for path in files])


@dataclass(frozen=True)
class _Run:
    number: int
    kept: np.ndarray
    seed: int
    path: Path


def _outcomes(
    trainer: Trainer, queries: Sequence[Tokens], runs: Sequence[_Run], processes: int
) -> Iterator[tuple[int, str | None]]:
    """(number, what went wrong if anything did) of each run as it ends."""
    if processes == 1:
        yield from ((run.number, _make(trainer, queries, run)) for run in runs)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _prepare, (trainer, queries))
    try:
        running = {pool.submit(_make_here, run): run.number for run in runs}
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_here: tuple[Trainer, Sequence[Tokens]]
"""What the runs of a process share: sent once, when it starts."""


def _prepare(trainer: Trainer, queries: Sequence[Tokens]) -> None:
    global _here
    _here = trainer, queries


def _make_here(run: _Run) -> str | None:
    return _make(*_here, run)


def _make(trainer: Trainer, queries: Sequence[Tokens], run: _Run) -> str | None:
    """Leaves the run's losses at its path; returns what went wrong if anything did."""
    try:
        losses = document_losses(trainer.run(run.kept, run.seed), queries)
    except BergsonError as error:
        return str(error)
    if not np.isfinite(losses).all():
        return "the loss of a query is not finite under the trained model"
    write_atomically(run.path, json.dumps(losses.tolist()).encode())
    return None


def documents_sha256(documents: Sequence[Tokens]) -> str:
    """sha256 of token rows."""
    whole = hashlib.sha256()
    for one in documents:
        whole.update(len(one.ids).to_bytes(8, "little") + one.ids.tobytes() + one.labels.tobytes())
        whole.update(np.float64(one.weight).tobytes())
    return whole.hexdigest()


def _run_key(shared: Sequence[Any], kept: Bool[np.ndarray, " n"], seed: int) -> str:
    about = [*shared, hashlib.sha256(np.packbits(kept).tobytes()).hexdigest(), seed]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _filled(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word
