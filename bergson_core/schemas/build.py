"""What a build is described by: the model, the documents, and how gradients become rows that are scored and searched.

The body of `POST /index`, the message on Redis, the manifest on disk and the options of the command line are all these
classes, so that each field is stated once.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    field_validator,
    model_validator,
)

from bergson_core.schemas.base import Spec, field_error
from bergson_core.schemas.build_parts.checkpoints import (
    MAX_CHECKPOINTS,
    describe_model_or_models,
    require_checkpoints,
    require_settings_of_checkpoints,
    with_last_model,
)
from bergson_core.schemas.preference.pair_checks import require_settings_of_pairs
from bergson_core.schemas.presets import PresetName, describe_presets, fill_in_preset, preset_values
from bergson_core.schemas.source import (
    MAX_INLINE_DOCUMENTS,
    ColumnsSpec,
    DatasetSpec,
    InlineDocument,
    require_one_source,
    require_short_path,
)

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names of indexes and of profiles: they are names of directories and parts of URLs."""
MAX_PRECONDITIONED_DIM = 64
"""Largest projection_dim with a preconditioner, which has p⁴ numbers for each module."""

IndexName = Annotated[str, Field(pattern=NAME_PATTERN, description="Lower-case letters, digits, - and _.")]
ExecutorName = Literal["local", "ray"]
"""Where shards are made and searched: in this process, or on the machines of a Ray cluster. The rows are the same."""

Dtype = Literal["float32", "bfloat16", "float64"]
NormalizerKind = Literal["none", "adafactor", "adam", "kfac"]
FitLabels = Literal["true", "sampled"]
Projection = Literal["rademacher", "normal", "orthogonal"]
RowKind = Literal["float16", "int8", "sign"]
Loss = Literal["sum", "mean"]
Normalize = Literal["none", "row", "block"]
LongDocuments = Literal["error", "truncate", "chunk"]
OnBadDocument = Literal["error", "skip"]
DeviceMapName = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""How transformers spreads a model over the GPUs of a machine, its memory and its disk."""
_by_type = Discriminator(lambda value: "<value>" if isinstance(value, str) else "<values>")
_Place = Annotated[
    Annotated[Literal["cpu", "disk"], Tag("<value>")]
    | Annotated[int, Field(strict=True, ge=0, lt=1024), Tag("<values>")],
    _by_type,
]
_Places = Annotated[
    dict[Annotated[str, Field(max_length=256)], _Place], Field(min_length=1, max_length=4096), Tag("<values>")
]
DeviceMap = Annotated[Annotated[DeviceMapName, Tag("<value>")] | _Places, _by_type]
"""A way to spread a model, or for each module the number of a GPU, `cpu` or `disk`."""
ModuleSet = Literal["mlp", "attention", "down"]
MODULE_SETS: Final[Mapping[str, str]] = {
    "mlp": "module of an MLP",
    "attention": "module of attention",
    "down": "projection of an MLP back to the residual stream",
}
"""What a module of each set is. These names are no regular expressions."""
ALL_MODULES: Final = "all"
"""Another name for what is tracked by default."""
SearchKind = Literal["float16", "rabitq", "hamming"]
"""What is compared to find candidates: φ in float16, φ in one bit per number, or the stored bits of sign rows."""


class GradientSpec(Spec):
    """How a document becomes a row of the index."""

    projection_dim: int = Field(default=16, ge=1, le=256)
    """Size p of the projection: each module's gradient becomes p × p numbers, even if a side of the module is shorter
    than p."""
    normalizer: NormalizerKind = "adafactor"
    """Second-moment normalisation of the gradients before they are projected."""
    rows: RowKind = "float16"
    """How rows are stored. `sign` stores one bit for each number, after the preconditioner, which is then fitted to the
    sample."""
    optimizer_state: str | None = Field(default=None, min_length=1, max_length=4096)
    """Optimizer checkpoint with the second moments of adam or adafactor, to use them instead of a sample's: an
    `optimizer.pt` of the Hugging Face Trainer, its checkpoint directory, or a safetensors file of moments. These are
    second moments of the gradients of batches; those of a sample are of single documents."""
    fit_labels: FitLabels = "true"
    """Labels to fit the normalizer with: `true` takes those of the documents, `sampled` draws them from the model."""
    projection: Projection = "orthogonal"
    """How the random projections are drawn. `rademacher` and `normal` have independent entries, ±1/√p or from N(0,
    1/p). `orthogonal` has orthogonal rows, which lose less if p is not much smaller than the sides of a module, and
    nothing of a side that is shorter than p."""
    loss: Loss = "sum"
    """Cross-entropy of a document: the sum over its labelled tokens, or their mean."""
    preference_beta: float = Field(default=0.1, gt=0, le=1000)
    """β in the loss of preference pairs."""
    modules: str | None = Field(default=None, max_length=1024)
    """Modules to track: `mlp`, the modules of MLPs and experts; `attention`; `down`, the projections of MLPs back to
    the residual stream; or a regular expression that is searched for in the names of the modules. By default, and with
    `all`, all modules except embeddings and the output head are tracked. If the model has adapters, only these are
    tracked. The three sets are parts of the default."""
    include_bias: bool = False
    """Track the gradients of biases too."""
    split_heads: bool = False
    """Track each attention head as a module of its own. The projections to queries, keys and values are split by their
    outputs, the projection back by its inputs. Scores by module are then scores by head. A row has projection_dim²
    numbers for each head."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longest document in tokens. The default is the length of the model's context. If the model states none, memory
    limits the length. `long_documents` says what happens to longer documents."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the random projections."""
    sample_size: int = Field(default=2048, ge=1)
    """Largest number of documents that the normalizer is fitted to."""
    sample_tokens: int | None = Field(default=None, ge=1)
    """Largest number of tokens that the normalizer is fitted to. The default is 4,096 for adafactor and 8,192 for
    others. The sample stops at this number, but has at least 16 documents."""

    _require_path = field_validator("optimizer_state")(require_short_path)

    @classmethod
    def from_preset(cls, name: PresetName, **fields: Any) -> Self:
        """Returns the settings of a preset, such as "best", with `fields` instead of the preset's values.

        Raises:
            InvalidInput: There is no such preset, or a field is wrong.
        """
        return cls.model_validate({**preset_values(name, "gradients"), **fields})

    @model_validator(mode="after")
    def _require_normalizer_of_optimizer(self) -> Self:
        if self.optimizer_state is not None and self.normalizer not in ("adam", "adafactor"):
            raise field_error(
                "normalizer",
                message="expected adam or adafactor, whose second moments optimizer_state holds; got "
                f"{self.normalizer!r}",
            )
        return self

    @field_validator("modules")
    @classmethod
    def _require_regular_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"expected a regular expression of module names: {error}") from None
        return None if value == ALL_MODULES else value


