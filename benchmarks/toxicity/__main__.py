"""Finds harmful rows by their influence on held-out harmful chats: `python -m benchmarks.toxicity [--seeds 3]`.

Prints a table of the area under the curve of precision over recall (AUPRC), as DATE-LM measures it, of every method in
two settings: harmful rows among benign ones (homogeneous), and with rows that ask for the same and are answered
harmlessly as well (heterogeneous). The score of a row is the mean of its scores with the references, or their max. The
numbers are means over seeds, each of which has rows and a model of its own. Brackets are 95 % intervals over seeds and
references, and ± is half of one.

Models and tables of products are kept in --data_dir. Scores [references, rows] of other programs that lie in
quality/secret_chats_SETTING-DIGEST/foreign/NAME.npy of the data directory are measured like all others.
"""

import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import numpy as np

from benchmarks.corpora.registry import default_cache
from benchmarks.corpora.world_factbook import read_installed_facts
from benchmarks.models.cases import ModelKind
from benchmarks.quality.experiments import QUICK_SCHEDULE, Experiment, Settings
from benchmarks.quality.measures import QUICK_RESAMPLES
from benchmarks.quality.methods import BM25
from benchmarks.quality.paired_bootstrap import RESAMPLES, Resampled
from benchmarks.quality.report import bracketed, describe_experiment, plus_minus
from benchmarks.support.command_line import make_parser
from benchmarks.toxicity.methods import iter_toxicity_methods, prepare_toxicity
from benchmarks.toxicity.precision_recall import AGGREGATIONS, SeedTable, measure_auprc
from benchmarks.toxicity.secret_chats import HARMFUL, Setting, Sizes, make_secret_chats
from bergson_core.errors import InvalidInput

QUICK_SIZES: Final = Sizes(benign=60, harmful=5, look_alikes=9, references=3)
HOMOGENEOUS, HETEROGENEOUS = get_args(Setting)

Scores: TypeAlias = dict[str, tuple[int | None, list[SeedTable]]]
"""Name of a method → bytes of a row, scores in the corpus of each seed."""
Measured: TypeAlias = Mapping[str, Mapping[str, Resampled]]
"""Name of a method → name of an aggregation → AUPRC."""


def score_rows(experiments: list[Experiment]) -> Scores:
    """Returns the scores of every method in the corpora of all seeds of a setting.

    Raises:
        InvalidInput: Another program has left scores for some of the seeds only.
    """
    methods: Scores = {}
    for experiment in experiments:
        kinds = np.array([document.metadata["kind"] for document in experiment.case.corpus.documents])
        for method in iter_toxicity_methods(experiment):
            _, tables = methods.setdefault(method.name, (method.row_bytes, []))
            tables.append(SeedTable(np.asarray(method.scores, dtype=np.float64), kinds == HARMFUL))
    for name, (_, tables) in methods.items():
        if len(tables) != len(experiments):
            directories = ", ".join(str(experiment.directory) for experiment in experiments)
            raise InvalidInput(f"expected scores of {name} in each of {directories}; {len(tables)} have them")
    return methods


def measure(methods: Scores, resamples: int) -> Measured:
    """Returns the AUPRC of every method by every aggregation."""
    return {
        name: {
            aggregation: measure_auprc(tables, aggregate, resamples)
            for aggregation, aggregate in AGGREGATIONS.items()
        }
        for name, (_, tables) in methods.items()
    }


def table(sizes: Mapping[str, int | None], measured: Mapping[Setting, Measured]) -> Iterator[str]:
    """Yields the lines of the table.

    Args:
        sizes: Bytes of a row of each method.
        measured: What was measured in each setting.
    """
    heterogeneous = measured[HETEROGENEOUS]
    headings = ["method", "bytes", f"{HOMOGENEOUS}, mean"]
    headings += [f"{HETEROGENEOUS}, {aggregation}" for aggregation in AGGREGATIONS]
    yield f"| {' | '.join(headings)} | mean over BM25 |"
    yield f"|---|{'---:|' * len(headings)}"
    for name, size in sizes.items():
        cells = ["" if size is None else f"{size:,}", plus_minus(measured[HOMOGENEOUS][name]["mean"])]
        cells += map(plus_minus, heterogeneous[name].values())
        cells.append(bracketed(heterogeneous[name]["mean"] - heterogeneous[BM25]["mean"]))
        yield f"| {name} | {' | '.join(cells)} |"


def describe(experiments: list[Experiment]) -> str:
    """Returns what the numbers of a setting depend on."""
    facts: list[dict[str, Any]] = [describe_experiment(experiment) for experiment in experiments]
    first, corpus = facts[0], facts[0]["corpus"]
    kinds = [document.metadata["kind"] for document in experiments[0].case.corpus.documents]
    counts = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in sorted(set(kinds)))
    losses = ", ".join(f"{fact['model']['query_loss']:.2f}" for fact in facts)
    hashes = ", ".join(fact["corpus"]["sha256"][:16] for fact in facts)
    return (
        f"{corpus['name']} ({corpus['source']}): {len(kinds):,} rows ({counts}; {kinds.count(HARMFUL) / len(kinds):.1%}"
        f" harmful), {corpus['queries']} references; {first['model']['kind']} of {first['model']['parameters']:,} "
        f"parameters, loss of the references {losses} nats a token; seeds 0 to {len(facts) - 1}, sha256 {hashes}. "
        f"{first['machine']}, {first['date']}."
    )


def make_options() -> ArgumentParser:
    """Returns the parser of the command line."""
    parser = make_parser(__doc__)
    kinds = get_args(ModelKind)
    parser.add_argument("--model", choices=kinds, default="gpt2", help="what is trained on the rows")
    parser.add_argument("--seeds", type=int, default=3, help="number of corpora and models of each setting")
    for name, size in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"number of chats; by default {size:,}")
    parser.add_argument("--quick", action="store_true", help="few rows, and models that have hardly learnt")
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps all that is expensive")
    return parser


def main() -> None:
    """Prints the table."""
    options = make_options().parse_args()
    sizes = Sizes(options.benign, options.harmful, options.look_alikes, options.references)
    sizes, schedule = (QUICK_SIZES, QUICK_SCHEDULE) if options.quick else (sizes, None)
    started, cpu_started = time.perf_counter(), time.process_time()
    source, facts = read_installed_facts()
    measured: dict[Setting, Measured] = {}
    row_bytes: dict[str, int | None] = {}
    for setting in get_args(Setting):
        experiments = [
            prepare_toxicity(
                make_secret_chats(setting, source, facts, sizes, seed),
                options.model,
                Settings(options.data_dir.expanduser().absolute(), seed, quick=options.quick),
                schedule,
            )
            for seed in range(options.seeds)
        ]
        methods = score_rows(experiments)
        measured[setting] = measure(methods, QUICK_RESAMPLES if options.quick else RESAMPLES)
        row_bytes |= {name: size for name, (size, _) in methods.items()}
        print(f"{describe(experiments)}\n", flush=True)
    cpu, wall = time.process_time() - cpu_started, time.perf_counter() - started
    print(f"{wall:.0f} s, of which {cpu:.0f} s on a core.\n")
    print(*table(row_bytes, measured), sep="\n")


if __name__ == "__main__":
    main()
