"""How often the interval of a score holds what it is meant to hold, for each kind of rows.

    python -m benchmarks.interval_coverage [--seeds 40] [--documents 1024] [--queries 12] [--people 400]

Documents and queries are those of the demo's corpus. Their whole gradients are projected with one seed after another,
and each seed gives every pair of a query and a document a score and an interval. "mean" is the share of intervals that
hold the mean of the pair's scores over all seeds, and "whole" the share of those that hold the score of the whole
gradients, which there is without C for rows of numbers. "any" is of documents drawn at random, with intervals of scores
that were not chosen by their size. "first" is of the ten documents with the highest scores of a seed, with the
intervals of results, and "first, as any" of the same ten with intervals as if they had been drawn. "groups" is of the
sums of the three groups with the highest sums, of 24 groups that all documents are put into at random. "±" is half the
width of the intervals of results, beside the difference between the tenth score and the median.
`--quick` takes 4 seeds, 64 documents and 2 queries of a corpus of 40 people.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import Demo, add_demo_options, load_demo
from benchmarks.support.row_variants import DAMPING, fit_index_normalizers
from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.gradient_transforms import draw_projections
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import GradientSpec, Normalize, NormalizerKind, Projection, RowKind
from bergson_core.search.features import compute_features
from bergson_core.search.projection_noise.block_groups import block_groups
from bergson_core.search.projection_noise.intervals import Interval
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from bergson_core.shards.codecs import CODECS
from bergson_core.storage.manifest import ModuleEntry
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches
from bergson_core.tokens.tokenization import Tokens

Variant = tuple[RowKind, Normalize, bool]
"""How rows are stored, what they are scaled to, and whether they are preconditioned."""
PROJECTED: Final[Sequence[tuple[NormalizerKind, Projection, int]]] = (
    ("adafactor", "orthogonal", 16),
    ("adafactor", "rademacher", 16),
    ("adafactor", "orthogonal", 4),
    ("adafactor", "rademacher", 4),
    ("kfac", "orthogonal", 32),
    ("kfac", "orthogonal", 8),
    ("adam", "orthogonal", 16),
)
VARIANTS: Final[Sequence[Variant]] = (
    ("float16", "row", False),
    ("float16", "block", False),
    ("int8", "none", False),
    ("float16", "row", True),
    ("int8", "block", True),
    ("sign", "row", True),
    ("sign", "block", False),
)
MAX_PRECONDITIONED_DIM: Final = 16
FIRST: Final = 10
GROUPS: Final = 24
FIRST_GROUPS: Final = 3


@dataclass(frozen=True)
class WholeGradients:
    """Whole normalized gradients, module by module.

    Attributes:
        modules: The tracked modules, by name.
        documents: For each module the gradients of the documents [n, o, i].
        queries: For each module the gradients of the queries [q, o, i].
    """

    modules: Mapping[str, TrackedModule]
    documents: Sequence[Float[Tensor, "n o i"]]
    queries: Sequence[Float[Tensor, "q o i"]]

    @classmethod
    def collect(
        cls, demo: Demo, normalizer: NormalizerKind, documents: int, queries: int
    ) -> "WholeGradients":
        """Runs the model on the first documents and queries."""
        normalizers = fit_index_normalizers(demo.model, demo.documents, GradientSpec(normalizer=normalizer))
        collector = GradientCollector(demo.model.model, GradientProcessor(None, normalizers))

        def run(texts: list[Tokens]) -> list[Tensor]:
            wholes: dict[str, Tensor] = {}
            for batch in iter_batches(texts, BUDGET_TOKENS, demo.model.device):
                with collector:
                    forward_backward(demo.model, batch)
                for name, gradient in collector.gradients.items():
                    whole = wholes.setdefault(name, gradient.new_zeros(len(texts), *gradient.shape[1:]))
                    whole[batch.indices] = gradient
            return list(wholes.values())

        every = len(demo.documents) // documents  # facts of one person stand side by side
        return cls(collector.modules, run(demo.documents[::every][:documents]), run(demo.queries[:queries]))

    def rows(self, settings: GradientSpec) -> tuple[Float[Tensor, "n m d"], Float[Tensor, "q m d"]]:
        """Returns the rows of documents and queries under the projections of these settings."""
        p = settings.projection_dim
        processor = GradientProcessor(p, None, settings.seed, projection=settings.projection)
        both: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, tracked in enumerate(self.modules.values()):
            left, right = (side.float() for side in draw_projections(processor, tracked))
            for rows, wholes in zip(both, (self.documents, self.queries), strict=True):
                block = (left @ wholes[number] @ right.mT).flatten(1)
                rows.append(torch.nn.functional.pad(block, (0, p * p - block.shape[1])))
        return torch.stack(both[0], 1), torch.stack(both[1], 1)

    def scores(self, normalize: Normalize) -> Float[Tensor, "q n"]:
        """Returns the scores of the whole gradients."""
        parts, squares = [], []
        for documents, queries in zip(self.documents, self.queries, strict=True):
            parts.append(queries.flatten(1) @ documents.flatten(1).mT)
            squares.append([side.square().sum((1, 2)) for side in (queries, documents)])
        products, lengths = torch.stack(parts), [torch.stack(side) for side in zip(*squares, strict=True)]
        if normalize == "none":
            return products.sum(0)
        if normalize == "row":
            return products.sum(0) / (lengths[0].sum(0)[:, None] * lengths[1].sum(0)).sqrt()
        return (products / (lengths[0][:, :, None] * lengths[1][:, None]).sqrt()).mean(0)


@dataclass
class Coverage:
    """Scores and intervals of one kind of rows, seed after seed.

    Attributes:
        scores: For each seed the scores [q, n].
        intervals: For each seed the intervals [q, k, 2] of the chosen documents.
        chosen: For each seed the chosen documents [q, k]: those that were drawn, and twice the first ten.
        groups: For each seed the groups [q, g] with the highest sums.
        group_intervals: For each seed the intervals [q, g, 2] of these sums.
    """

    scores: list[Tensor] = field(default_factory=list)
    intervals: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    group_intervals: list[Tensor] = field(default_factory=list)

    def add(
        self, x: Float[Tensor, "n m d"], y: Float[Tensor, "q m d"], noise: ScoreNoise, drawn: Tensor
    ) -> None:
        """Adds a seed: φ of the documents and of the queries."""
        scores = y.flatten(1) @ x.flatten(1).mT
        first = scores.argsort(1, descending=True)[:, :FIRST]
        chosen = torch.cat([drawn.expand(len(y), -1), first, first], 1)
        self.scores.append(scores)
        self.intervals.append(
            torch.tensor(
                [
                    _intervals(x[numbers], query, noise, len(x))
                    for query, numbers in zip(y, chosen, strict=True)
                ]
            )
        )
        self.chosen.append(chosen)
        groups = _group_sums(scores).argsort(1, descending=True)[:, :FIRST_GROUPS]
        self.groups.append(groups)
        self.group_intervals.append(
            torch.tensor(
                [
                    [
                        _group_interval(x[group::GROUPS], query, noise, rank)
                        for rank, group in enumerate(own, 1)
                    ]
                    for query, own in zip(y, groups.tolist(), strict=True)
                ]
            )
        )

    def shares(self, target: Float[Tensor, "q n"]) -> list[float]:
        """Returns the shares of intervals that hold the target: of any, of the first as of any, of the first, and
        of sums of the first groups."""
        targets = torch.stack([target.gather(1, chosen) for chosen in self.chosen])
        intervals = torch.stack(self.intervals)
        held: Bool[Tensor, "s q k"] = (intervals[..., 0] <= targets) & (targets <= intervals[..., 1])
        parts = held.split([held.shape[2] - 2 * FIRST, FIRST, FIRST], dim=2)
        sums = torch.stack([_group_sums(target).gather(1, groups) for groups in self.groups])
        low, high = torch.stack(self.group_intervals).unbind(-1)
        return [part.float().mean().item() for part in (*parts, (low <= sums) & (sums <= high))]

    def half_width(self) -> tuple[float, float]:
        """Returns the mean half width of the first results, and how far the tenth score is above the median."""
        intervals, scores = torch.stack(self.intervals)[..., -FIRST:, :], torch.stack(self.scores)
        tenth = scores.topk(FIRST, dim=2).values[..., -1] - scores.median(2).values
        return ((intervals[..., 1] - intervals[..., 0]) / 2).mean().item(), tenth.mean().item()


def _group_sums(scores: Float[Tensor, "q n"]) -> Float[Tensor, "q g"]:
    """Returns the sums of the scores of each group: document k is of group k modulo their number."""
    return torch.stack([scores[:, group::GROUPS].sum(1) for group in range(GROUPS)], 1)


def _group_interval(
    x: Float[Tensor, "k m d"], y: Float[Tensor, "m d"], noise: ScoreNoise, rank: int
) -> Interval:
    """Returns the interval of the sum of the scores of a group of this rank."""
    total = SumOfScores(noise)
    total.add(x, y)
    return total.error().interval_of_group(total.total, rank, GROUPS)


def _intervals(
    x: Float[Tensor, "k m d"], y: Float[Tensor, "m d"], noise: ScoreNoise, rows: int
) -> list[Interval]:
    """Returns the intervals of documents, of which the last ten are the first results among so many rows."""
    scored = list(zip((x * y).sum((1, 2)).tolist(), noise.errors(x, y), strict=True))
    results = enumerate(scored[-FIRST:], start=1)
    return [
        *(error.interval(score) for score, error in scored[:-FIRST]),
        *(error.interval_of_result(score, rank, rows) for rank, (score, error) in results),
    ]


def features(
    rows: Float[Tensor, "n m d"], queries: Float[Tensor, "q m d"], variant: Variant
) -> tuple[Float[Tensor, "n m d"], Float[Tensor, "q m d"]]:
    """Returns φ of stored rows and of queries, as an index has them."""
    kind, normalize, preconditioned = variant
    preconditioner, codec = None, CODECS[kind]
    if preconditioned:
        total = torch.einsum("nmd,nme->mde", rows, rows)
        preconditioner = Preconditioner.fit(total, len(rows), DAMPING)
    y = compute_features(queries, preconditioner, normalize)[0].reshape(queries.shape)
    if kind == "sign" and preconditioner is not None:
        rows = preconditioner.apply(rows)
    blocks, scales = codec.encode(rows)
    stored = codec.decode(blocks.numpy(), scales.numpy(), rows.shape[2])
    if kind == "sign":
        return stored, y
    return compute_features(stored, preconditioner, normalize)[0].reshape(rows.shape), y


def measure(whole: WholeGradients, base: GradientSpec, options: Any) -> Iterator[tuple[Variant, Coverage]]:
    """Yields the coverage of each way to store and score rows of one projection."""
    entries = [
        ModuleEntry(name=name, out_features=tracked.out_features, in_features=tracked.in_features)
        for name, tracked in whole.modules.items()
    ]
    variants = [v for v in VARIANTS if not v[2] or base.projection_dim <= MAX_PRECONDITIONED_DIM]
    coverages = {variant: Coverage() for variant in variants}
    drawn = torch.randperm(len(whole.documents[0]), generator=torch.Generator().manual_seed(0))[:50]
    for seed in range(options.seeds):
        rows, queries = whole.rows(base.model_copy(update={"seed": seed}))
        for variant, coverage in coverages.items():
            groups = block_groups(entries, base.model_copy(update={"rows": variant[0]}))
            assert groups is not None
            noise = ScoreNoise(groups, variant[1], variant[0] == "sign")
            coverage.add(*features(rows, queries, variant), noise, drawn)
    yield from coverages.items()


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    add_demo_options(parser)
    parser.add_argument("--seeds", type=int, default=40, help="seeds of the projections")
    parser.add_argument("--documents", type=int, default=1024, help="documents that are scored")
    parser.add_argument("--queries", type=int, default=12, help="queries, the first of the corpus")
    parser.add_argument("--quick", action="store_true", help="a small corpus and few seeds")
    options = parser.parse_args()
    if options.quick:
        options.people, options.seeds, options.documents, options.queries = 40, 4, 64, 2
    demo = load_demo(options)
    shares = ("any", "first, as any", "first", "groups")
    names = [f"{target}, {share}" for target in ("mean", "whole") for share in shares]
    print(f"| rows | {' | '.join(names)} | ± | tenth - median |")
    print(f"|---{'|---:' * 10}|")
    wholes: dict[NormalizerKind, WholeGradients] = {}
    for normalizer, projection, p in PROJECTED:
        if normalizer not in wholes:
            wholes = {
                normalizer: WholeGradients.collect(demo, normalizer, options.documents, options.queries)
            }
        base = GradientSpec(normalizer=normalizer, projection=projection, projection_dim=p)
        for (kind, normalize, preconditioned), coverage in measure(wholes[normalizer], base, options):
            held = coverage.shares(torch.stack(coverage.scores).mean(0))
            if kind != "sign" and not preconditioned:
                held += coverage.shares(wholes[normalizer].scores(normalize))
            name = f"{normalizer}, {projection}, p = {p}, {kind}, {normalize}{', C' * preconditioned}"
            cells = [f"{100 * share:.0f} %" for share in held] + [""] * (8 - len(held))
            print(
                f"| {name} | {' | '.join(cells + [f'{v:.3g}' for v in coverage.half_width()])} |", flush=True
            )


if __name__ == "__main__":
    main()