class ScoringSpec(Spec):
    """How rows are compared. The defaults are those of TrackStar (arXiv 2410.17413)."""

    normalize: Normalize = "row"
    """`row` scales each row to unit length after preconditioning, so that scores are cosines. `block` scales each
    module's block of a row by itself, so that scores are means of the modules' cosines. `none` gives the influence
    itself."""
    preconditioner: bool = True
    """Multiply each module's block by the inverse square root of the second moment of the rows."""
    damping: float = Field(default=0.1, gt=0, le=10)
    """Added to each module's second moment, in units of its mean eigenvalue."""

    @classmethod
    def from_preset(cls, name: PresetName, **fields: Any) -> Self:
        """Returns the scoring of a preset, such as "best", with `fields` instead of the preset's values.

        Raises:
            InvalidInput: There is no such preset, or a field is wrong.
        """
        return cls.model_validate({**preset_values(name, "scoring"), **fields})


class SearchSpec(Spec):
    """How candidates are found. The scores of results are exact in any case."""

    kind: Literal["auto", "exact", "rabitq"] = "auto"
    """`exact` compares every row in float16; `rabitq` compares one bit for each number. `auto` chooses `rabitq` for a
    large index if it reaches `min_recall`. Sign rows are compared by their own bits."""
    min_recall: float = Field(default=0.99, gt=0, le=1)
    """Smallest share of the ten best rows that are among the candidates, measured before an index is published."""
    measure: bool = True
    """Measure the search and calibrate the notice before an index is published. If false, a large number of candidates
    is taken, `auto` chooses `exact`, and answers never have the notice."""

    @model_validator(mode="after")
    def _require_measurement_of_recall(self) -> Self:
        if not self.measure and self.min_recall != type(self).model_fields["min_recall"].default:
            raise field_error(
                "min_recall",
                message=f"min_recall is {self.min_recall}, and measure is false: expected measure true, which finds "
                "out what the recall is, or no min_recall",
            )
        return self


