"""What each choice of rows and scores is worth, on a small training run that can be repeated.

    python -m benchmarks.attribution_quality [--people 100] [--runs 48] [--processes 2] [--plot docs/quality.svg]

The model is trained here with the demo's recipe on the facts of 100 people: 1,200 documents, 400 queries. The rows go
through the code of an index (fitted normalizers, projection, float16, int8 or sign, preconditioner, normalisation), and
every document is scored, without a search in between.

    MRR, Recall@10, strict recall@10   retrieval of the documents that state the query's fact
    LDS                                linear datamodelling score over models that are trained again on random halves of
                                       the documents (`bergson evaluate --measure lds`), of the scores as they are, and
                                       after the soft threshold
    Δ log p                            change of the completion's log-probability by one step of unlearning on each of
                                       the three best documents alone

With `--runs 0`, only retrieval is measured, which is quick enough for the 400 people of the demo. The losses of models
that are trained again are kept in the data directory and used in the next run.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import add_demo_options
from benchmarks.support.quality_experiment import (
    Experiment,
    checkpoint_scores,
    ekfac_scores,
    full_gradient_scores,
    fuse_rankings,
    iter_baselines,
    kfac_damping,
    run_experiment,
)
from benchmarks.support.row_variants import RowVariants
from bergson_core.attribution.soft_threshold import soft_threshold
from bergson_core.demo.synthetic_facts import FactCorpus
from bergson_core.evaluation.metrics import bootstrap_interval, linear_datamodelling_score, retrieval_metrics
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import GradientSpec, Normalize, NormalizerKind
from bergson_core.schemas.evaluation import Interval, Retrieval

RANKING_DEPTH, UNLEARNED_DOCUMENTS = 100, 3
NORMALIZERS: tuple[NormalizerKind, ...] = ("none", "adafactor", "adam", "kfac")
COLUMNS = "MRR | Recall@10 | strict recall@10 | LDS | LDS, thresholded | Δ log p"
Scores: TypeAlias = np.ndarray | Tensor
"""Score of each document with each query [q, n]."""
PlotPoints: TypeAlias = dict[str, list[tuple[int, float]]]
"""Kind of rows → (bytes of a row, thresholded LDS)."""
PLOTTED = (
    *("kfac, not projected", "kfac, sign", "kfac, float16", "kfac, float16, C"),
    *("adafactor, not projected", "adafactor, sign, C", "adafactor, float16, C", "none, float16"),
)


def measure_retrieval(scores: Scores, corpus: FactCorpus) -> Retrieval:
    """Returns the retrieval metrics of the hundred best documents of each query."""
    best = torch.as_tensor(scores).topk(RANKING_DEPTH, dim=1).indices.tolist()
    rankings = {
        query.id: [corpus.documents[position].id for position in positions]
        for query, positions in zip(corpus.queries, best, strict=True)
    }
    return retrieval_metrics(rankings, corpus.gold_ids())


@dataclass(frozen=True)
class QualityTable:
    """A table of scores and their metrics, which is printed line by line."""

    experiment: Experiment

    def print_line(self, name: str, row_bytes: int | None, scores: Scores) -> float:
        """Prints the metrics of scores; returns the thresholded LDS, or NaN if no model was trained again.

        Args:
            name: How the scores were made.
            row_bytes: Bytes of a row's gradients; None if there are no rows.
            scores: The scores.
        """
        scores, experiment = np.asarray(scores, dtype=np.float64), self.experiment
        retrieval = measure_retrieval(scores, experiment.demo.corpus)
        cells, lds = ["", "", ""], float("nan")
        if (
            experiment.subsets is not None
            and experiment.losses is not None
            and experiment.unlearned is not None
        ):
            plain = linear_datamodelling_score(scores, experiment.subsets, experiment.losses)
            thresholded = linear_datamodelling_score(
                soft_threshold(scores), experiment.subsets, experiment.losses
            )
            best = np.argsort(-scores, axis=1, kind="stable")[:, :UNLEARNED_DOCUMENTS]
            effect = bootstrap_interval(np.take_along_axis(experiment.unlearned, best, axis=1).mean(1))
            cells = [_format_interval(interval) for interval in (plain, thresholded, effect)]
            lds = thresholded.mean
        columns = [
            name,
            "" if row_bytes is None else f"{row_bytes:,}",
            f"{retrieval.mrr:.3f}",
            f"{retrieval.recall_at_10:.3f}",
            f"{retrieval.strict_recall_at_10:.3f}",
            *cells,
        ]
        print(f"| {' | '.join(columns)} |", flush=True)
        return lds


def _format_interval(interval: Interval) -> str:
    return f"{interval.mean:.3f} ±{(interval.high - interval.low) / 2:.3f}"


def report_full_gradients(table: QualityTable, options: argparse.Namespace, points: PlotPoints) -> None:
    """Measures gradients that are not projected."""
    demo = table.experiment.demo
    modules = select_modules(demo.model.model).values()
    row_bytes = 4 * sum(module.out_features * module.in_features for module in modules)
    for kind in options.normalizers:
        dots, cosines = full_gradient_scores(demo, kind)
        table.print_line(f"not projected, {kind}, none", row_bytes, dots)
        lds = table.print_line(f"not projected, {kind}, row", row_bytes, cosines)
        points.setdefault(f"{kind}, not projected", []).append((row_bytes, lds))


def report_projected_rows(table: QualityTable, options: argparse.Namespace, points: PlotPoints) -> None:
    """Measures rows of every size, with the preconditioner C where its fit does not take too long."""
    for p in options.projection_dims:
        for kind in options.normalizers:
            if p <= 32 or kind == "kfac":
                _report_rows(table, p, kind, points)


def _report_rows(table: QualityTable, p: int, kind: NormalizerKind, points: PlotPoints) -> None:
    demo, settings = table.experiment.demo, GradientSpec(projection_dim=p, normalizer=kind)
    rows = RowVariants(demo.model, demo.documents, demo.queries, settings)
    numbers = rows.modules * p * p
    preconditioners: list[Preconditioner | None] = [None] if p == 48 else [None, rows.preconditioner()]
    normalizes: Sequence[Normalize] = ("none", "row", "block") if p == 16 else ("row", "block")
    for preconditioner in preconditioners:
        suffix = ", C" if preconditioner else ""
        for normalize in normalizes:
            name = f"p = {p}, {kind}, float16{suffix}, {normalize}"
            lds = table.print_line(name, 2 * numbers, rows.scores(preconditioner, normalize))
            if normalize == "row":
                points.setdefault(f"{kind}, float16{suffix}", []).append((2 * numbers, lds))
        scores = rows.sign_scores(preconditioner)
        lds = table.print_line(f"p = {p}, {kind}, sign{suffix}", numbers // 8, scores)
        points.setdefault(f"{kind}, sign{suffix}", []).append((numbers // 8, lds))


def report_alternatives(table: QualityTable) -> None:
    """Measures what else was tried, in comparison with the recommended rows: kfac, sign, p = 32."""
    demo, spec = table.experiment.demo, GradientSpec(normalizer="kfac", projection_dim=32)

    def make_rows(**changes: object) -> RowVariants:
        return RowVariants(demo.model, demo.documents, demo.queries, spec.model_copy(update=changes))

    rows = make_rows()
    row_bytes = rows.modules * 32 * 32 // 8
    for damping in (1e-1, 1e-2, 1e-4):
        with kfac_damping(damping):
            scores, (_, cosines) = make_rows().sign_scores(), full_gradient_scores(demo, "kfac")
        table.print_line(f"p = 32, kfac damped by {damping:g}, sign", row_bytes, scores)
        table.print_line(f"not projected, kfac damped by {damping:g}, row", None, cosines)
    table.print_line("not projected, EK-FAC, row", None, ekfac_scores(demo))
    scores = make_rows(fit_labels="sampled").sign_scores()
    table.print_line("p = 32, kfac of sampled labels, sign", row_bytes, scores)
    all_modules = make_rows(modules=".*")
    name = "p = 32, kfac, sign, embeddings and head too"
    table.print_line(name, row_bytes * all_modules.modules // rows.modules, all_modules.sign_scores())
    table.print_line("p = 32, kfac, int8, block", 8 * row_bytes, rows.scores(None, "block", "int8"))
    scores = make_rows(projection_dim=23).scores(None, "block")
    table.print_line("p = 23, kfac, float16, block", 2 * rows.modules * 23 * 23, scores)
    scores = rows.scores(rows.mixed_preconditioner(), "row")
    table.print_line("p = 32, kfac, float16, C mixed, row", 16 * row_bytes, scores)
    _report_combinations(table, rows.sign_scores().numpy(), row_bytes)
    checkpoints = checkpoint_scores(demo, spec)
    table.print_line("another run's end, p = 32, kfac, sign", row_bytes, checkpoints[-1])
    table.print_line("its three checkpoints averaged", 3 * row_bytes, torch.stack(checkpoints).mean(0))


def _report_combinations(table: QualityTable, sign_scores: np.ndarray, row_bytes: int) -> None:
    """Measures the recommended rows together with BM25, and with full gradients for the best documents."""
    by_words = dict(iter_baselines(table.experiment))["BM25"]
    fused = fuse_rankings(sign_scores, by_words)
    table.print_line("p = 32, kfac, sign, fused with BM25 by rank", row_bytes, fused)
    _, cosines = full_gradient_scores(table.experiment.demo, "kfac")
    threshold = np.sort(sign_scores, axis=1)[:, -RANKING_DEPTH, None]
    rescored = np.where(sign_scores >= threshold, np.maximum(cosines, 1e-9), 0)
    name = f"p = 32, kfac, sign, the best {RANKING_DEPTH} rescored by full gradients"
    table.print_line(name, row_bytes, rescored)


def write_plot(points: PlotPoints, path: Path) -> None:
    """Plots the thresholded LDS over the bytes of a row, a line for each kind of rows, as SVG."""
    import matplotlib as mpl  # pyright: ignore[reportMissingImports]

    mpl.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    mpl.rcParams |= {"svg.hashsalt": "bergson", "svg.fonttype": "none"}
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in PLOTTED:
        row_bytes, lds = zip(*sorted(points[name]), strict=True)
        style = {"kfac": "-", "adafactor": "--", "adam": "-.", "none": ":"}[name.split(",")[0]]
        axes.plot(row_bytes, lds, style, marker="s" if "sign" in name else "o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("bytes of a document")
    axes.set_ylabel("linear datamodelling score, thresholded")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    add_demo_options(parser, people=100)
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[8, 16, 32, 48, 64])
    parser.add_argument("--normalizers", nargs="+", choices=NORMALIZERS, default=NORMALIZERS)
    parser.add_argument("--runs", type=int, default=48, help="models that are trained again")
    parser.add_argument("--processes", type=int, default=2, help="models that are trained at the same time")
    parser.add_argument("--plot", type=Path, help="SVG file for quality over bytes (needs matplotlib)")
    options = parser.parse_args()
    started = time.perf_counter()
    experiment = run_experiment(options)
    table, points = QualityTable(experiment), dict[str, list[tuple[int, float]]]()
    print(f"{len(experiment.demo.documents):,} documents, {len(experiment.demo.queries):,} queries")
    print(f"| rows | bytes | {COLUMNS} |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, scores in iter_baselines(experiment):
        table.print_line(name, None, scores)
    report_full_gradients(table, options, points)
    report_projected_rows(table, options, points)
    if options.runs:
        report_alternatives(table)
    print(f"\n{time.perf_counter() - started:.0f} s")
    if options.plot is not None:
        write_plot(points, options.plot)


if __name__ == "__main__":
    main()
