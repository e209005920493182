"""Bodies of requests and responses that only HTTP has; the others are `bergson_core.schemas.build` and `answers`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bergson_core.schemas.base import ResultModel, Spec
from bergson_core.schemas.build import BuildSpec, IndexName
from bergson_core.schemas.results import Answer, SizesBytes
from bergson_core.storage.manifest import NoticeEntry, SearchEntry
from worker.messages import JobRecord, JobState, Problem, ServiceQuery, WorkerStatus


class FieldError(BaseModel):
    """One field that was refused."""

    loc: list[str | int]
    """Where: `body`, `query`, `path` or `header`, then the names and positions that lead to the field."""
    msg: str
    """What was expected."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ProblemDetails(BaseModel):
    """An error as RFC 9457 has it. Branch on `code`, show `detail`, quote `request_id` when you report it."""

    type: str
    """A URN that ends in the code."""
    title: str
    """The kind of error, the same for every occurrence."""
    status: int
    """The HTTP status, again."""
    detail: str
    """What went wrong this time, and what to do."""
    code: str
    """Stable name of the kind of error."""
    request_id: str
    """The `X-Request-ID` of the response, also in the server's log."""
    errors: list[FieldError] | None = None
    """For validation: each refused field."""
    ids: list[str] | None = None
    """For `ids_exist`: the ids that the index has already."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class IndexRequest(BuildSpec):
    """What to build, and the name to publish it under."""

    name: IndexName

    def build_spec(self) -> BuildSpec:
        """The spec alone."""
        return BuildSpec.model_construct(**{name: getattr(self, name) for name in BuildSpec.model_fields})


class EstimateRequest(BuildSpec):
    """A build as in `POST /index`, and how long to wait for its estimate."""

    name: IndexName | None = None
    """May be left in the body; nothing is made under it."""
    timeout_s: float = Field(300, gt=0, le=3600)
    """Seconds to wait before a 504."""

    def build_spec(self) -> BuildSpec:
        """The spec alone."""
        return BuildSpec.model_construct(**{name: getattr(self, name) for name in BuildSpec.model_fields})


class JobAccepted(ResultModel):
    """The job is queued: follow it at `Location`."""

    job_id: str
    index: IndexName
    state: JobState


class IndexSummary(ResultModel):
    """An index, published or on its way. What is not known yet is null."""

    name: str
    state: Literal["ready", "building", "corrupt"]
    """`corrupt`: the manifest cannot be read; `error` says why."""
    job_id: str | None = None
    """The job that builds it."""
    error: Problem | None = None
    generation: int | None = None
    """Counts up with each change of the index."""
    created_at: str | None = None
    model: str | None = None
    rows: int | None = None
    """Samples in the index."""
    tokens: int | None = None
    """Tokens of those samples."""
    skipped: int | None = None
    """Samples that can never be found, because their gradients were not finite; the worker's log names them."""
    modules: int | None = None
    """Layers whose gradients are tracked."""
    dimensions: int | None = None
    """Numbers stored for each sample."""
    coverage_percent: float | None = None
    """Share of the model's parameters that the tracked layers hold."""
    size_bytes: SizesBytes | None = None


class IndexDetail(IndexSummary):
    """An index with the spec that it was built from."""

    spec: BuildSpec | None = None
    """As it was asked for, with defaults filled in. Inline documents are left out: their list is empty."""
    fingerprint: str | None = None
    """sha256 of the spec."""
    model_sha256: str | None = None
    """Content hash of the weights."""
    profiles: list[str] = []
    """Names that `profile` of a query can have."""
    taken_down: int | None = None
    """Takedowns so far: these documents are never shown."""
    compacted: int | None = None
    """Those of them whose bytes are gone: `POST /index/{name}/compact` removes the others'."""
    search: SearchEntry | None = None
    """How candidates are found, and how many of the ten best rows are among them."""
    notice: NoticeEntry | None = None
    """From where on an answer claims an influence, and with which rate of false alarms; null for too few rows."""


class DocumentDetail(ResultModel):
    """A training sample as the index holds it."""

    index: str
    id: str
    prompt: str | None
    """Null, as completion and metadata are, where the API key shows no text."""
    completion: str | None = None
    metadata: dict[str, Any] | None
    loss: float | None
    """Sum of the sample's token cross-entropies under the indexed model, in nats; null where it was skipped."""
    n_tokens: int
    """Tokens that the loss is taken over."""

    def without_text(self) -> "DocumentDetail":
        """The document as it is shown with a key that shows no text."""
        return self.model_copy(update={"prompt": None, "completion": None, "metadata": None})


class IndexPage(ResultModel):
    """Indexes in the order of their names."""

    items: list[IndexSummary]
    next_cursor: str | None = None
    """Pass as `cursor` for the next page; null on the last."""


class AttributeRequest(ServiceQuery):
    """A prompt and what the model said, and how long to wait for the answer."""

    model_config = ConfigDict(title="AttributeRequest")

    timeout_s: float | None = Field(None, gt=0)
    """Seconds to wait before a 504; the server's default where null, and no more than its maximum."""

    def query(self) -> ServiceQuery:
        """The query alone."""
        return ServiceQuery.model_construct(
            **{name: getattr(self, name) for name in ServiceQuery.model_fields}
        )


MAX_BATCH_QUERIES = 256


class BatchRequest(Spec):
    """Many questions at once, and how long to wait for all answers."""

    queries: tuple[ServiceQuery, ...] = Field(min_length=1, max_length=MAX_BATCH_QUERIES)
    """Each as in `POST /attribute`."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds to wait; what is not answered by then is a problem. The server's default where null."""


class AttributeResponse(Answer):
    """The training samples behind the completion."""

    request_id: str

    @classmethod
    def from_answer(cls, answer: Answer, request_id: str) -> "AttributeResponse":
        """`answer` under its request's id."""
        fields = {name: getattr(answer, name) for name in Answer.model_fields}
        return cls.model_construct(**fields, request_id=request_id)


class BatchResponse(ResultModel):
    """For each question in order its answer, or the problem that it met."""

    results: list[AttributeResponse | ProblemDetails]


class ModelSummary(ResultModel):
    """A model that workers have in memory."""

    model: str
    revision: str | None = None
    dtype: str
    sha256: str
    """Of config, weights and tokenizer."""
    parameters: int
    workers: list[str]
    """Ids of the workers that hold it."""
    indexes: list[str]
    """Open indexes that were built from it."""


class ModelList(ResultModel):
    """Models in memory, by name."""

    items: list[ModelSummary]


class JobPage(ResultModel):
    """Jobs, newest first."""

    items: list[JobRecord]
    next_cursor: str | None = None
    """Pass as `cursor` for the next page; null on the last."""


class WorkerList(ResultModel):
    """Live workers."""

    items: list[WorkerStatus]


class Live(ResultModel):
    """The process is up."""

    status: Literal["ok"] = "ok"


class Ready(ResultModel):
    """Redis answers and somebody is there to do the work."""

    status: Literal["ready"] = "ready"
    workers: int
    """Live workers."""
