"""Whether sign rows are found faster by the query's own largest numbers, which was tried beside the Hamming distance.

    python -m benchmarks.largest_numbers recall [--documents 6144]
    python -m benchmarks.largest_numbers speed [--rows 250000]       needs numba: pip install numba

`recall` builds an index of the paragraphs of docstrings that are installed here (kfac, sign rows of p = 32, block norm,
the Llama of `benchmarks.models`), and asks it the last quarters of 48 others. It prints the share of the ten best rows
that are among as many candidates as 0.5, 1, 2.5 and 5 % of the rows, if candidates are the rows with the highest sums
over the query's largest numbers: of the numbers themselves, of powers of two near them (2 bits), or of their signs. A
"run" is the number of neighbouring dimensions that are chosen together: bits of single dimensions are scattered over
the memory, those of whole runs less so.

`speed` compares one thread's processor time: the Hamming distance over all bits, stored by row, and a kernel that
counts the signs that agree in 2,048 of 16,384 dimensions, stored by dimension in blocks of rows (`support.bit_planes`).
The rows are random.
"""

import json
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.corpora.docstring_paragraphs import iter_paragraphs
from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import load_case
from benchmarks.support.bit_planes import CountAgreeing, compile_counter
from benchmarks.support.command_line import make_parser
from bergson_core import AttributionIndex, build_index
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.build import BuildSpec, GradientSpec, ScoringSpec, SearchSpec
from bergson_core.schemas.source import DatasetSpec
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.tokenization import Tokens, tokenize

QUERIES, TOP_K = 48, 10
SHARES = (0.005, 0.01, 0.025, 0.05)
COUNTS, RUNS = (1024, 2048, 3072, 4096, 6144), (1, 8, 32)
DIMENSIONS, CHOSEN, BATCH_SIZE, ROUNDS = 16_384, 2_048, 32, 5
BLOCK_WORDS = (64, 512)
"""Words of a block of rows: of the 4,096 rows that a shard has by default, and of eight times as many."""


def measure_recall(documents: int, cache: Path) -> None:
    """Prints the recall of candidates from the largest numbers of real queries."""
    texts = list(iter_installed_paragraphs(documents + QUERIES))
    case = load_case("docstring_paragraphs", cache)
    with tempfile.TemporaryDirectory() as directory:
        path, root = Path(directory) / "texts.jsonl", Path(directory) / "index"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:documents]))
        spec = BuildSpec(
            model=str(case.model_path),
            dataset=DatasetSpec(path=str(path)),
            long_documents="truncate",
            gradients=GradientSpec(normalizer="kfac", rows="sign", projection_dim=32),
            scoring=ScoringSpec(normalize="block"),
            search=SearchSpec(min_recall=0.5),
        )
        build_index(spec, root)
        index = AttributionIndex.open(root)
        assert index.model.tokenizer is not None  # load_model always returns one
        endings = [label_end(tokens) for tokens in tokenize(index.model.tokenizer, texts[documents:], None)]
        query_rows, _ = collect_rows(index.collector, endings, BUDGET_TOKENS)
        modules = len(index.collector.slices)
        phi, _ = index.profiles["default"].prepare_queries(
            torch.from_numpy(query_rows).reshape(len(query_rows), modules, -1)
        )
        signs = torch.cat([shard.rows(slice(None)).flatten(1) for shard in index.shards]).sign()
    print(
        f"{len(signs):,} rows of {phi.shape[1]:,}: recall@{TOP_K} of candidates that are so many of the rows"
    )
    print(f"{'':<44}" + "".join(f"{share:>8.1%}" for share in SHARES))
    best = (phi @ signs.mT).topk(TOP_K).indices
    print_recall("Hamming distance over all", phi.sign() @ signs.mT, best)
    for run in RUNS:
        for count in COUNTS:
            chosen = keep_largest(phi, count, run)
            energy = (chosen.square().sum(1) / phi.square().sum(1)).mean()
            name = f"{count:,} in runs of {run}" if run > 1 else f"the largest {count:,}"
            print_recall(f"{name} ({energy:.0%} of the square)", chosen @ signs.mT, best)
            if run == 1:
                print_recall("    as powers of two", round_to_powers(chosen) @ signs.mT, best)
                print_recall("    as signs", chosen.sign() @ signs.mT, best)


