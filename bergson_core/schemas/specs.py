"""What to build and what to ask: frozen, validated, and the same object on every side.

The body of `POST /index` and `POST /attribute`, the message on Redis, the manifest on disk and the options of
the command line are all these classes, so that a field exists once. No torch here.
"""

import hashlib
import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from bergson_core.schemas.base import Spec
from bergson_core.schemas.filters import Condition

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MAX_INLINE_DOCUMENTS = 10_000
MAX_PRECONDITIONED_DIM = 64
MAX_TOP_K_WITH_TOKENS = 32
MAX_VERIFIED = 32

IndexName = Annotated[str, Field(pattern=NAME_PATTERN, description="Lower-case letters, digits, - and _.")]
Normalizer = Literal["none", "adafactor", "adam", "kfac"]
Dtype = Literal["float32", "bfloat16", "float64"]
Normalize = Literal["none", "row", "block"]
RowKind = Literal["float16", "int8", "sign"]
Projection = Literal["rademacher", "normal"]
Loss = Literal["sum", "mean"]
FitLabels = Literal["true", "sampled"]
Direction = Literal["proponents", "opponents", "both"]
Part = Literal["text", "metadata", "tokens", "modules"]
Aggregate = Literal["mean", "max", "each"]
Executor = Literal["local", "ray"]
"""Where shards are made and searched: in this process, or by the machines of a Ray cluster. The rows are the same."""


class DatasetSpec(Spec):
    """A dataset to read: a hub id, a `save_to_disk` directory, or a jsonl, json, csv or parquet file."""

    path: str = Field(min_length=1, max_length=4096)
    """Hub id, directory or file."""
    split: str = Field(default="train", min_length=1, max_length=256)
    """Split of the dataset."""
    subset: str | None = Field(default=None, max_length=256)
    """Configuration of a hub dataset, where it has several."""
    streaming: bool = False
    """Read it once, as a stream, and keep the columns that are needed beside the index until that is published; it
    is never in memory or in the cache as a whole. A `save_to_disk` directory is read where it is."""


class ColumnsSpec(Spec):
    """Which columns of the dataset mean what."""

    prompt: str = "text"
    """Column with the text, or with the prompt where a completion column is named."""
    completion: str | None = None
    """Column with the completion; the loss is then taken over the completion only."""
    messages: str | None = None
    """Column with chats, lists of messages with role and content, instead of `prompt`. The loss is over what the
    assistant says, which the model's chat template has to mark with {% generation %}."""
    id: str | None = None
    """Column with a unique id; without one, ids are row numbers as strings."""
    metadata: tuple[str, ...] = ()
    """Columns kept beside each row and returned with it."""
    weight: str | None = None
    """Column with numbers, such as rewards or advantages, that a document's loss is multiplied by."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.messages is not None and self.completion is not None:
            raise ValueError("expected `completion` or `messages`, not both")
        return self


class GradientSpec(Spec):
    """How a sample becomes a row of the index."""

    projection_dim: int = Field(default=16, ge=1, le=256)
    """p: each module's gradient is projected to p × p, also where a side of the module is shorter than p."""
    normalizer: Normalizer = "adafactor"
    """Second-moment normalisation of the gradients before they are projected."""
    rows: RowKind = "float16"
    """How rows are kept on disk. `sign` keeps one bit a number, after the preconditioner, which is then fitted from the
    sample."""
    optimizer_state: str | None = Field(default=None, min_length=1, max_length=4096)
    """Optimizer checkpoint to take the second moments of adam or adafactor from, instead of a sample: an `optimizer.pt`
    of the Hugging Face Trainer, its checkpoint directory, or a safetensors file of moments. They are of batches'
    gradients, those of a sample of single documents'."""
    fit_labels: FitLabels = "true"
    """Labels that the normalizer is fitted with: `true`, those of the documents, or `sampled` from the model."""
    projection: Projection = "rademacher"
    """Distribution of the random projections' entries."""
    loss: Loss = "sum"
    """Cross-entropy of a document: the sum over its labelled tokens, or their mean."""
    modules: str | None = Field(default=None, max_length=1024)
    """Regular expression; only modules whose name it matches are tracked. By default all layers but embeddings and the
    output head, or the adapters where the model has some."""
    include_bias: bool = False
    """Track the gradients of biases too."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longest document in tokens; the model's context by default. A longer document is an error, never cut."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the projections."""
    sample_size: int = Field(default=2048, ge=1)
    """Documents from which the normalizer is fitted."""

    @model_validator(mode="after")
    def _has_moments(self) -> Self:
        if self.optimizer_state is not None and self.normalizer not in ("adam", "adafactor"):
            raise ValueError(
                f"optimizer_state holds the second moments of adam or adafactor; got normalizer {self.normalizer!r}"
            )
        return self

    @field_validator("modules")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression of module names: {error}") from None
        return value


