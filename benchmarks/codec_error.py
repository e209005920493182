"""Errors of scores from rows that are stored as float16 or int8, compared with scores from float32 rows.

    python -m benchmarks.codec_error [--projection_dims 16 32] [--normalizers adafactor kfac] [--people 400]

The rows are those of the demo's corpus and model; the preconditioner C is fitted to the float32 rows. "error" is the
root mean square of the difference of two scores of the same document and query, divided by the standard deviation of
all scores; "largest" is the largest difference, divided likewise. "same ten" is the share of the ten best documents by
float32 that are among the ten best.
"""

import itertools

from jaxtyping import Float
from torch import Tensor

from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import add_demo_options, load_demo
from benchmarks.support.row_variants import (
    DAMPING,
    RowVariants,
    compute_scores,
    second_moment,
    store_and_load,
)
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import GradientSpec, Normalize, NormalizerKind, RowKind

NORMALIZERS: tuple[NormalizerKind, ...] = ("none", "adafactor", "adam", "kfac")
KINDS: tuple[RowKind, ...] = ("float16", "int8")
NORMALIZES: tuple[Normalize, ...] = ("none", "row", "block")
TOP_K = 10


def shared_top_k(scores: Float[Tensor, "q n"], other_scores: Float[Tensor, "q n"]) -> float:
    """Returns the share of each query's ten best documents that are also among the ten best by the other scores."""
    best, other_best = (table.topk(TOP_K).indices for table in (scores, other_scores))
    return float((best[:, :, None] == other_best[:, None]).any(2).float().mean())


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    add_demo_options(parser)
    parser.add_argument("--projection_dims", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--normalizers", nargs="+", choices=NORMALIZERS, default=["adafactor", "kfac"])
    options = parser.parse_args()
    demo = load_demo(options)
    print("| rows | error | largest | same ten |\n|---|---:|---:|---:|")
    for p, normalizer in itertools.product(options.projection_dims, options.normalizers):
        settings = GradientSpec(projection_dim=p, normalizer=normalizer)
        variants = RowVariants(demo.model, demo.documents, demo.queries, settings)
        rows, query_rows = variants.document_rows, variants.query_rows
        preconditioners = {"": None, ", C": Preconditioner.fit(second_moment(rows), 1, DAMPING)}
        for (name, preconditioner), normalize, kind in itertools.product(
            preconditioners.items(), NORMALIZES, KINDS
        ):
            exact = compute_scores(rows, query_rows, preconditioner, normalize)
            stored = compute_scores(store_and_load(kind, rows), query_rows, preconditioner, normalize)
            errors = (stored - exact) / exact.std()
            cells = (
                f"p = {p}, {normalizer}{name}, {normalize}, {kind}",
                f"{errors.square().mean().sqrt():.5f}",
                f"{errors.abs().max():.4f}",
                f"{shared_top_k(exact, stored):.4f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
