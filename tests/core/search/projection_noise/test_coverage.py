"""Nine of ten intervals hold what they are meant to hold, over seeds, documents and kinds of rows.

Gradients of a model's documents are projected with one seed after another, as a build does. Rows of numbers without C
are held against the score of whole gradients, others against the mean of the scores over all seeds.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.gradient_transforms import draw_projections
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_processor
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import GradientSpec
from bergson_core.search.features import compute_features
from bergson_core.search.projection_noise.block_groups import block_groups
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from bergson_core.shards.codecs import CODECS
from bergson_core.storage.manifest import ModuleEntry
from tests import tiny

DOCUMENTS, QUERIES, SEEDS = 48, 4, 32
Wholes = dict[str, torch.Tensor]
"""Whole normalized gradients [n, o, i] by module; the first are those of the queries."""


@pytest.fixture(scope="module")
def wholes() -> dict[str, tuple[dict[str, TrackedModule], Wholes]]:
    """Returns the tracked modules and the gradients of texts, by the kind of normalizer."""
    texts = [
        f"Person {k % 11} lives in city {k % 5} and works for company {k % 7}, {k % 3} days a week."
        for k in range(QUERIES + DOCUMENTS)
    ]
    model, tokenizer = tiny.model("llama", dtype=torch.float32), tiny.tokenizer(texts)
    dataset = Dataset.from_dict({"text": texts})
    by_kind = {}
    for kind in ("none", "adafactor", "kfac", "adam"):
        normalizers: dict[str, Normalizer] = fit_processor(
            model, dataset, tokenizer, GradientSpec(normalizer=kind)
        ).normalizers
        parts: dict[str, list[torch.Tensor]] = {}
        for text in texts:
            ids = tokenizer([text], return_tensors="pt").input_ids
            with GradientCollector(model, GradientProcessor(None, normalizers)) as collector:
                model(input_ids=ids, labels=ids).loss.backward()
            for name, gradient in collector.gradients.items():
                parts.setdefault(name, []).append(gradient.double())
        by_kind[kind] = collector.modules, {name: torch.cat(part) for name, part in parts.items()}
    return by_kind


def project(
    wholes: Wholes, modules: dict[str, TrackedModule], p: int, projection: str, seed: int
) -> torch.Tensor:
    """Returns rows [n, m, p²]."""
    processor, blocks = GradientProcessor(p, None, seed, projection=projection), []
    for name, whole in wholes.items():
        left, right = draw_projections(processor, modules[name])
        block = (left @ whole @ right.mT).flatten(1)
        blocks.append(torch.nn.functional.pad(block, (0, p * p - block.shape[1])))
    return torch.stack(blocks, 1).float()


def stored_features(
    rows: torch.Tensor, kind: str, normalize: str, preconditioned: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns φ of the documents, as they come back from an index, and φ of the queries."""
    queries, rows = rows[:QUERIES], rows[QUERIES:]
    total = torch.einsum("nmd,nme->mde", rows, rows)
    preconditioner = Preconditioner.fit(total, len(rows), 0.1) if preconditioned else None
    if kind == "sign" and preconditioner is not None:
        rows = preconditioner.apply(rows)
    rows = CODECS[kind].decode(*(part.numpy() for part in CODECS[kind].encode(rows)), rows.shape[2])
    if kind != "sign":
        rows = compute_features(rows, preconditioner, normalize)[0].reshape(rows.shape)
    return rows, compute_features(queries, preconditioner, normalize)[0].reshape(queries.shape)


def whole_scores(wholes: Wholes, normalize: str) -> torch.Tensor:
    """Returns the scores [q, n] of whole gradients."""
    blocks = [whole.flatten(1) for whole in wholes.values()]
    if normalize == "block":
        blocks = [torch.nn.functional.normalize(block) / len(blocks) ** 0.5 for block in blocks]
    rows = torch.cat(blocks, 1)
    if normalize == "row":
        rows = torch.nn.functional.normalize(rows)
    return rows[:QUERIES] @ rows[QUERIES:].mT


def make_noise(modules: Sequence[TrackedModule], p: int, projection: str, kind: str, normalize: str):
    entries = [
        ModuleEntry(name=module.name, out_features=module.out_features, in_features=module.in_features)
        for module in modules
    ]
    spec = GradientSpec(projection_dim=p, projection=projection, rows=kind)
    groups = block_groups(entries, spec)
    assert groups is not None
    return ScoreNoise(groups, normalize, kind == "sign")


def iter_seeds(wholes, normalizer, projection, p, kind, normalize, preconditioned):
    """Yields for each seed φ of the documents, φ of the queries, and the noise."""
    modules, gradients = wholes[normalizer]
    tracked = [modules[name] for name in gradients]
    noise = make_noise(tracked, p, projection, kind, normalize)
    for seed in range(SEEDS):
        rows = project(gradients, modules, p, projection, seed)
        yield *stored_features(rows, kind, normalize, preconditioned), noise


