"""Whole commands beside EleutherAI's bergson: `python -m benchmarks.upstream.build_times [--rounds 3]`, `make compare`.

1. A build of 512 pieces of docstrings by a GPT-NeoX of 8.4 M parameters with random weights. Ours has all defaults: it
   fits a normalizer and a preconditioner, measures its search and calibrates the notice; once more it has
   `--dtype bfloat16`. The other one is a bare `build` of rows with p = 16 in fp32, which does none of that. "Pass" is a
   process that imports, loads and tokenises as ours does, and runs the forward passes and the backward passes of the
   activations alone.
2. A build and the scores of all documents of the demo's corpus with 120 queries: ours with all defaults, and the other
   one's `trackstar` with p = 16.

Every round runs each command once, in a process of its own. Times include imports. The ratios are those of the rounds.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.corpora.docstring_paragraphs import make_docstring_paragraphs
from benchmarks.corpora.registry import default_cache
from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import prepare_demo_files
from benchmarks.support.passes import run_floor
from benchmarks.support.random_models import save_random_model
from benchmarks.upstream.environment import VERSION, Upstream, install_upstream
from benchmarks.upstream.methods import Inputs, trackstar
from benchmarks.upstream.score_tables import run_steps, write_tokens
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.loading import load_model
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens, tokenize
from bergson_core.utils.scratch_directories import scratch_directory

PIECES, PARAGRAPHS_A_PIECE, VOCABULARY = 512, 4, 4096
QUERIES: Final = 120
PROJECTION_DIM: Final = 16
_TOKEN_BATCH_SIZE: Final = 2048
"""The other one's default, of which it takes no more than the model's context."""
_BERGSON: Final = Path(sys.executable).with_name("bergson")


@dataclass(frozen=True)
class Files:
    """What the commands read.

    Attributes:
        model: Directory of the model.
        documents: JSON Lines of the documents.
        queries: JSON Lines of the queries, if there are any.
        inputs: The same as token ids, for the other bergson.
    """

    model: Path
    documents: Path
    queries: Path
    inputs: Inputs


def prepare_pieces(directory: Path) -> Files:
    """Writes pieces of docstrings, and a model with random weights and a tokenizer that is fitted to them."""
    corpus = make_docstring_paragraphs(documents=PIECES * PARAGRAPHS_A_PIECE, queries=1)
    texts = [document.text for document in corpus.documents]
    pieces = ["\n\n".join(texts[start::PIECES]) for start in range(PIECES)]
    model = save_random_model(directory / "model", "small", VOCABULARY, pieces)
    return _write(directory, model, pieces, [])


def prepare_facts(directory: Path) -> Files:
    """Writes the demo's documents and some of its queries, and trains the demo's model unless it is there."""
    demo = prepare_demo_files()
    lines = (demo / "corpus" / "documents.jsonl").read_text("utf-8").splitlines()
    queries = [
        json.loads(line) for line in (demo / "corpus" / "queries.jsonl").read_text("utf-8").splitlines()
    ]
    chosen = queries[:: len(queries) // QUERIES][:QUERIES]
    return _write(directory, demo / "model", [json.loads(line)["text"] for line in lines], chosen)


def _write(directory: Path, model: Path, texts: Sequence[str], queries: Sequence[Mapping[str, Any]]) -> Files:
    """Writes texts and queries in both forms."""
    loaded = load_model(str(model))
    files = Files(
        model=model,
        documents=directory / "texts.jsonl",
        queries=directory / "questions.jsonl",
        inputs=Inputs(
            model=model,
            documents=directory / "documents.jsonl",
            queries=directory / "queries.jsonl",
            directory=directory / "runs",
            token_batch_size=min(_TOKEN_BATCH_SIZE, loaded.max_tokens or _TOKEN_BATCH_SIZE),
            training={},
        ),
    )
    directory.mkdir(parents=True, exist_ok=True)
    _write_lines(files.documents, [{"text": text} for text in texts])
    _write_lines(files.queries, [{key: query[key] for key in ("prompt", "completion")} for query in queries])
    tokenizer = loaded.tokenizer
    assert tokenizer is not None  # load_model always returns one
    documents = tokenize(tokenizer, texts, None)
    write_tokens(files.inputs.documents, documents)
    prompts, completions = ([query[key] for query in queries] for key in ("prompt", "completion"))
    write_tokens(files.inputs.queries, tokenize(tokenizer, prompts, completions))
    print(f"{len(texts)} documents, {sum(len(document.ids) for document in documents):,} tokens", flush=True)
    return files


def _write_lines(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def build(files: Files, *options: str, then_score: bool = False) -> None:
    """Runs `bergson` with defaults but for some options; `then_score` also scores all documents with each query."""
    with tempfile.TemporaryDirectory() as directory:
        index = Path(directory) / "index"
        _run([_BERGSON, index, "--model", files.model, "--dataset", files.documents, *options])
        if then_score:
            output = Path(directory) / "scores.npy"
            _run(
                [
                    _BERGSON,
                    "score",
                    index,
                    "--queries",
                    files.queries,
                    "--aggregate",
                    "each",
                    "--output",
                    output,
                ]
            )


def build_upstream(upstream: Upstream, files: Files, *, then_score: bool = False) -> None:
    """Runs the other bergson: `build`, or `trackstar`, which also scores all documents with each query."""
    with scratch_directory() as scratch:
        inputs = replace(files.inputs, directory=scratch)
        if then_score:
            steps = trackstar(inputs, projection_dim=PROJECTION_DIM)
        else:
            settings = inputs.index("run", inputs.documents, projection_dim=PROJECTION_DIM)
            steps = [{"build": {"index_cfg": settings, "preprocess_cfg": {}}}]
        run_steps(upstream, scratch, steps)


def run_pass(model: str, documents: str) -> None:
    """Runs the passes that are the least that gradients cost, and prints their seconds; in a process of its own."""
    loaded = load_model(model)
    texts = [json.loads(line)["text"] for line in Path(documents).read_text("utf-8").splitlines()]
    assert loaded.tokenizer is not None  # load_model always returns one
    tokens: list[Tokens] = tokenize(loaded.tokenizer, texts, None)
    longest = max(len(document.ids) for document in tokens)
    batches = list(iter_batches(tokens, find_batch_budget(loaded, loaded.select_modules(), longest)))
    started = time.perf_counter()
    run_floor(loaded, batches)
    print(f"passes alone: {time.perf_counter() - started:.1f} s", flush=True)


def _run(command: Sequence[object]) -> None:
    """Runs a command without its output, and raises if it fails."""
    subprocess.run(
        [str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def measure(commands: Mapping[str, Callable[[], None]], rounds: int) -> None:
    """Prints the seconds of each command in each round, and the ratios of the others to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command()
            seconds[name].append(time.perf_counter() - started)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    ours, *_ = seconds
    print("| | seconds | median | core seconds | of ours, median |\n|---|---|---:|---:|---:|")
    for name, times in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(times, seconds[ours], strict=True))
        each = ", ".join(f"{time_s:.1f}" for time_s in times)
        cores = statistics.median(cpu_seconds[name])
        print(f"| {name} | {each} | {statistics.median(times):.1f} | {cores:.1f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that each command is run")
    parser.add_argument(
        "--pass", nargs=2, dest="passes", metavar=("MODEL", "DOCUMENTS"), help="run the passes alone"
    )
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps the other bergson")
    options = parser.parse_args()
    if options.passes:
        return run_pass(*options.passes)
    upstream = install_upstream(options.data_dir)
    print(f"bergson {VERSION} on {dict(upstream.versions)}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        pieces = prepare_pieces(Path(directory) / "pieces")
        passes = [
            sys.executable,
            "-m",
            "benchmarks.upstream.build_times",
            "--pass",
            pieces.model,
            pieces.documents,
        ]
        commands = {
            "bergson, all defaults": partial(build, pieces),
            "bergson, bfloat16": partial(build, pieces, "--dtype", "bfloat16"),
            f"bergson {VERSION} build, p = {PROJECTION_DIM}": partial(build_upstream, upstream, pieces),
            "pass": partial(subprocess.run, [str(part) for part in passes], check=True),
        }
        measure(commands, options.rounds)
        facts = prepare_facts(Path(directory) / "facts")
        commands = {
            f"bergson and bergson score, {QUERIES} queries": partial(build, facts, then_score=True),
            f"bergson {VERSION} trackstar": partial(build_upstream, upstream, facts, then_score=True),
        }
        measure(commands, options.rounds)


if __name__ == "__main__":
    main()