_DOCUMENT_FIELDS: Final = ("long_documents", "chunk_overlap", "on_bad_document")
"""Fields of `BuildSpec` that say what becomes of documents, and that an append may state otherwise."""
_ADDED_LATER: Final[Mapping[str, tuple[str, ...]]] = {
    "": (*_DOCUMENT_FIELDS, "reference_model", "reference_revision", "models"),
    "gradients": ("sample_tokens", "split_heads", "preference_beta"),
    "columns": ("chosen", "rejected", "ref_chosen_logps", "ref_rejected_logps"),
}
"""Fields that version 0.1.0 did not have, by the spec that they are in."""


class BuildSpec(Spec):
    """Everything that decides what an index holds."""

    model_config = ConfigDict(json_schema_extra=describe_model_or_models)

    model: str = Field(min_length=1, max_length=4096)
    """Hub id or local directory of a causal language model (safetensors weights only)."""
    models: tuple[str, ...] = Field(default=(), max_length=MAX_CHECKPOINTS)
    """Checkpoints of one training run instead of `model`, the earliest first: 2 to 32 directories, or hub ids with a
    revision such as `EleutherAI/pythia-160m@step1000`. A document's score is the mean of its scores at the checkpoints
    (TracInCP). The last checkpoint is the `model`, which completes prompts and verifies results."""
    revision: str | None = Field(default=None, max_length=256)
    """Branch, tag or commit of the hub repository."""
    dtype: Dtype = "float32"
    """Precision of the weights and of the forward and backward pass."""
    device_map: DeviceMap | None = None
    """Where the parts of a model go that is larger than one device: `auto`, `balanced`, `balanced_low_0` or
    `sequential` as in transformers, or an object with the number of a GPU, `cpu` or `disk` for each module, such as
    `{"model.embed_tokens": 0, "model.layers": 1, "lm_head": "cpu"}`. The default is the machine's BERGSON_DEVICE_MAP.
    Without it, the whole model is on the first GPU, or on the CPU."""
    dataset: DatasetSpec | None = None
    """Dataset with the training documents; give either this or `documents`."""
    documents: tuple[InlineDocument, ...] | None = Field(default=None, max_length=MAX_INLINE_DOCUMENTS)
    """The training documents themselves: up to 10,000 objects with the columns that `columns` names."""
    columns: ColumnsSpec = ColumnsSpec()
    preset: PresetName | None = Field(default=None, exclude=True, description=describe_presets())
    gradients: GradientSpec = GradientSpec()
    scoring: ScoringSpec = ScoringSpec()
    search: SearchSpec = SearchSpec()
    reference_model: str | None = Field(default=None, min_length=1, max_length=4096)
    """Reference of the loss of preference pairs: hub id or local directory of the model that training began with."""
    reference_revision: str | None = Field(default=None, max_length=256)
    """Branch, tag or commit of the reference's hub repository."""
    long_documents: LongDocuments = "error"
    """What happens to documents with more tokens than `max_tokens` or the model allow. `error` stops the build and
    counts them, `truncate` keeps the beginning of each, and `chunk` cuts each into several documents, whose ids end in
    #1, #2, …. Prompts with completions, chats and preference pairs are never cut."""
    chunk_overlap: int = Field(default=0, ge=0)
    """Number of tokens of the previous chunk that a chunk repeats, at most half of the longest document. These tokens
    count in the loss of both chunks."""
    on_bad_document: OnBadDocument = "error"
    """What happens to a document that cannot be indexed because it is not text, is refused by the tokenizer or the chat
    template, has a token without an embedding in the model, or is too long. `error` stops the build and names the
    document, `skip` leaves it out and reports it."""

    _require_path = field_validator("model", "reference_model")(require_short_path)
    _require_checkpoints = field_validator("models")(require_checkpoints)

    @property
    def checkpoints(self) -> int:
        """The number of checkpoints that each row has a part of: 1 where `models` is empty."""
        return max(1, len(self.models))

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        require_one_source(self.dataset, self.documents)
        return self

    @model_validator(mode="after")
    def _require_settings_of_checkpoints(self) -> Self:
        if self.models:
            require_settings_of_checkpoints(self)
        return self

    @model_validator(mode="after")
    def _require_settings_of_pairs(self) -> Self:
        require_settings_of_pairs(self)
        return self

    @model_validator(mode="after")
    def _require_plain_text_to_cut(self) -> Self:
        if self.chunk_overlap and self.long_documents != "chunk":
            raise field_error(
                "chunk_overlap",
                message=f"chunk_overlap is {self.chunk_overlap}, and long_documents is "
                f"{self.long_documents!r}: expected long_documents chunk, or no overlap",
            )
        for name in ("completion", "messages", "chosen"):
            if self.long_documents != "error" and getattr(self.columns, name) is not None:
                raise field_error(
                    "long_documents",
                    message=f"long_documents {self.long_documents!r} cuts plain text only, and columns.{name} is "
                    "given: expected long_documents error, with on_bad_document skip to leave long documents out",
                )
        max_tokens = self.gradients.max_tokens
        if max_tokens is not None and 2 * self.chunk_overlap > max_tokens:
            raise field_error(
                "chunk_overlap",
                message=f"expected at most half of max_tokens, {max_tokens // 2}; got {self.chunk_overlap}",
            )
        return self

    @model_validator(mode="after")
    def _require_dim_of_preconditioner(self) -> Self:
        p = self.gradients.projection_dim
        if self.scoring.preconditioner and p > MAX_PRECONDITIONED_DIM:
            raise field_error(
                *("gradients", "projection_dim"),
                message=f"the preconditioner has p⁴ numbers for each module: expected a projection_dim of at most "
                f"{MAX_PRECONDITIONED_DIM}, got {p}; take a smaller one, or scoring.preconditioner false",
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _take_last_model(cls, fields: Any) -> Any:
        return with_last_model(fields)

    # The last of the validators, so that it sees the errors of those before.
    @model_validator(mode="wrap")
    @classmethod
    def _fill_in_preset(cls, fields: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        return fill_in_preset(fields, validate)

    def fingerprint(self) -> str:
        """Returns the sha256 of the spec: of what was asked for, and not of the files that it names."""
        # Fields that 0.1.0 did not have count only if they are set, so that its fingerprints stay. Where a model lies
        # decides nothing.
        unset: dict[str, Any] = {"device_map": True}
        for place, names in _ADDED_LATER.items():
            spec = getattr(self, place) if place else self
            defaults = type(spec).model_fields
            without = {name: True for name in names if getattr(spec, name) == defaults[name].default}
            unset |= {place: without} if place else without
        if self.dataset is not None and self.dataset.text_documents == "auto":
            unset["dataset"] = {"text_documents"}
        if self.search.measure:
            unset["search"] = {"measure"}
        return hashlib.sha256(self.model_dump_json(exclude=unset).encode()).hexdigest()

    def rows_fingerprint(self) -> str:
        """Returns the sha256 of what decides the rows: the whole spec except how the rows are searched."""
        return self.model_copy(update={"search": SearchSpec()}).fingerprint()


class AppendSpec(Spec):
    """Documents to add to an index. Any further field has to repeat what the index was built with."""

    REPEATED_FIELDS: ClassVar = ("model", "revision", "dtype", "columns", "gradients", "scoring")
    """Fields that may be left out, and otherwise have to equal those of the index's own spec."""

    dataset: DatasetSpec | None = None
    """Dataset with the new documents; give either this or `documents`. Its columns are named as those of the index."""
    documents: tuple[InlineDocument, ...] | None = Field(default=None, max_length=MAX_INLINE_DOCUMENTS)
    """The new documents themselves: up to 10,000 objects."""
    model: str | None = Field(default=None, min_length=1, max_length=4096)
    """As in the build; optional."""
    revision: str | None = Field(default=None, max_length=256)
    """As in the build; optional."""
    dtype: Dtype | None = None
    """As in the build; optional."""
    columns: ColumnsSpec | None = None
    """As in the build; optional."""
    gradients: GradientSpec | None = None
    """As in the build; optional."""
    scoring: ScoringSpec | None = None
    """As in the build; optional."""
    long_documents: LongDocuments | None = None
    """What happens to documents that are too long. The default is that of the build."""
    chunk_overlap: int | None = Field(default=None, ge=0)
    """Number of tokens of the previous chunk that a chunk repeats. The default is that of the build."""
    on_bad_document: OnBadDocument | None = None
    """What happens to documents that cannot be indexed. The default is that of the build."""

    _require_path = field_validator("model")(require_short_path)

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        require_one_source(self.dataset, self.documents)
        return self

    def as_build(self, built: BuildSpec) -> BuildSpec:
        """Returns the build of the new documents alone, for an index that was built by `built`.

        Raises:
            InvalidInput: The fields that this append states do not go together with those of the build.
        """
        changes = {name: getattr(self, name) for name in _DOCUMENT_FIELDS if getattr(self, name) is not None}
        if changes.get("long_documents", "chunk") != "chunk":
            changes.setdefault("chunk_overlap", 0)
        source = {"dataset": self.dataset, "documents": self.documents}
        return BuildSpec.model_validate(dict(built) | source | changes)