class ScoringSpec(Spec):
    """How rows are compared: TrackStar (arXiv 2410.17413) by default."""

    normalize: Normalize = "row"
    """`row`: unit length after preconditioning, so that scores are cosines. `block`: each module's block by itself, so
    that scores are means of the modules' cosines. `none`: the influence itself."""
    preconditioner: bool = True
    """Multiply by the inverse square root of the second moment of the rows, module by module."""
    damping: float = Field(default=0.1, gt=0, le=10)
    """Added to each module's second moment, in units of its mean eigenvalue."""


class SearchSpec(Spec):
    """How candidates are found; the returned scores are exact whatever finds them."""

    kind: Literal["auto", "exact", "rabitq"] = "auto"
    """`exact` compares every row in float16, `rabitq` by one bit a number. `auto` takes `rabitq` for a large index,
    where it holds `min_recall`. Sign rows are compared by their own bits."""
    min_recall: float = Field(default=0.99, gt=0, le=1)
    """Share of the ten best rows that have to be among the candidates, measured before an index is published."""


Document = dict[str, Any]
Source = TypeVar("Source", "BuildSpec", "AppendSpec")


def _with_one_source(spec: Source) -> Source:
    if (spec.dataset is None) == (spec.documents is None):
        raise ValueError("expected exactly one of `dataset` and `documents`")
    return spec


class BuildSpec(Spec):
    """Everything that decides the rows of an index."""

    model: str = Field(min_length=1, max_length=4096)
    """Hub id or local directory of a causal language model (safetensors weights only)."""
    revision: str | None = Field(default=None, max_length=256)
    """Branch, tag or commit of the hub repository."""
    dtype: Dtype = "float32"
    """Precision of the weights and of the forward and backward pass."""
    dataset: DatasetSpec | None = None
    """The training samples; give this or `documents`."""
    documents: tuple[Document, ...] | None = Field(default=None, max_length=MAX_INLINE_DOCUMENTS)
    """The training samples, inline: up to 10,000 objects with the columns named in `columns`."""
    columns: ColumnsSpec = ColumnsSpec()
    gradients: GradientSpec = GradientSpec()
    scoring: ScoringSpec = ScoringSpec()
    search: SearchSpec = SearchSpec()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        return _with_one_source(self)

    @model_validator(mode="after")
    def _preconditioner_fits(self) -> Self:
        p = self.gradients.projection_dim
        if self.scoring.preconditioner and p > MAX_PRECONDITIONED_DIM:
            raise ValueError(
                f"the preconditioner has p⁴ numbers for each module: expected a projection_dim of at most "
                f"{MAX_PRECONDITIONED_DIM}, got {p}; take a smaller one, or scoring.preconditioner false"
            )
        return self

    def fingerprint(self) -> str:
        """sha256 of the spec: two builds with the same one give the same index."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def rows_fingerprint(self) -> str:
        """sha256 of what decides the rows: all of the spec but how they are searched."""
        return self.model_copy(update={"search": SearchSpec()}).fingerprint()


class AppendSpec(Spec):
    """Documents to add to an index; what else is given has to be what the index was built with."""

    STATED: ClassVar = ("model", "revision", "dtype", "columns", "gradients", "scoring")

    dataset: DatasetSpec | None = None
    """The new training samples; give this or `documents`. Their columns are named as those of the index."""
    documents: tuple[Document, ...] | None = Field(default=None, max_length=MAX_INLINE_DOCUMENTS)
    """The new training samples, inline: up to 10,000 objects."""
    model: str | None = Field(default=None, min_length=1, max_length=4096)
    revision: str | None = Field(default=None, max_length=256)
    dtype: Dtype | None = None
    columns: ColumnsSpec | None = None
    gradients: GradientSpec | None = None
    scoring: ScoringSpec | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        return _with_one_source(self)


class TaskQuery(Spec):
    """A prompt and what was said to it: one of the queries that are typical of a task."""

    prompt: str = Field(max_length=1_000_000)
    completion: str = Field(min_length=1, max_length=1_000_000)


class ProfileSpec(Spec):
    """A way to compare rows for a task: the preconditioner mixed with the second moment of the task's queries."""

    name: IndexName
    """What `profile` of a query then says."""
    queries: tuple[TaskQuery, ...] | None = Field(default=None, min_length=1, max_length=MAX_INLINE_DOCUMENTS)
    """A sample of the task's queries; give this or `dataset`."""
    dataset: DatasetSpec | None = None
    """Where to read the queries, from the columns `prompt` and `completion`."""
    mixing: float | None = Field(default=None, ge=0, le=1)
    """Share of the queries in the second moment; by default found by matching eigenvalues (TrackStar, section 3)."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.queries is None):
            raise ValueError("expected exactly one of `queries` and `dataset`")
        return self


class VerifySpec(Spec):
    """Which documents are unlearned for real, each by one step of gradient ascent on it alone."""

    top: int = Field(default=3, ge=1, le=MAX_VERIFIED)
    """The best so many of the rows that are returned, of each direction."""
    controls: int = Field(default=3, ge=0, le=MAX_VERIFIED)
    """Random documents of the index beside them, which say what a step on just any document does. The same question
    draws the same ones."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of the step. By default that at which, to first order, unlearning the median document halves its probability."""


