"""What to measure of an index, and what comes back. No torch here, and nothing else of size."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from bergson_core.schemas.base import ResultModel, Spec
from bergson_core.schemas.training import TrainingSchedule

Measure = Literal["retrieval", "unlearning", "tail_patch", "lds", "removal"]
Baseline = Literal["random", "bm25", "gradient_dot", "gradient_cosine", "representation"]


class TrainingSpec(Spec):
    """How the indexed model was trained, so that it can be trained again on parts of the documents."""

    command: str | None = Field(default=None, max_length=65536)
    """A command that trains: {dataset} in it becomes a JSON Lines file with id, prompt, completion and metadata of the
    documents that are kept, {output} the directory for the model, {seed} a number. No shell is between."""
    start: str | None = Field(default=None, min_length=1, max_length=4096)
    """Model that our own training loop starts from."""
    scratch: bool = False
    """Start from new weights in the shape of the indexed model instead."""
    schedule: TrainingSchedule = TrainingSchedule()
    """Of our own loop."""
    runs: int = Field(default=48, ge=1, le=100_000)
    """Random parts of the documents that are trained on for the linear datamodelling score."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the documents that each part keeps."""
    removal_queries: int = Field(default=8, ge=1)
    """Queries whose documents are left out; each takes a run for every method and repetition."""
    removal_share: float = Field(default=0.01, gt=0, lt=1)
    """Share of the documents that are left out: those with the highest scores."""
    removal_repeats: int = Field(default=3, ge=1)
    """Runs with other seeds that are averaged over."""
    processes: int = Field(default=1, ge=1)
    """Runs at the same time."""


class EvaluationSpec(Spec):
    """What to measure, and beside what."""

    measures: tuple[Measure, ...] = Field(default=("retrieval", "unlearning"), min_length=1)
    """`retrieval` finds the documents that state the queries' facts; `unlearning` takes a step of gradient ascent on
    each of the best documents, `tail_patch` one of descent; `lds` and `removal` train again on parts of the data."""
    baselines: tuple[Baseline, ...] = ("random", "bm25", "gradient_dot", "gradient_cosine", "representation")
    """What stands beside the index. The gradients are whole: they take the memory of the tracked weights for each
    query."""
    gold: str = "fact"
    """Column of the queries and of the index's metadata: documents with a query's value are right for it."""
    top_k: int = Field(default=5, ge=1, le=100)
    """Documents of each query that are unlearned or learned."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of a step. By default that at which, to first order, unlearning the median document halves its probability."""
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of random rankings, parts, runs and resamples."""


@dataclass(frozen=True)
class Retrieval:
    """Means over `queries` queries, each between 0 and 1.

    mrr                 1 / rank of the first gold document, 0 where the ranking has none
    recall_at_10        1 where any gold document is among the first ten, else 0
    strict_recall_at_10 gold documents among the first ten, divided by min(10, number of gold documents)
    """

    mrr: float
    recall_at_10: float
    strict_recall_at_10: float
    queries: int


@dataclass(frozen=True)
class Interval:
    """A mean over queries, and between which bounds 95 % of its resampled values lie."""

    mean: float
    low: float
    high: float


class Effect(ResultModel):
    """What one step on a document does to a query, on average over a query's top documents, then over queries."""

    log_probability: Interval
    """Change of the log-probability of the completion, in nats."""
    probability: Interval
    """Change of its probability."""


class Measured(ResultModel):
    """What was measured of one way to score documents; null where it was not."""

    retrieval: Retrieval | None = None
    unlearning: Effect | None = None
    tail_patch: Effect | None = None
    lds: Interval | None = None
    """Linear datamodelling score."""
    lds_thresholded: Interval | None = None
    """That of the scores after `soft_threshold`, which takes the projection's noise out of their sums."""
    removal: Interval | None = None
    """Rise of the query's loss, in nats, where its best documents are left out of training."""


class Evaluation(ResultModel):
    """What was measured of an index and of the baselines."""

    index: str
    generation: int
    documents: int
    queries: int
    spec: EvaluationSpec
    learning_rate: float | None = None
    """Of the steps that were taken."""
    methods: dict[str, Measured]
    """By name: `index`, the baselines, and `gold`, the right documents themselves, as a control."""
