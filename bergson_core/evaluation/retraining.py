"""The losses of queries after the model was trained again on subsets of its documents.

Legend: n documents, q queries, M training runs.

Each run trains on a subset of the documents with a seed of its own. Of the trained model only the losses of the queries
are kept: one JSON file for each run, named by a hash of everything that the losses depend on. A run whose file exists
is not computed again, so that an interrupted series continues where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.evaluation.trainers import Trainer, tokens_sha256
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.atomic_files import write_atomically
from bergson_core.utils.disk_errors import translate_disk_errors

RunCallback = Callable[[int, int], None]
"""Called with (number of finished runs, number of all runs)."""


def random_subsets(documents: int, runs: int, share: float, seed: int) -> list[Bool[np.ndarray, " n"]]:
    """Draws a random subset of the documents for each run.

    Args:
        documents: Number of documents, n.
        runs: Number of subsets.
        share: Share of the documents that are in a subset.
        seed: Equal seeds give equal subsets.

    Returns:
        Masks that are true for the documents of a subset.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    subsets = []
    for _ in range(runs):
        subset = np.zeros(documents, dtype=bool)
        subset[generator.permutation(documents)[: round(share * documents)]] = True
        subsets.append(subset)
    return subsets


def losses_after_retraining(
    trainer: Trainer,
    subsets: Sequence[Bool[np.ndarray, " n"]],
    seeds: Sequence[int],
    queries: Sequence[Tokens],
    cache: Path,
    *,
    processes: int = 1,
    on_run: RunCallback = lambda done, total: None,
) -> Float64[np.ndarray, "M q"]:
    """Trains on each subset and returns the losses of the queries after each run.

    Args:
        trainer: Trains on a subset of its documents.
        subsets: Masks that are true for the documents that a run trains on.
        seeds: A seed for each run.
        queries: The queries whose losses are computed.
        cache: Directory for the files of losses; it is made if it does not exist.
        processes: Number of runs at the same time, each in a process of its own if more than one.
        on_run: Called once at the start, and then after each run.

    Returns:
        The summed loss over the labelled tokens of each query, in nats.

    Raises:
        InvalidInput: Runs failed. The error names the first of them and is raised after the losses of all other runs
            are stored.
    """
    with translate_disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    shared_inputs = [trainer.cache_key(), tokens_sha256(queries)]
    runs = [
        _Run(number, subset, seed, cache / f"{_run_key(shared_inputs, subset, seed)}.json")
        for number, (subset, seed) in enumerate(zip(subsets, seeds, strict=True))
    ]
    pending = [run for run in runs if not run.losses_file.is_file()]
    errors: dict[int, str] = {}
    done = len(runs) - len(pending)
    on_run(done, len(runs))
    for number, error in _iter_finished(trainer, queries, pending, processes):
        done += 1
        if error is not None:
            errors[number] = error
        on_run(done, len(runs))
    if errors:
        number, error = min(errors.items())
        raise InvalidInput(
            f"{len(errors)} of {len(runs)} training runs failed, the first of them run {number}: {error}. The losses "
            f"of the other runs are stored in {cache}: correct the cause and start again"
        )
    return np.array([json.loads(run.losses_file.read_text()) for run in runs])


@dataclass(frozen=True)
class _Run:
    number: int
    subset: np.ndarray
    seed: int
    losses_file: Path


def _iter_finished(
    trainer: Trainer, queries: Sequence[Tokens], runs: Sequence[_Run], processes: int
) -> Iterator[tuple[int, str | None]]:
    """Yields (run number, error message or None) for each run as it ends."""
    if processes == 1:
        yield from ((run.number, _compute_losses(trainer, queries, run)) for run in runs)
        return
    safe_path = os.environ.get("PYTHONSAFEPATH")
    inputs = trainer, queries, safe_path
    # A process that starts would import the first modules that it needs from its working directory. The pool itself
    # starts one, the resource tracker.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _set_worker_inputs, inputs)
        try:
            numbers = {pool.submit(_compute_losses_in_worker, run): run.number for run in runs}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    finally:
        _restore_safe_path(safe_path)


def _restore_safe_path(value: str | None) -> None:
    """Sets PYTHONSAFEPATH as the user has set it, for the user's training command."""
    if value is None:
        os.environ.pop("PYTHONSAFEPATH", None)
    else:
        os.environ["PYTHONSAFEPATH"] = value


_worker_inputs: tuple[Trainer, Sequence[Tokens]]
"""Trainer and queries of a worker process, which are sent to it once, when it starts."""


def _set_worker_inputs(trainer: Trainer, queries: Sequence[Tokens], safe_path: str | None) -> None:
    global _worker_inputs
    _restore_safe_path(safe_path)
    _worker_inputs = trainer, queries


def _compute_losses_in_worker(run: _Run) -> str | None:
    return _compute_losses(*_worker_inputs, run)


def _compute_losses(trainer: Trainer, queries: Sequence[Tokens], run: _Run) -> str | None:
    """Trains and writes the losses of the queries to the run's file; returns an error message if that fails."""
    try:
        losses = compute_document_losses(trainer.train(run.subset, run.seed), queries)
    except BergsonError as error:
        return str(error)
    if not np.isfinite(losses).all():
        return "the loss of a query is not finite under the trained model"
    write_atomically(run.losses_file, json.dumps(losses.tolist()).encode())
    return None


def _run_key(shared_inputs: Sequence[Any], subset: Bool[np.ndarray, " n"], seed: int) -> str:
    """Returns the sha256 of everything that the losses of a run depend on."""
    inputs = [*shared_inputs, hashlib.sha256(np.packbits(subset).tobytes()).hexdigest(), seed]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
