"""Measures queries that are refined by conjugate gradients on the Gauss-Newton matrix of the documents.

`python -m benchmarks.quality.conjugate_gradients [CASE]` prints a Markdown table: the linear datamodelling score, raw
and after the soft threshold, of the scores of whole gradients with EK-FAC, with refined queries, and with what
`benchmarks.quality` measures best, and the differences to whole gradients with K-FAC, on the same queries and runs.

    EK-FAC, c = C, none            inner products with (E + C M)⁻¹ v, where E is EK-FAC's matrix
    CG, c = C, k = K, none         the same after K iterations, where the Gauss-Newton matrix is in the place of E
    ..., row                       divided by the length of the document's gradient that EK-FAC whitens

`left` is what is left of the systems, in units of their right sides. The queries lie evenly among those of the corpus.
What the iterations computed, the models and the losses are kept in --data_dir.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import CASES
from benchmarks.models.small_models import SMALL_MODELS
from benchmarks.quality.conjugate_gradients.refined_queries import DAMPINGS, RefinedQueries, refine_queries
from benchmarks.quality.experiments import Experiment, Settings, prepare_experiment
from benchmarks.quality.measures import LDS, LDS_THRESHOLDED, Measured, Measurer
from benchmarks.quality.methods import BM25, REFERENCE, Method, iter_baselines, iter_whole_gradients
from benchmarks.quality.module_sets import ALL, select_module_sets
from benchmarks.quality.paired_bootstrap import Resampled
from benchmarks.support.command_line import make_parser
from bergson_core.schemas.build import MODULE_SETS

REPORTED: Final = (1, 2, 3, 5, 8, 12, 20)
"""Iterations that are measured, up to as many as there were."""
REFINED: Final = "CG"
_SMALL_CASES: Final = [name for name, (_, kind) in CASES.items() if kind in SMALL_MODELS]


def select_queries(experiment: Experiment, count: int) -> tuple[Experiment, np.ndarray]:
    """Returns the experiment with some of its queries, which lie evenly among all of them, and their positions."""
    case = experiment.case
    count = min(count, len(case.queries))
    chosen = np.linspace(0, len(case.queries) - 1, count).round().astype(int)
    corpus = replace(case.corpus, queries=tuple(case.corpus.queries[number] for number in chosen))
    part = replace(case, corpus=corpus, queries=[case.queries[number] for number in chosen])
    return replace(experiment, case=part, losses=experiment.losses[:, chosen]), chosen


def iter_other_methods(experiment: Experiment, chosen: np.ndarray) -> Iterator[Method]:
    """Yields BM25 and every method of whole gradients, with the scores of some queries of an experiment."""
    sets = select_module_sets(experiment.case.model)
    bm25 = (method for method in iter_baselines(experiment) if method.name == BM25)
    for method in (*bm25, *iter_whole_gradients(experiment, sets)):
        yield replace(method, scores=method.scores[chosen])


def iter_refined(refined: RefinedQueries, set_name: str) -> Iterator[tuple[Method, float]]:
    """Yields every method of refined queries, and what is left of its systems."""
    for damping in DAMPINGS:
        for iterations in (0, *(count for count in REPORTED if count <= refined.space.iterations)):
            scores, left = refined.scores(iterations, damping)
            kind = (
                f"{REFINED}, c = {damping:g}, k = {iterations}" if iterations else f"EK-FAC, c = {damping:g}"
            )
            name = f"{kind}, none, {set_name}"
            yield Method(name, "whole gradients", None, scores.numpy()), left
            normalized = refined.normalize(scores, damping).numpy()
            yield Method(name.replace("none", "row"), "whole gradients", None, normalized), left


def describe(measured: dict[str, Measured], left: dict[str, float]) -> Iterator[str]:
    """Yields a Markdown table of all methods, and the differences of the best refined and the best other method."""
    yield "| method | LDS | − K-FAC | LDS, thresholded | − K-FAC | left |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, values in measured.items():
        cells = [
            format_interval(resampled)
            for measure in (LDS, LDS_THRESHOLDED)
            for resampled in (values[measure], values[measure] - measured[REFERENCE][measure])
        ]
        rest = left.get(name, float("nan"))
        yield f"| {' | '.join([name, *cells, '' if np.isnan(rest) else f'{rest:.2g}'])} |"
    yield ""
    for measure in (LDS, LDS_THRESHOLDED):
        groups = [
            [name for name in measured if name.startswith(REFINED) == refined] for refined in (True, False)
        ]
        best, other = (max(names, key=lambda name: measured[name][measure].value) for names in groups)
        difference = measured[best][measure] - measured[other][measure]
        yield f"{measure}: {best} less {other}: {format_interval(difference)}"


def format_interval(resampled: Resampled) -> str:
    """Returns a number with its 95 % interval in brackets."""
    interval = resampled.interval()
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    """Runs the experiment of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("case", nargs="?", default="docstring_paragraphs", choices=_SMALL_CASES)
    parser.add_argument("--runs", type=int, help="models trained again; by default 40")
    parser.add_argument("--queries", type=int, default=32, help="how many are refined")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--damping", type=float, default=1e-2, help="c of EK-FAC as the preconditioner")
    parser.add_argument("--modules", default=ALL, choices=[ALL, *MODULE_SETS])
    parser.add_argument("--quick", action="store_true", help="few documents, models that have hardly learnt")
    parser.add_argument("--processes", type=int, default=2, help="models that are trained at the same time")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of corpora, trainings, halves and intervals"
    )
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps all that is expensive")
    options = parser.parse_args()
    data_dir = options.data_dir.expanduser().absolute()
    settings = Settings(data_dir, options.seed, options.runs, options.processes, options.quick)
    experiment = prepare_experiment(options.case, settings)
    part, chosen = select_queries(experiment, options.queries)
    modules = select_module_sets(part.case.model)[options.modules]
    refined = refine_queries(part, modules, options.damping, options.iterations)
    measurer, measured, left = Measurer(part), {}, {}
    for method in iter_other_methods(experiment, chosen):
        measured[method.name] = measurer.measure(method)
    for method, rest in iter_refined(refined, options.modules):
        measured[method.name], left[method.name] = measurer.measure(method), rest
    seconds = refined.seconds / len(chosen) / options.iterations
    print(
        f"{options.case}: {len(chosen)} queries, {len(part.losses)} runs; EK-FAC with c = {options.damping:g} as the "
        f"preconditioner; {seconds:.1f} processor seconds for each query and iteration\n"
    )
    print("\n".join(describe(measured, left)))


if __name__ == "__main__":
    main()
