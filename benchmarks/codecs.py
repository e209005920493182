"""What it costs a score that rows are kept as float16 or int8: beside scores from the float32 rows.

    python -m benchmarks.codecs [--projection_dims 16 32] [--normalizers adafactor kfac] [--people 400]

The demo's corpus and model (`benchmarks.quality`); C is fitted from the float32 rows. The error is the root mean square
of the difference of two scores of the same document and query, over the standard deviation of all scores; the largest
difference is over it too. The same ten: the share of the ten best documents by float32 that are among the ten best.
"""

import itertools

from torch import Tensor

from benchmarks.quality import arguments, demo
from benchmarks.rows import DAMPING, Rows, kept, scores, second_moment
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import GradientSpec, Normalize, RowKind

KINDS: tuple[RowKind, ...] = ("float16", "int8")
NORMALIZES: tuple[Normalize, ...] = ("none", "row", "block")
BEST = 10


def same_best(one: Tensor, other: Tensor) -> float:
    """Share of the best of each query in `one` that are among the best in `other`."""
    best, found = (part.topk(BEST).indices for part in (one, other))
    return float((best[:, :, None] == found[:, None]).any(2).float().mean())


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(projection_dims=[16, 32], normalizers=["adafactor", "kfac"])
    options = parser.parse_args()
    _, model, documents, queries = demo(options)
    print("| rows | error | largest | the same ten |\n|---|---:|---:|---:|")
    for p, normalizer in itertools.product(options.projection_dims, options.normalizers):
        rows = Rows(model, documents, queries, GradientSpec(projection_dim=p, normalizer=normalizer))
        c = Preconditioner.fit(second_moment(rows.raw), 1, DAMPING)
        for (name, root), normalize, kind in itertools.product(
            {"": None, ", C": c}.items(), NORMALIZES, KINDS
        ):
            exact = scores(rows.raw, rows.queries, root, normalize)
            found = scores(kept(kind, rows.raw), rows.queries, root, normalize)
            off = (found - exact) / exact.std()
            said = f"{off.square().mean().sqrt():.5f} | {off.abs().max():.4f} | {same_best(exact, found):.4f}"
            print(f"| p = {p}, {normalizer}{name}, {normalize}, {kind} | {said} |", flush=True)


if __name__ == "__main__":
    main()
