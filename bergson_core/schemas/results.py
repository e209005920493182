"""What comes back: progress of a build, and the answer to a query. No torch here.

These classes are what the library returns, what crosses Redis, and what HTTP shows.
"""

from collections.abc import Collection, Sequence
from typing import Any

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import SearchKind


class Progress(ResultModel):
    """How far a build is. Each stage counts from 0 again."""

    stage: str = "queued"
    """What is being done: queued, load, read, statistics, gradients, preconditioner, search, measure, done."""
    done: int = 0
    total: int = 0
    """0 while it is not known."""
    unit: str = "documents"
    tokens_per_s: float | None = None
    eta_s: float | None = None
    """Seconds until this stage ends, at its rate so far."""


class SizesBytes(ResultModel):
    """Bytes on disk."""

    rows: int
    """The shards: gradients and the text of the samples."""
    search: int
    """The FAISS index."""
    statistics: int
    """Normalizers, projections and preconditioners."""
    total: int


class Estimate(ResultModel):
    """What a build would take on the machine that was asked.

    Where fewer samples were looked at than there are, tokens, bytes on disk and seconds are extrapolated from them.
    """

    documents: int
    """Samples in the dataset."""
    looked_at: int
    """Samples that were read and tokenised: all, or a random sample."""
    tokens: int
    """Tokens that the loss is taken over, as the index counts them."""
    modules: int
    """Layers whose gradients are tracked."""
    dimensions: int
    """Numbers stored for each sample."""
    coverage_percent: float
    """Share of the model's parameters that the tracked layers hold."""
    search: SearchKind
    """How candidates are found, if that holds `min_recall`; `rabitq` that was not asked for gives way to `float16`."""
    size_bytes: SizesBytes
    """The finished index."""
    peak_disk_bytes: int
    """The index and what is needed beside it until it is finished. The cached dataset is not counted."""
    peak_memory_bytes: int
    """Resident memory of the process that builds, at its peak, mapped files included."""
    peak_device_bytes: int | None = None
    """Memory that is taken from the GPU, at its peak; null without one."""
    seconds: float
    """Time of the build at the rates that were measured, with nothing else running."""


class TokenInfluence(ResultModel):
    """A token of a training sample and its part of the sample's score."""

    token: str
    """The characters that it stands for, or its name where it stands for none."""
    start: int | None
    """Its characters are [start, end) of prompt and completion together; null where it stands for none of these, and in
    chats, whose text is the template's."""
    end: int | None
    influence: float
    """What its position adds to the score; those of all tokens sum to the score."""


class Verified(ResultModel):
    """What one step of gradient ascent on one sample alone changed; then every weight was put back, bit for bit.

    A number is null where it is not finite: the step has broken the model.
    """

    log_probability: float | None
    """Change of the log-probability of the completion, or of its span, in nats. Negative: without what this sample
    taught, the model says it less readily, so the sample supported it. Positive: it spoke against it. Near that of the
    controls: a step on just any sample does as much."""
    probability: float | None
    """Change of its probability."""
    own_log_probability: float | None
    """Change of the sample's own log-probability, in nats: how far it was unlearned. Negative."""


class Control(Verified):
    """A random sample of the index, unlearned in the same way."""

    id: str


class Verification(ResultModel):
    """How results were verified, and what random samples do."""

    learning_rate: float
    """Of each step. It is the same for all samples: one with a larger gradient moves the model further."""
    log_probability: float
    """Log-probability of the completion, or of its span, before any step, in nats."""
    controls: list[Control]
    """Samples drawn at random, none of which is among the rows of the answer."""
    mean: Verified | None
    """Mean of the controls; null without any."""

    @classmethod
    def of(cls, learning_rate: float, log_probability: float, controls: Sequence[Control]) -> "Verification":
        """With the mean of these controls; of a number that one of them lacks there is none."""
        means = {}
        for name in Verified.model_fields:
            values = [getattr(one, name) for one in controls]
            means[name] = None if None in values or not values else sum(values) / len(values)
        return cls(
            learning_rate=learning_rate,
            log_probability=log_probability,
            controls=list(controls),
            mean=Verified(**means) if controls else None,
        )

    def without(self, ids: Collection[str]) -> "Verification":
        """The same without the controls of these ids."""
        left = [one for one in self.controls if one.id not in ids]
        return Verification.of(self.learning_rate, self.log_probability, left)


class ResultRow(ResultModel):
    """A training sample and its influence on what the model said."""

    rank: int
    id: str
    score: float
    percentile: float | None = None
    """How many of a hundred random samples of the index score lower for this query. Null where there is none to compare
    with."""
    prompt: str | None = None
    completion: str | None = None
    metadata: dict[str, Any] | None = None
    loss: float | None
    """Sum of the sample's token cross-entropies under the indexed model, in nats; null where its gradient was not
    finite, so that it was skipped."""
    modules: dict[str, float] | None = None
    """Each module's part of the score, where `include` asks for it; they sum to the score."""
    tokens: list[TokenInfluence] | None = None
    """Each token's part of the score, where `include` asks for it; they sum to the score."""
    verified: Verified | None = None
    """What unlearning the sample changed, for the best rows where `verify` asks for it."""


class QueryEcho(ResultModel):
    """The query as it was understood."""

    prompt: str
    completion: str
    generated: bool = False
    """The completion is what the model says by itself."""
    loss: float
    """Sum of the cross-entropies of the completion's tokens, or of those of the span, in nats."""
    n_tokens: int
    """How many these are."""


class TimingMs(ResultModel):
    """Milliseconds: waiting for a worker and for it to load the index, then gradient and search of the micro-batch.

    `search` has the passes through the model in it that `tokens` take. `verify` is the query's own; while others are
    answered between its steps, that is `queue`.
    """

    queue: float = 0.0
    gradient: float
    search: float
    verify: float = 0.0
    total: float


class Answer(ResultModel):
    """The training samples behind one completion; `results` is null where only opponents were asked for."""

    index: str
    generation: int
    profile: str = "default"
    query: QueryEcho
    results: list[ResultRow] | None = None
    opponents: list[ResultRow] | None = None
    notice: str | None = None
    """`no strong influence found` where the best of `results` stands out no more than that of a query which no sample
    states."""
    verification: Verification | None = None
    """What the steps on random samples did, where `verify` asks for it."""
    partial: bool = False
    """Damaged shards of the index were left out."""
    timing_ms: TimingMs

    def without(self, ids: Collection[str]) -> "Answer":
        """The answer without the rows of these ids."""

        def kept(rows: list[ResultRow] | None) -> list[ResultRow] | None:
            left = [row for row in rows or () if row.id not in ids]
            ranked = [row.model_copy(update={"rank": rank}) for rank, row in enumerate(left, start=1)]
            return None if rows is None else ranked

        if not ids:
            return self
        rows = {"results": kept(self.results), "opponents": kept(self.opponents)}
        verification = self.verification and self.verification.without(ids)
        return self.model_copy(update=rows | {"verification": verification})
