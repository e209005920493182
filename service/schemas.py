"""Bodies of requests and responses that only the HTTP service has.

The others are in `bergson_core.schemas` and `worker.messages`. The docstrings are shown on the OpenAPI page.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bergson_core.schemas.base import ResultModel, Spec
from bergson_core.schemas.build import BuildSpec, IndexName
from bergson_core.schemas.documents import Chunk, DocumentReport
from bergson_core.schemas.results import Answer, SizesBytes
from bergson_core.storage.manifest import NoticeEntry, SearchEntry
from worker.messages import JobRecord, JobState, Problem, ServiceQuery, WorkerStatus


class FieldError(BaseModel):
    """A field of a request that was refused."""

    loc: list[str | int]
    """Location of the field: `body`, `query`, `path` or `header`, then the names and positions that lead to it."""
    msg: str
    """What was expected."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ProblemDetails(BaseModel):
    """An error in the format of RFC 9457.

    Programs branch on `code`, people read `detail`; please quote `request_id` when you report an error.
    """

    type: str
    """A URN that ends in the code."""
    title: str
    """The kind of error, in words. It is the same whenever `code` is."""
    status: int
    """The HTTP status of the response, or of what the response would have been for one query of a batch."""
    detail: str
    """What went wrong this time, and what to do."""
    code: str
    """The kind of error, as a name that never changes."""
    request_id: str
    """The `X-Request-ID` of the response, which is also in the service's log."""
    errors: list[FieldError] | None = None
    """The refused fields, if the request was invalid."""
    ids: list[str] | None = None
    """For `ids_exist`: the ids that the index has already."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class IndexRequest(BuildSpec):
    """What to build, and the name of the index."""

    name: IndexName

    def build_spec(self) -> BuildSpec:
        """Returns the spec alone."""
        return BuildSpec.model_construct(**{name: getattr(self, name) for name in BuildSpec.model_fields})


class EstimateRequest(BuildSpec):
    """A build as in `POST /index`, and how long to wait for its estimate."""

    name: IndexName | None = None
    """Ignored, so that the body of `POST /index` can be sent as it is."""
    timeout_s: float = Field(300, gt=0, le=3600)
    """Seconds to wait for the estimate; after that the response is a 504."""

    def build_spec(self) -> BuildSpec:
        """Returns the spec alone."""
        return BuildSpec.model_construct(**{name: getattr(self, name) for name in BuildSpec.model_fields})


class JobAccepted(ResultModel):
    """A queued job. The header `Location` has its address."""

    job_id: str
    index: IndexName
    state: JobState


class IndexSummary(ResultModel):
    """An index that is published or being built. A field that is not known yet is null."""

    name: str
    state: Literal["ready", "building", "corrupt"]
    """`ready` answers queries, `building` has a job at work, and `corrupt` has a manifest that cannot be read."""
    job_id: str | None = None
    """The job that builds the index, if the state is `building`."""
    error: Problem | None = None
    """Why the manifest cannot be read, if the state is `corrupt`."""
    generation: int | None = None
    """Number of the index's current version; each change of the index increases it by one."""
    created_at: str | None = None
    model: str | None = None
    rows: int | None = None
    """Documents in the index."""
    tokens: int | None = None
    """Tokens of all documents together."""
    skipped: int | None = None
    """Documents that no query can find, because their gradients were not finite. The worker's log names them."""
    modules: int | None = None
    """Modules of the model whose gradients are tracked."""
    dimensions: int | None = None
    """Numbers stored for each document."""
    coverage_percent: float | None = None
    """Percentage of the model's parameters that belong to tracked modules."""
    size_bytes: SizesBytes | None = None


class IndexDetail(IndexSummary):
    """An index with the spec from which it was built."""

    spec: BuildSpec | None = None
    """The spec with its defaults filled in. Inline documents are left out, so that their list is empty."""
    fingerprint: str | None = None
    """sha256 of the spec."""
    model_sha256: str | None = None
    """Hash of the model's config, weights and tokenizer."""
    documents: DocumentReport | None = None
    """Documents that were left out or cut, because they could not be indexed as they stand."""
    profiles: list[str] = []
    """Profiles that a query may name in its field `profile`."""
    taken_down: int | None = None
    """Documents that were taken down so far, and that no answer shows."""
    compacted: int | None = None
    """Documents among these whose bytes were removed. `POST /index/{name}/compact` removes those of the others."""
    search: SearchEntry | None = None
    """How the search finds candidates, and how many of the ten best rows are among them."""
    notice: NoticeEntry | None = None
    """When an answer claims an influence, and how often it does so falsely; null if the index has too few rows to
    tell."""


