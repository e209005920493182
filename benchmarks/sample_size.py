"""Measures what the size of the sample does that normalizers are fitted from.

    python -m benchmarks.sample_size [CASE ...] [--seeds 3]

For each size, normalizers are fitted from so many documents of the corpus, drawn as a build draws them, for several
seeds; the rows of all documents and queries are made with them, and measured as in `benchmarks.quality`, whose cases,
models and losses of retrained models are used. The table that is printed has, beside the measures of the scores, the
mean cosine between the rows and those of the whole corpus as the sample.

Legend: n documents, q queries.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import CASES
from benchmarks.quality.experiments import Experiment, Settings, prepare_experiment
from benchmarks.quality.measures import LDS, LDS_THRESHOLDED, MRR, Measurer
from benchmarks.quality.methods import Method
from benchmarks.support.command_line import make_parser, parse_with_names
from benchmarks.support.row_variants import ALL_TOKENS, RowVariants, fit_index_normalizers
from bergson_core.gradients.fitting_sample import sample_row_numbers
from bergson_core.schemas.build import GradientSpec

SIZES: Final = (16, 64, 128, 256, 512, 2048)
ROWS: Final = {
    "kfac, sign, p = 96, block, mlp": GradientSpec.from_preset("best"),
    "kfac, sign, p = 32, block, all": GradientSpec(normalizer="kfac", rows="sign", projection_dim=32),
    "adafactor, float16, p = 16, C, row, all": GradientSpec(),
}
"""Rows by name: those of the preset, small ones, and those of the defaults."""


def iter_lines(experiment: Experiment, name: str, seeds: int) -> Iterator[str]:
    """Yields a line of the table for each size of the sample."""
    case, measurer, settings = experiment.case, Measurer(experiment), ROWS[name]
    reference: torch.Tensor | None = None
    for size in reversed(SIZES):
        draws = range(1 if size >= len(case.documents) else seeds)
        figures, cosines, tokens = [], [], 0
        for seed in draws:
            sample = settings.model_copy(
                update={"sample_size": size, "sample_tokens": ALL_TOKENS, "seed": seed}
            )
            normalizers = fit_index_normalizers(case.model, case.documents, sample)
            numbers = sample_row_numbers(len(case.documents), size, seed)
            tokens = sum(len(case.documents[number].ids) for number in numbers)
            rows = RowVariants(case.model, case.documents, case.queries, settings, normalizers)
            scores = (
                rows.sign_scores()
                if settings.rows == "sign"
                else rows.scores(rows.preconditioner(), "row", settings.rows)
            )
            flat = rows.document_rows.flatten(1)
            reference = flat if reference is None else reference
            cosines.append(torch.nn.functional.cosine_similarity(flat, reference).mean().item())
            measured = measurer.measure(Method(name, "sample", None, scores.numpy()))
            figures.append([measured[part].value for part in (LDS_THRESHOLDED, LDS, MRR)])
        means = torch.tensor(figures).mean(0).tolist()
        spread = torch.tensor(figures)[:, 0]
        ranges = f"{spread.min():.3f} to {spread.max():.3f}"
        values = " | ".join(f"{value:.3f}" for value in means)
        mean_cosine = sum(cosines) / len(cosines)
        yield f"| {case.name} | {name} | {size:,} | {tokens:,} | {values} | {ranges} | {mean_cosine:.3f} |"


def main() -> None:
    """Prints the table of the chosen cases."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="samples of each size")
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps all that is expensive")
    options = parse_with_names(parser, CASES, "case")
    print(
        "| corpus | rows | documents | tokens | LDS after threshold | LDS | MRR | range of the first | cosine |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for case in options.names:
        experiment = prepare_experiment(case, Settings(options.data_dir.expanduser().absolute()))
        for name in ROWS:
            for line in iter_lines(experiment, name, options.seeds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
