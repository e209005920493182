"""What to build and what to ask: frozen, validated, and the same object on every side.

The body of `POST /index` and `POST /attribute`, the message on Redis, the manifest on disk and the options of
the command line are all these classes, so that a field exists once. No torch here.
"""

import hashlib
import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from bergson_core.schemas.base import Spec

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MAX_INLINE_DOCUMENTS = 10_000
MAX_PRECONDITIONED_DIM = 64

IndexName = Annotated[str, Field(pattern=NAME_PATTERN, description="Lower-case letters, digits, - and _.")]
Normalizer = Literal["none", "adafactor", "adam", "kfac"]
Dtype = Literal["float32", "bfloat16", "float64"]
Normalize = Literal["none", "row", "block"]
RowKind = Literal["float16", "int8", "sign"]
Projection = Literal["rademacher", "normal"]
Loss = Literal["sum", "mean"]
FitLabels = Literal["true", "sampled"]
ExecutorName = Literal["local", "ray"]
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


InlineDocument = dict[str, Any]
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
    documents: tuple[InlineDocument, ...] | None = Field(default=None, max_length=MAX_INLINE_DOCUMENTS)
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
    documents: tuple[InlineDocument, ...] | None = Field(default=None, max_length=MAX_INLINE_DOCUMENTS)
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


SearchKind = Literal["float16", "rabitq", "hamming"]
"""What is compared to find candidates: φ in float16, φ in one bit a number, or the stored bits of sign rows."""
