"""Tables of scores by EleutherAI's bergson: made in its own process, checked, and kept in files.

Legend: q queries, n documents.

It gets token ids and labels, not texts, so that it cannot tokenise in another way. Its convention is ours: the loss is
taken over the token after a position where `labels` is not -100, and summed over a document.
"""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from benchmarks.models.cases import Case
from benchmarks.models.small_models import SMALL_MODELS
from benchmarks.upstream.environment import VERSION, Upstream
from benchmarks.upstream.methods import METHODS, Inputs, Method
from benchmarks.upstream.repeated_training import closed_documents, save_start, training_settings
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.trainers import tokens_sha256
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.atomic_files import atomic_directory
from bergson_core.utils.scratch_directories import scratch_directory

_IGNORED_LABEL: Final = -100
_TOKEN_BATCH_SIZE: Final = 2048
"""Its default. It takes no more than the model's context, which small models have less of."""
_LARGEST_GIB: Final = 4
"""Whole gradients of the queries that are taken. They lie on the disk twice, and in memory."""
_KIBIBYTES_IN_GIBIBYTE: Final = 2**20
_QUOTED_CHARACTERS: Final = 2000


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of a method.

    Attributes:
        title: Name of the method in tables.
        scores: Score of each document with each of the first q queries [q, n]; a higher one helps more.
        modules: Names of the modules whose gradients were taken; empty if all weights count.
        seconds: Time of the process, its imports included.
        cpu_seconds: Time that it computed, on all cores together; other work on the machine hardly changes it.
        peak_gib: Its peak memory, in GiB.
        versions: Versions of what it ran on.
        steps: The configuration that it ran.
    """

    title: str
    scores: Float[np.ndarray, "q n"]
    modules: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    peak_gib: float
    versions: Mapping[str, str]
    steps: Sequence[Any]


def read_scores(case: Case, cache: Path) -> dict[str, ScoreTable]:
    """Returns the tables of a case that are in the cache, by name of the method; nothing is computed."""
    directories = {
        name: table_directory(case, cache, name) for name in METHODS if why_not(case, name) is None
    }
    return {name: _read_table(path) for name, path in directories.items() if path.exists()}


def why_not(case: Case, name: str) -> str | None:
    """Returns why a method cannot be run on a case, or None."""
    method = METHODS[name]
    if method.trains and case.kind not in SMALL_MODELS:
        return "it differentiates a training twice, which takes hours on a CPU for a pretrained model"
    weights = sum(module.parameter_count for module in case.model.select_modules().values())
    gib = len(_choose_queries(case, method, None)) * weights * 4 / 2**30
    if method.whole_gradients and gib > _LARGEST_GIB:
        return f"the whole gradients of its queries take {gib:.0f} GiB, and it holds all of them in memory"
    return None


def make_scores(
    case: Case, cache: Path, name: str, upstream: Upstream, queries: int | None = None
) -> ScoreTable:
    """Returns the table of a method, which is made unless it is in the cache.

    Args:
        case: Model, documents and queries.
        cache: Directory that keeps tables.
        name: A key of `METHODS`.
        upstream: The installed bergson.
        queries: Number of queries to take, the first ones; None takes as many as the method does by default.

    Raises:
        InvalidInput: The run fails; the message quotes the end of its output.
    """
    method = METHODS[name]
    directory = table_directory(case, cache, name, queries)
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory() as scratch, atomic_directory(directory) as temporary:
            inputs = prepare_inputs(case, method, scratch, queries)
            steps = method.steps(inputs)
            costs = run_steps(upstream, inputs.directory, steps)
            scores = read_score_file(inputs.scores)
            facts = {
                "title": method.title,
                "modules": _tracked_modules(inputs.directory),
                **costs,
                "versions": dict(upstream.versions),
                "steps": steps,
            }
            np.save(temporary / "scores.npy", -scores if method.negate else scores)
            (temporary / "run.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return _read_table(directory)


def table_directory(case: Case, cache: Path, name: str, queries: int | None = None) -> Path:
    """Returns the directory of a table: its name ends in a hash of all that the scores depend on."""
    method = METHODS[name]
    chosen = _choose_queries(case, method, queries)
    placeholders = _inputs(case, method, Path("model"), Path("data"), Path("run"))
    key = [
        VERSION,
        case.model.sha256,
        tokens_sha256(case.documents),
        tokens_sha256(chosen),
        method.steps(placeholders),
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache.expanduser().absolute() / "upstream" / f"{case.name}-{name}-{digest[:16]}"


def prepare_inputs(case: Case, method: Method, scratch: Path, queries: int | None = None) -> Inputs:
    """Writes what a run reads into a directory, and returns where it lies."""
    model, documents = case.model_path, case.documents
    if method.trains:
        model = save_start(case, scratch / "model")
        documents = closed_documents(case)
    inputs = _inputs(case, method, model, scratch, scratch / "runs")
    inputs.directory.mkdir()
    write_tokens(inputs.documents, documents)
    write_tokens(inputs.queries, _choose_queries(case, method, queries))
    return inputs


def read_score_file(directory: Path) -> Float[np.ndarray, "q n"]:
    """Returns the scores that it wrote.

    Raises:
        InvalidInput: It left a score out.
    """
    info = json.loads((directory / "info.json").read_text("utf-8"))
    rows = np.memmap(
        directory / "scores.bin", dtype=np.dtype(info["dtype"]), mode="r", shape=(info["num_rows"],)
    )
    numbers = range(info["num_scores"])
    if not all(rows[f"written_{number}"].all() for number in numbers):
        raise InvalidInput(f"bergson {VERSION} left documents without a score")
    return np.stack([rows[f"score_{number}"] for number in numbers]).astype(np.float32)


def _inputs(case: Case, method: Method, model: Path, data: Path, directory: Path) -> Inputs:
    return Inputs(
        model=model,
        documents=data / "documents.jsonl",
        queries=data / "queries.jsonl",
        directory=directory,
        token_batch_size=min(_TOKEN_BATCH_SIZE, case.model.max_tokens or _TOKEN_BATCH_SIZE),
        training=training_settings(case) if method.trains else {},
    )


def _choose_queries(case: Case, method: Method, queries: int | None) -> list[Tokens]:
    return case.queries[: method.queries if queries is None else queries]


def write_tokens(path: Path, texts: Sequence[Tokens]) -> None:
    rows = (
        {
            "input_ids": tokens.ids.tolist(),
            "labels": np.where(tokens.labels, tokens.ids, _IGNORED_LABEL).tolist(),
            "length": len(tokens.ids),
        }
        for tokens in texts
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def run_steps(upstream: Upstream, directory: Path, steps: Sequence[Any]) -> dict[str, float]:
    """Runs steps, and returns what they cost, as `ScoreTable` names it.

    Raises:
        InvalidInput: The process fails.
    """
    # JSON is YAML, and the name has to end in what it takes for a configuration.
    config, log = directory / "steps.yaml", directory / "log"
    config.write_text(json.dumps({"run_path": str(directory / "run"), "steps": steps}), "utf-8")
    environment = os.environ | {
        "HF_HOME": str(directory / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
    }
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*upstream.command, str(config)], cwd=directory, env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        message = log.read_text("utf-8", errors="replace").strip()[-_QUOTED_CHARACTERS:]
        raise InvalidInput(f"bergson {VERSION} ended with status {process.returncode}: {message}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / _KIBIBYTES_IN_GIBIBYTE,
    }


def _tracked_modules(directory: Path) -> list[str]:
    """Returns the modules of the queries' gradients, in the order of their columns."""
    for path in (directory / "query" / "info.json", directory / "run" / "query" / "info.json"):
        if path.is_file():
            return list(json.loads(path.read_text("utf-8"))["grad_sizes"])
    return []


def _read_table(directory: Path) -> ScoreTable:
    facts = json.loads((directory / "run.json").read_text("utf-8"))
    scores = np.load(directory / "scores.npy", allow_pickle=False)
    return ScoreTable(**facts | {"scores": scores, "modules": tuple(facts["modules"])})