def iter_installed_paragraphs(count: int) -> Iterator[str]:
    """Yields so many different paragraphs of docstrings, from random source files of this Python and its packages."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    random.Random(0).shuffle(paths)
    seen: set[str] = set()
    for path in paths:
        try:
            passages = list(iter_paragraphs(path, path.stem))
        except (SyntaxError, ValueError, RecursionError):
            continue  # what tests of parsers parse
        for passage in passages:
            if passage.text not in seen:
                seen.add(passage.text)
                yield passage.text
                if len(seen) == count:
                    return


def label_end(tokens: Tokens) -> Tokens:
    """Labels the last quarter of a text alone, as a completion."""
    labels = np.zeros_like(tokens.labels)
    labels[-max(1, len(labels) // 4) :] = True
    return Tokens(tokens.ids, labels)


def keep_largest(phi: Float[Tensor, "q D"], count: int, run: int) -> Float[Tensor, "q D"]:
    """Returns the queries with 0 for all but the runs of dimensions that have the largest sums of squares."""
    squares = phi.square().unflatten(1, (-1, run)).sum(2)
    is_kept = torch.zeros_like(squares).scatter(1, squares.topk(count // run).indices, 1)
    return phi * is_kept.repeat_interleave(run, dim=1)


def round_to_powers(chosen: Float[Tensor, "q D"]) -> Float[Tensor, "q D"]:
    """Returns 1, 2, 4 or 8, with their signs, in place of the numbers that are not 0: multiples of the smallest."""
    sizes = chosen.abs()
    smallest = sizes.masked_fill(sizes == 0, torch.inf).amin(1, keepdim=True)
    powers = 2 ** (sizes / smallest).log2().round().clamp(0, 3)
    return chosen.sign() * powers


def print_recall(name: str, estimates: Float[Tensor, "q n"], best: Tensor) -> None:
    """Prints which shares of the best rows are among the highest estimates."""
    ranks = estimates.argsort(dim=1, descending=True, stable=True).argsort(1).gather(1, best)
    recalls = [(ranks < share * estimates.shape[1]).float().mean() for share in SHARES]
    print(f"{name:<44}" + "".join(f"{recall:>8.3f}" for recall in recalls), flush=True)


def measure_speed(rows: int) -> None:
    """Prints the processor time of finding candidates among random rows."""
    faiss.omp_set_num_threads(1)
    generator = np.random.default_rng(0)
    queries = generator.integers(0, 256, (BATCH_SIZE, DIMENSIONS // 8), np.uint8)
    flips = generator.choice(np.array([0, 2**64 - 1], np.uint64), CHOSEN)
    chosen = [np.sort(generator.choice(DIMENSIONS, CHOSEN, replace=False)) for _ in range(BATCH_SIZE)]
    for words in BLOCK_WORDS:
        count_agreeing = compile_counter(words)
        bits = generator.integers(0, 2**63, (max(1, rows // (64 * words)), DIMENSIONS, words), np.uint64)
        by_row = (
            bits.view(np.uint8).reshape(len(bits), 64 * words, -1).copy()
        )  # other rows: only the size counts
        started = time.process_time()
        count_agreeing(bits[0], chosen[0], flips, np.empty(64 * words, np.int16))
        print(f"blocks of {64 * words:,} rows, compiled in {time.process_time() - started:.1f} s", flush=True)
        scans = (
            partial(scan_rows, by_row, queries),
            partial(scan_dimensions, count_agreeing, bits, chosen, flips),
        )
        for count in (1, BATCH_SIZE):
            times = [[measure_ms(scan, count) for scan in scans] for _ in range(ROUNDS)]
            all_bits, largest = (statistics.median(of_scan) for of_scan in zip(*times, strict=True))
            print(
                f"    {count} at once, ms a query: {all_bits:.1f} all bits by row, {largest:.1f} {CHOSEN:,} bits by "
                f"dimension, {all_bits / largest:.2f} × as fast",
                flush=True,
            )


def scan_rows(by_row: np.ndarray, queries: np.ndarray, count: int) -> None:
    """Computes the Hamming distances of all rows to the first `count` queries."""
    untyped_faiss: Any = faiss
    distances = np.empty((by_row.shape[1], count), np.int32)
    for block in by_row:
        row_bits, query_bits, output = (faiss.swig_ptr(array) for array in (block, queries, distances))
        untyped_faiss.hammings(row_bits, query_bits, len(block), count, block.shape[1], output)


def scan_dimensions(
    count_agreeing: CountAgreeing, bits: np.ndarray, chosen: list[np.ndarray], flips: np.ndarray, count: int
) -> None:
    """Counts for all rows the signs that agree with the first `count` queries in their chosen dimensions."""
    counts = np.empty(64 * bits.shape[2], np.int16)
    for block in bits:
        for dimensions in chosen[:count]:
            count_agreeing(block, dimensions, flips, counts)


def measure_ms(scan: Callable[[int], None], count: int) -> float:
    """Returns the milliseconds of processor time that a scan takes for each of `count` queries."""
    started = time.process_time()
    scan(count)
    return 1e3 * (time.process_time() - started) / count


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("part", choices=("recall", "speed"))
    parser.add_argument("--documents", type=int, default=6144)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument(
        "--data_dir", type=Path, default=default_cache(), help="keeps the corpus and the model"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "recall":
        measure_recall(options.documents, options.data_dir)
    else:
        measure_speed(options.rows)


if __name__ == "__main__":
    main()
