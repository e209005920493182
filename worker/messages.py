"""The messages that web processes and workers exchange through Redis.

They are JSON and never pickles, because reading a pickle can run code. Every message has a `schema_version`; a reader
refuses a version that it does not know.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.behaviours.spec import BehaviourSpec
from bergson_core.schemas.build import AppendSpec, BuildSpec, IndexName
from bergson_core.schemas.query import AttributionQuery, ProfileSpec
from bergson_core.schemas.results import Answer, Estimate, Progress
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsSpec
from bergson_core.schemas.unlearning.results import UnlearnPreview
from bergson_core.schemas.unlearning.spec import UnlearnSpec
from worker.problem import Problem

SCHEMA_VERSION = 4
MAX_MESSAGE_BYTES = 2**28
"""Largest size in bytes of a message that is read: more than any request needs, and too little to exhaust memory."""

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
"""An interactive query is one that a person waits for, a batch query is one of many; interactive queries go first."""

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})

MetricSuffix = Literal["", "_total", "_bucket", "_count", "_sum"]
METRIC_SUFFIXES: frozenset[MetricSuffix] = frozenset(get_args(MetricSuffix))
"""Suffixes of the samples that a heartbeat carries; `_created`, the time of creation, is not one of them."""


LabelName = Annotated[str, Field(pattern="^[a-z_]+$")]


class Message(ResultModel):
    """Base of all messages."""

    schema_version: Literal[4] = SCHEMA_VERSION


class RequestMessage(Message):
    """Base of the messages that a web process sends on behalf of a caller."""

    request_id: str
    traceparent: str | None = None
    """W3C traceparent of the span that the message belongs to, if the web process is traced."""


class _IndexJob(RequestMessage):
    job_id: str
    index: IndexName


class BuildJob(_IndexJob):
    """Builds an index and publishes it below the data directory."""

    kind: Literal["build"] = "build"
    spec: BuildSpec


class AppendJob(_IndexJob):
    """Adds documents to a published index."""

    kind: Literal["append"] = "append"
    spec: AppendSpec


class ProfileJob(_IndexJob):
    """Fits a profile for a task and adds it to a published index."""

    kind: Literal["profile"] = "profile"
    spec: ProfileSpec


class BehaviourJob(_IndexJob):
    """Creates a behaviour of a published index."""

    kind: Literal["behaviour"] = "behaviour"
    spec: BehaviourSpec


class CompactJob(_IndexJob):
    """Removes the bytes of taken-down documents from a published index."""

    kind: Literal["compact"] = "compact"


class EstimateJob(RequestMessage):
    """Estimates the time and space that a build would take; the estimate is in the job's record."""

    kind: Literal["estimate"] = "estimate"
    job_id: str
    index: None = None
    spec: BuildSpec


class UnlearnJob(_IndexJob):
    """Previews what unlearning some documents together would do; the preview is in the job's record."""

    kind: Literal["unlearn"] = "unlearn"
    spec: UnlearnSpec


Job = Annotated[
    BuildJob | AppendJob | ProfileJob | BehaviourJob | CompactJob | EstimateJob | UnlearnJob,
    Field(discriminator="kind"),
]
JobResult = Estimate | UnlearnPreview
"""What a job has found that changes nothing."""
READING_JOBS: frozenset[str] = frozenset({"estimate", "unlearn"})
"""Kinds of jobs that change nothing on disk. They neither wait for an index nor keep others waiting for it."""
JOB_ADAPTER: TypeAdapter[Job] = TypeAdapter(Job)


class ServiceQuery(AttributionQuery):
    """A prompt and the model's completion of it: which training documents of an index made the model say this?"""

    # A service has several indexes, so `index` is required. The OpenAPI document has always called this class
    # AttributionQuery, and clients are generated from it.
    __qualname__ = "AttributionQuery"
    model_config = ConfigDict(title="AttributionQuery")

    index: IndexName = Field()  # pyright: ignore[reportIncompatibleVariableOverride] -- the field is frozen


class Query(RequestMessage):
    """A query on its way to a worker; the reply, with the same `query_id`, goes to the stream `reply_to`."""

    query_id: str
    reply_to: str
    sent_at: FiniteFloat
    """When the query was sent, in seconds of Unix time."""
    deadline: FiniteFloat
    """When the caller stops waiting for the answer, in seconds of Unix time."""
    priority: Priority = "interactive"
    query: ServiceQuery
    totals: TotalsSpec | None = None
    """How to sum the scores of all documents for the query; None if its results are asked for."""

    @property
    def has_follow_up(self) -> bool:
        """Whether something is done after the search."""
        return self.totals is not None or self.query.has_follow_up


class Reply(Message):
    """The reply to a query: an answer, or totals if the query asked for them, or a problem."""

    query_id: str
    answer: Answer | None = None
    totals: InfluenceTotals | None = None
    problem: Problem | None = None


class JobRecord(ResultModel):
    """The public state of a job. Times are in seconds of Unix time."""

    model_config = ConfigDict(
        allow_inf_nan=False
    )  # JSON has no such numbers, so that nobody could read the record

    job_id: str
    kind: str
    """`build`, `append`, `profile`, `behaviour`, `compact`, `estimate` or `unlearn`."""
    index: IndexName | None = None
    """Name of the index; null for an estimate, which belongs to no index."""
    state: JobState
    progress: Progress = Progress()
    estimate: Estimate | None = None
    """Result of an estimate, once it has succeeded."""
    unlearning: UnlearnPreview | None = None
    """Result of a preview of unlearning, once it has succeeded."""
    error: Problem | None = None
    """Why the job has failed."""
    waits_for: str | None = None
    """What a queued job waits for other than its turn: the process that still holds the lock of its index."""
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    deliveries: int = Field(default=0, ge=0)
    """How many times a worker has started the job."""

    @property
    def changed_index(self) -> IndexName | None:
        """Name of the index that the job builds or changes; None for a job that changes nothing."""
        return None if self.kind in READING_JOBS else self.index


class ResidentModel(ResultModel):
    """A model in a worker's memory."""

    model: str
    revision: str | None = None
    dtype: str
    sha256: str
    """Hash of the model's config, weights and tokenizer."""
    parameters: int
    """Number of parameters."""
    indexes: list[str] = []
    """Names of the open indexes that were built from the model."""


class WorkerStatus(ResultModel):
    """The public state of a live worker."""

    worker_id: str
    pid: int
    host: str
    device: str
    """Device that the worker computes on."""
    started_at: float
    """When the worker started, in seconds of Unix time."""
    state: Literal["idle", "building"]
    """`building` while a job runs; the worker answers queries in both states."""
    resident: list[str] = []
    """Names of the indexes in memory."""
    models: list[ResidentModel] = []
    memory_bytes: int = 0
    """Resident memory of the process, mapped files included."""


class MetricFamily(ResultModel):
    """A Prometheus metric with its samples, each of which is a suffix of the name, labels and a value."""

    name: str = Field(pattern=r"^bergson_[a-z_]+$")
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[MetricSuffix, dict[LabelName, str], float]]


class Heartbeat(WorkerStatus):
    """What a worker writes to Redis every few seconds; it expires if the worker falls silent."""

    metrics: list[MetricFamily] = []
    """The worker's metrics (`worker.telemetry.metrics`)."""