def intervals_of(documents: torch.Tensor, queries: torch.Tensor, noise: ScoreNoise) -> list:
    """Returns the intervals [q, n, 2] of all documents."""
    scores = torch.einsum("qmd,nmd->qn", queries, documents).tolist()
    return [
        [error.interval(score) for error, score in zip(noise.errors(documents, query), own, strict=True)]
        for query, own in zip(queries, scores, strict=True)
    ]


def share_held(intervals: torch.Tensor, target: torch.Tensor) -> float:
    held = (intervals[..., 0] <= target) & (target <= intervals[..., 1])
    return float(held.double().mean())


NUMBERS = [
    ("none", "rademacher", 4, "float16", "none"),  # few lines of skewed products
    ("none", "orthogonal", 8, "int8", "block"),
    ("adafactor", "orthogonal", 4, "float16", "block"),
    ("adafactor", "rademacher", 4, "float16", "block"),
    ("adafactor", "orthogonal", 16, "int8", "row"),
    ("adafactor", "normal", 16, "float16", "none"),
    ("kfac", "orthogonal", 16, "float16", "block"),
    ("kfac", "rademacher", 32, "int8", "row"),
    ("adam", "orthogonal", 8, "float16", "row"),
]


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: "-".join(map(str, case)))
def test_intervals_of_numbers_hold_the_score_of_whole_gradients(case, wholes):
    intervals = torch.tensor(
        [intervals_of(*seed) for seed in iter_seeds(wholes, *case, False)], dtype=torch.float64
    )
    assert 0.82 < share_held(intervals, whole_scores(wholes[case[0]][1], case[-1])) < 0.99


OTHERS = [
    ("adafactor", "orthogonal", 4, "float16", "row", True),
    ("adafactor", "rademacher", 8, "int8", "block", True),
    ("none", "orthogonal", 4, "float16", "none", True),
    ("adafactor", "orthogonal", 4, "sign", "row", True),
    ("kfac", "orthogonal", 16, "sign", "block", False),
    ("kfac", "rademacher", 8, "sign", "block", False),
    ("none", "orthogonal", 8, "sign", "none", False),
    ("adam", "orthogonal", 8, "sign", "row", False),
]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: "-".join(map(str, case)))
def test_intervals_hold_the_mean_over_all_projections(case, wholes):
    intervals, scores = [], []
    for documents, queries, noise in iter_seeds(wholes, *case):
        intervals.append(intervals_of(documents, queries, noise))
        scores.append(torch.einsum("qmd,nmd->qn", queries, documents))
    share = share_held(torch.tensor(intervals), torch.stack(scores).mean(0))
    assert share > 0.85


@pytest.mark.parametrize("case", [NUMBERS[2], NUMBERS[4]], ids=lambda case: "-".join(map(str, case)))
def test_intervals_of_sums_hold_the_sum_of_whole_scores(case, wholes):
    """Of which the sums of squared errors of the single scores know nothing, since the errors go together."""
    groups = [torch.arange(start, DOCUMENTS, 4) for start in range(4)]
    target = whole_scores(wholes[case[0]][1], case[-1])
    expected = torch.stack([target[:, group].sum(1) for group in groups], 1)
    intervals = []
    for documents, queries, noise in iter_seeds(wholes, *case, False):
        for query in queries:
            for group in groups:
                total = SumOfScores(noise)
                total.add(documents[group], query)
                intervals.append(total.error().interval(total.total))
    intervals = torch.tensor(intervals).reshape(SEEDS, QUERIES, len(groups), 2)
    assert share_held(intervals, expected) > 0.85


def test_intervals_of_checkpoints_hold_the_mean_of_the_whole_scores(wholes):
    """Two ways to normalize gradients stand for two checkpoints: all that counts is that their projections differ."""
    parts, p = [wholes[kind] for kind in ("none", "adafactor")], 8
    tracked = [modules[name] for modules, gradients in parts for name in gradients]
    noise = replace(make_noise(tracked, p, "orthogonal", "float16", "row"), checkpoints=2)
    target = sum(whole_scores(gradients, "row") for _, gradients in parts) / 2
    intervals = []
    for seed in range(SEEDS // 2):
        rows = [
            project(gradients, modules, p, "orthogonal", seed + SEEDS * number)
            for number, (modules, gradients) in enumerate(parts)
        ]
        joined = torch.cat(rows, 1)
        phi = compute_features(joined, None, "row", checkpoints=2)[0].reshape(joined.shape)
        intervals.append(intervals_of(phi[QUERIES:], phi[:QUERIES], noise))
    assert 0.82 < share_held(torch.tensor(intervals, dtype=torch.float64), target) < 0.99