class AttributionQuery(Spec):
    """A prompt and what the model said; which training samples made it say that?"""

    index: IndexName
    prompt: str = Field(max_length=1_000_000)
    """What came before. May be empty."""
    completion: str | None = Field(default=None, min_length=1, max_length=1_000_000)
    """What is to be explained; the query's loss is over its tokens only. Left out, it is what the model says by itself,
    token by token the most likely."""
    max_new_tokens: int = Field(default=32, ge=1, le=256)
    """Tokens that are generated at most where `completion` is left out."""
    span: tuple[int, int] | None = None
    """Characters [start, end) of the completion to attribute; the rest of it is context."""
    top_k: int = Field(default=10, ge=1, le=1000)
    """Number of rows to return."""
    direction: Direction = "proponents"
    """Samples that made the completion more likely, less likely, or a list of each."""
    include: tuple[Part, ...] = ("text", "metadata")
    """What comes with each row beside id, score, percentile and loss: `tokens` and `modules` are the parts of its score
    by token and by module. For `tokens` the rows run through the model again: at most 32 of each direction."""
    profile: IndexName = "default"
    """Preconditioner to score with: `default`, or one that was fitted for a task."""
    partial: bool = False
    """Where shards of the index are damaged, search the others instead of refusing; the answer says so."""
    filter: dict[str, Condition] | None = Field(default=None, min_length=1, max_length=16)
    """Conditions on metadata, all of which a row has to meet: a value, a list of values, or a range such as
    `{"gte": 1990, "lt": 2000}`, for each column named."""
    verify: VerifySpec | None = None
    """Unlearn the best results for real, one by one, and say how much less likely that makes the completion. Each takes
    some passes through the model, and the first such query of an index some hundred more."""

    @property
    def unlearned(self) -> int:
        """Documents that are unlearned for it at most."""
        if self.verify is None:
            return 0
        return self.verify.top * (1 + (self.direction == "both")) + self.verify.controls

    @model_validator(mode="after")
    def _few_with_tokens(self) -> Self:
        if "tokens" in self.include and self.top_k > MAX_TOP_K_WITH_TOKENS:
            raise ValueError(
                "the tokens of a row cost a pass through the model: expected a top_k of at most "
                f"{MAX_TOP_K_WITH_TOKENS} with them, got {self.top_k}; lower it, or leave tokens out of include"
            )
        return self

    @model_validator(mode="after")
    def _span_lies_within(self) -> Self:
        if self.span is not None:
            if self.completion is None:
                raise ValueError("span counts characters of the completion: expected one")
            (start, end), length = self.span, len(self.completion)
            if not 0 <= start < end <= length:
                raise ValueError(
                    f"span: expected 0 ≤ start < end ≤ {length}, the characters of the completion; got [{start}, {end}]"
                )
        return self
