"""What an evaluation measures of an index, and what it returns."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from bergson_core.schemas.base import ResultModel, Spec
from bergson_core.schemas.query import MAX_LEARNING_RATE
from bergson_core.schemas.training import TrainingSchedule

Measure = Literal["retrieval", "unlearning", "tail_patch", "lds", "removal"]
Baseline = Literal["random", "bm25", "gradient_dot", "gradient_cosine", "representation"]


class TrainingSpec(Spec):
    """How the indexed model was trained, so that it can be trained again on parts of the documents."""

    command: str | None = Field(default=None, max_length=65536)
    """Command that trains a model. In it, {dataset} becomes a JSON Lines file with id, prompt, completion and metadata
    of the documents to train on, {output} the directory for the model, and {seed} a number. It is run without a
    shell."""
    start: str | None = Field(default=None, min_length=1, max_length=4096)
    """Model that the built-in training loop starts from."""
    scratch: bool = False
    """Start from new random weights in the shape of the indexed model instead."""
    schedule: TrainingSchedule = TrainingSchedule()
    """Schedule of the built-in training loop."""
    runs: int = Field(default=48, ge=1, le=100_000)
    """Number of random subsets of the documents to train on for the linear datamodelling score."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the documents in each subset."""
    removal_queries: int = Field(default=8, ge=1)
    """Number of queries whose best documents are left out of training; each takes a run for every method and
    repetition."""
    removal_share: float = Field(default=0.01, gt=0, lt=1)
    """Share of the documents to leave out: those with the highest scores."""
    removal_repeats: int = Field(default=3, ge=1)
    """Number of runs with different seeds to average over."""
    processes: int = Field(default=1, ge=1)
    """Number of runs at the same time."""


class EvaluationSpec(Spec):
    """What to measure of an index, and which baselines to compare it with."""

    measures: tuple[Measure, ...] = Field(default=("retrieval", "unlearning"), min_length=1)
    """`retrieval` ranks the documents that state the queries' facts. `unlearning` takes a step of gradient ascent on
    each of the best documents, and `tail_patch` a step of descent. `lds` and `removal` train again on parts of the
    data."""
    baselines: tuple[Baseline, ...] = ("random", "bm25", "gradient_dot", "gradient_cosine", "representation")
    """Other ways to score documents, measured beside the index. The two of gradients use full gradients: for each
    query they take the memory of the tracked weights."""
    gold: str = "fact"
    """Column of the queries and of the index's metadata. A document is right for a query if both have the same value
    there."""
    top_k: int = Field(default=5, ge=1, le=100)
    """Number of documents of each query to unlearn or learn."""
    learning_rate: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE)
    """Learning rate of the steps. The default is the rate at which unlearning the median document halves that
    document's probability, to first order."""
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of random rankings, subsets, training runs and bootstrap samples."""


@dataclass(frozen=True)
class Retrieval:
    """How well a ranking finds the gold documents: means over the queries, each between 0 and 1.

    Attributes:
        mrr: Reciprocal rank of the first gold document; 0 for a ranking without one.
        recall_at_10: 1 if any gold document is among the first ten, else 0.
        strict_recall_at_10: Number of gold documents among the first ten, divided by min(10, number of gold documents).
        queries: Number of queries.
    """

    mrr: float
    recall_at_10: float
    strict_recall_at_10: float
    queries: int


@dataclass(frozen=True)
class Interval:
    """A mean over queries, and the bounds that 95 % of its bootstrap samples lie between."""

    mean: float
    low: float
    high: float


class Effect(ResultModel):
    """What a step on one document does to a query: the average over a query's best documents, then over queries."""

    log_probability: Interval
    """Change of the log-probability of the completion, in nats."""
    probability: Interval
    """Change of the probability of the completion."""


class Measured(ResultModel):
    """What was measured of one way to score documents. A measure that was not taken is null."""

    retrieval: Retrieval | None = None
    """How early the gold documents come."""
    unlearning: Effect | None = None
    """What unlearning the best documents does to the completion."""
    tail_patch: Effect | None = None
    """What training on the best documents does to it."""
    lds: Interval | None = None
    """Linear datamodelling score."""
    lds_thresholded: Interval | None = None
    """Linear datamodelling score of the scores after `soft_threshold`, which removes the projection's noise from their
    sums."""
    removal: Interval | None = None
    """Rise of the query's loss, in nats, when its best documents are left out of training."""


class Evaluation(ResultModel):
    """What was measured of an index and of the baselines."""

    index: str
    """Name of the index."""
    generation: int
    """Generation of the index that was evaluated."""
    documents: int
    """Number of documents that were scored."""
    queries: int
    """Number of queries."""
    spec: EvaluationSpec
    learning_rate: float | None = None
    """Learning rate of the steps; null if none were taken."""
    methods: dict[str, Measured]
    """Measurements by method: `index`, the baselines, and `gold`, the right documents themselves, as a control."""
