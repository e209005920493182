"""Bodies of requests and responses that only the HTTP service has.

Those about indexes on disk are in `service.index_schemas`, the others in `bergson_core.schemas` and `worker.messages`.
The docstrings are shown on the OpenAPI page.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bergson_core.schemas.base import ResultModel, Spec, field_error
from bergson_core.schemas.build import BuildSpec, IndexName
from bergson_core.schemas.build_parts.inline_documents import find_inline_problem
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsQuery
from worker.messages import JobRecord, JobState, ServiceQuery, WorkerStatus


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


class _BuildRequest(BuildSpec):
    """A build that is asked for, whose inline documents are checked before a job is queued."""

    def build_spec(self) -> BuildSpec:
        """Returns the spec alone."""
        return BuildSpec.model_construct(**{name: getattr(self, name) for name in BuildSpec.model_fields})

    # Not in `BuildSpec`, which also reads the manifests of older indexes, whose ids were others.
    @model_validator(mode="after")
    def _require_valid_documents(self) -> Self:
        skips_bad = self.on_bad_document == "skip"
        if found := find_inline_problem(self.documents or (), self.columns, skips_bad=skips_bad):
            (number, column), problem = found
            raise field_error("documents", number, column, message=problem)
        return self


class IndexRequest(_BuildRequest):
    """What to build, and the name of the index."""

    name: IndexName


class EstimateRequest(_BuildRequest):
    """A build as in `POST /index`, and how long to wait for its estimate."""

    name: IndexName | None = None
    """Ignored, so that the body of `POST /index` can be sent as it is."""
    timeout_s: float = Field(300, gt=0, le=3600)
    """Seconds to wait for the estimate; after that the response is a 504."""


class JobAccepted(ResultModel):
    """A queued job. The header `Location` has its address."""

    job_id: str
    index: IndexName
    state: JobState


MAX_SIDE_BY_SIDE = 16
"""Most indexes that one query asks."""


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


class SideBySideRequest(AttributionQuery):
    """A query for several indexes, and how long to wait for all answers."""

    model_config = ConfigDict(title="SideBySideRequest")

    index: None = None  # pyright: ignore[reportIncompatibleVariableOverride] -- the field is frozen
    """Null: `indexes` names them."""
    indexes: tuple[IndexName, ...] = Field(min_length=2, max_length=MAX_SIDE_BY_SIDE)
    """Names of the indexes, each once."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds to wait for all answers; an index without an answer by then gets a problem. The default and the maximum
    are settings of the service."""

    @field_validator("indexes")
    @classmethod
    def _require_each_once(cls, indexes: tuple[str, ...]) -> tuple[str, ...]:
        for number, name in enumerate(indexes):
            if name in indexes[:number]:
                raise ValueError(f"expected each index once, got {name!r} again")
        return indexes

    def queries(self) -> list[ServiceQuery]:
        """Returns the query for each index."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in AttributionQuery.model_fields}
        return [ServiceQuery.model_construct(**{**fields, "index": name}) for name in self.indexes]


class AttributeResponse(Answer):
    """The training documents behind a completion."""

    request_id: str
    """The `X-Request-ID` of the response."""

    @classmethod
    def from_answer(cls, answer: Answer, request_id: str) -> "AttributeResponse":
        """Returns `answer` with the id of its request."""
        fields = {name: getattr(answer, name) for name in Answer.model_fields}
        return cls.model_construct(**fields, request_id=request_id)


class TotalsRequest(TotalsQuery):
    """A question, a metadata column by which scores are summed, and how long to wait for the totals."""

    timeout_s: float | None = Field(None, gt=0)
    """Seconds to wait for the totals; after that the response is a 504. The default and the maximum are settings of the
    service."""


class TotalsResponse(InfluenceTotals):
    """The influence of all documents on a completion or a behaviour, summed by a metadata column."""

    request_id: str
    """The `X-Request-ID` of the response."""


class LinkRequest(Spec):
    """A query whose answer is kept under a link."""

    request: AttributeRequest
    """A query as in `POST /attribute`."""


class Link(ResultModel):
    """An answer that is kept."""

    id: str
    """Id of the link, which nobody can guess."""
    request: dict[str, Any]
    """The body of `POST /attribute` that was answered."""
    index: str
    generation: int
    """Generation of the index that answered."""
    fingerprint: str | None
    """Fingerprint of that index: the sha256 of its spec."""
    created_at: float
    """Time at which the link was made, Unix time in seconds."""
    expires_at: float
    """Time at which the link ends, Unix time in seconds."""
    stale: bool
    """Whether the index has changed since: it has another generation or fingerprint, or is gone. The same request may
    have another answer then."""
    current_generation: int | None
    """Generation of the index now; null if the index is gone."""
    removed: int
    """Results that are left out because the index no longer has their documents, or has other texts under their
    ids."""
    answer: AttributeResponse | None
    """What the service answered, with the texts that the index has now. Null if the index is gone. For an API key that
    may see no text, it has none."""


class BatchResponse(ResultModel):
    """The answers to several queries, or the answers of several indexes to one query."""

    results: list[AttributeResponse | ProblemDetails]
    """For each query, or for each index, in the order of the request, the answer or the problem that it met."""


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


class KeyPermissions(ResultModel):
    """What an API key may do."""

    name: str
    """Name of the key; `anybody` where the service needs no key."""
    scope: Literal["read", "write", "admin"]
    """Each scope includes those before it: `read`, `write`, `admin`."""
    indexes: list[str]
    """Indexes that the key may see, as shell patterns. Empty for a key that sees all of them."""
    text: bool
    """Whether the key may see prompts, completions and metadata of documents."""
    rate: str | None
    """Most calls in a span of time, such as `100/minute`."""
    concurrent: int | None
    """Most calls that may be open at once in one web process."""
    expires_at: float | None
    """Time at which the key ends, Unix time in seconds."""


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