class DocumentDetail(ResultModel):
    """A training document in the index."""

    index: str
    id: str
    prompt: str | None
    """Text of the document, or its prompt. Null, like completion and metadata, if the API key may see no text."""
    completion: str | None = None
    metadata: dict[str, Any] | None
    loss: float | None
    """Sum of the cross-entropies of the document's labelled tokens under the model, in nats; null if the document was
    skipped."""
    n_tokens: int
    """Labelled tokens of the document, over which the loss is taken."""
    chunk: Chunk | None = None
    """What the text is a part of, if the document was too long and was cut."""
    chunks: list[str] | None = None
    """Ids of the chunks, if this is a document that was cut into chunks. The text is then that of all of them, and loss
    and n_tokens are sums over them."""

    def without_text(self) -> "DocumentDetail":
        """Returns the document for a caller who may see no text."""
        return self.model_copy(update={"prompt": None, "completion": None, "metadata": None})


class IndexPage(ResultModel):
    """A page of indexes, in the order of their names."""

    items: list[IndexSummary]
    next_cursor: str | None = None
    """Value of `cursor` for the next page; null on the last page."""


class AttributeRequest(ServiceQuery):
    """A query, and how long to wait for its answer."""

    model_config = ConfigDict(title="AttributeRequest")

    timeout_s: float | None = Field(None, gt=0)
    """Seconds to wait for the answer; after that the response is a 504. The default and the maximum are settings of the
    service."""

    def query(self) -> ServiceQuery:
        """Returns the query alone."""
        return ServiceQuery.model_construct(
            **{name: getattr(self, name) for name in ServiceQuery.model_fields}
        )


MAX_BATCH_QUERIES = 256


class BatchRequest(Spec):
    """Many queries, and how long to wait for all answers."""

    queries: tuple[ServiceQuery, ...] = Field(min_length=1, max_length=MAX_BATCH_QUERIES)
    """Queries as in `POST /attribute`."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds to wait for all answers; a query without an answer by then gets a problem. The default and the maximum
    are settings of the service."""


class AttributeResponse(Answer):
    """The training documents behind a completion."""

    request_id: str
    """The `X-Request-ID` of the response."""

    @classmethod
    def from_answer(cls, answer: Answer, request_id: str) -> "AttributeResponse":
        """Returns `answer` with the id of its request."""
        fields = {name: getattr(answer, name) for name in Answer.model_fields}
        return cls.model_construct(**fields, request_id=request_id)


class BatchResponse(ResultModel):
    """The answers to a batch of queries."""

    results: list[AttributeResponse | ProblemDetails]
    """For each query, in the order of the queries, its answer or the problem that it met."""


class ModelSummary(ResultModel):
    """A model that workers hold in memory."""

    model: str
    revision: str | None = None
    dtype: str
    sha256: str
    """Hash of the model's config, weights and tokenizer."""
    parameters: int
    """Number of the model's parameters."""
    workers: list[str]
    """Ids of the workers that hold the model."""
    indexes: list[str]
    """Indexes in memory that were built from the model."""


class ModelList(ResultModel):
    """The models in memory, in the order of their names."""

    items: list[ModelSummary]


class JobPage(ResultModel):
    """A page of jobs, newest first."""

    items: list[JobRecord]
    next_cursor: str | None = None
    """Value of `cursor` for the next page; null on the last page."""


class WorkerList(ResultModel):
    """The live workers, in the order of their ids."""

    items: list[WorkerStatus]


class Live(ResultModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Ready(ResultModel):
    """Redis answers and accepts writes, and workers are alive."""

    status: Literal["ready"] = "ready"
    workers: int
    """Number of live workers."""
