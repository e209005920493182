"""Measures every way to score documents, on every corpus: `python -m benchmarks.quality [CASE ...] [--quick]`.

    LDS                      linear datamodelling score over models that are trained again on random halves of the
                             documents, of the scores as they are and after the soft threshold at three times the noise
    MRR, Recall@10           retrieval of the documents that are right for a query
    anti in first/last 10    share of the documents that contradict a query among its best and its worst ten
    removal                  rise of the loss when the best 1 % are left out of training (--removal RUNS)
    first 10 kept            share of the first ten that stay there when the best 100 are scored by whole gradients
    tail-patch, unlearning   change of the completion's log-probability by one step on each of the three best documents
                             (--steps)

For each case (`benchmarks.models.cases`), NAME.md and NAME.json are written to --output, and summary.md for all.
Models, losses and tables of products are kept in --data_dir, so that a run that was stopped goes on where it was.
Scores [q, n] of other programs that lie in quality/CASE-DIGEST/foreign/NAME.npy of the data directory are measured like
all others; runs.npz beside that folder has the halves and the losses.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import CASES
from benchmarks.quality.alternatives import iter_alternatives
from benchmarks.quality.experiments import Experiment, Settings, prepare_experiment
from benchmarks.quality.interventions import METHODS, Interventions
from benchmarks.quality.measures import Measurer
from benchmarks.quality.methods import BM25, Method, iter_methods
from benchmarks.quality.paired_bootstrap import mean_over_queries
from benchmarks.quality.report import Results
from benchmarks.quality.rescoring import FIRST_KEPT, ROWS, first_kept, iter_rescored, rescored_name
from benchmarks.quality.summary import write_summary
from benchmarks.support.command_line import make_parser, parse_with_names
from bergson_core.errors import BergsonError


def run_experiment(experiment: Experiment, interventions: Interventions, *, alternatives: bool) -> Results:
    """Measures all methods of an experiment.

    Args:
        experiment: The experiment.
        interventions: What is done to the best documents of some methods.
        alternatives: Whether the methods of `alternatives` are measured too.
    """
    results, measurer = Results(experiment), Measurer(experiment)
    tables: dict[str, np.ndarray] = {}

    def measure(methods: Iterator[Method]) -> None:
        computing = time.perf_counter()
        for method in methods:
            measuring = time.perf_counter()
            results.add(method, measurer.measure(method))
            if method.name in {BM25, *ROWS, *map(rescored_name, ROWS), *interventions.methods}:
                tables[method.name] = method.scores
            ended = time.perf_counter()
            for part, seconds in ((method.group, measuring - computing), ("measures", ended - measuring)):
                results.seconds[part] = results.seconds.get(part, 0) + seconds
            computing = ended

    measure(iter_methods(experiment))
    measure(iter_rescored(experiment, tables))
    for name in ROWS:
        if (rescored := tables.get(rescored_name(name))) is not None:
            kept = mean_over_queries(first_kept(tables[name], rescored), experiment.settings.seed)
            results.measured[rescored_name(name)] |= {FIRST_KEPT: kept}
    if alternatives and experiment.is_small:
        measure(iter_alternatives(experiment, tables))
    chosen = {name: tables[name] for name in interventions.methods if name in tables}
    with timed(results, "removal and steps"):
        for name, measured in interventions.measure(experiment, chosen).items():
            results.measured[name] |= measured
    return results


@contextmanager
def timed(results: Results, part: str) -> Iterator[None]:
    """Adds the seconds that the context is open to a part."""
    started = time.perf_counter()
    yield
    results.seconds[part] = results.seconds.get(part, 0) + time.perf_counter() - started


def main() -> None:
    """Runs the chosen experiments, or all; the exit status is 1 if one of them cannot be run."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, help="models trained again; by default 32, of pretrained ones 0")
    parser.add_argument(
        "--removal", type=int, default=0, metavar="RUNS", help="runs of each method, for removal"
    )
    parser.add_argument("--steps", action="store_true", help="measure tail-patch and unlearning")
    parser.add_argument("--alternatives", action="store_true", help="measure what else was tried")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=METHODS, help="for removal and steps"
    )
    parser.add_argument("--quick", action="store_true", help="few documents, models that have hardly learnt")
    parser.add_argument("--processes", type=int, default=2, help="models that are trained at the same time")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of corpora, trainings, halves and intervals"
    )
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps all that is expensive")
    parser.add_argument("--output", type=Path, help="directory for tables; by default quality in --data_dir")
    options = parse_with_names(parser, CASES, "case")
    if options.removal == 1:
        parser.error("--removal: expected 0, or 2 runs and more, which are compared with each other")
    data_dir = options.data_dir.expanduser().absolute()
    settings = Settings(data_dir, options.seed, options.runs, options.processes, options.quick)
    interventions = Interventions(options.removal, options.steps, tuple(options.methods))
    output, failed = options.output or data_dir / "quality" / ("quick" if options.quick else ""), []
    for name in options.names:
        started = time.perf_counter()
        try:
            experiment = prepare_experiment(name, settings)
            prepared = time.perf_counter() - started
            results = run_experiment(experiment, interventions, alternatives=options.alternatives)
        except BergsonError as error:
            failed.append(f"{name}: {error}")
            continue
        results.seconds = {"training": prepared, **results.seconds}
        markdown, _ = results.write(output)
        write_summary(output)
        parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in results.seconds.items())
        print(f"{name}: {len(results.methods)} methods in {markdown}; {parts}", flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
