"""What crosses Redis: JSON of these classes, never pickle. No torch here.

Every message carries `schema_version`; a reader refuses one it does not know instead of guessing.
"""

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import AppendSpec, BuildSpec, IndexName
from bergson_core.schemas.query import AttributionQuery, ProfileSpec
from bergson_core.schemas.results import Answer, Estimate, Progress

SCHEMA_VERSION = 3
MAX_MESSAGE_BYTES = 2**28
"""Of a message that is read: more than any request has, and less than fills a memory."""

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
"""Whether somebody waits for this one query, or it is one of many; the former goes first."""

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
MetricSuffix = Literal["", "_total", "_bucket", "_count", "_sum"]
METRIC_SUFFIXES: frozenset[MetricSuffix] = frozenset(get_args(MetricSuffix))
FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


class Message(ResultModel):
    """Base of everything that is sent."""

    schema_version: Literal[3] = SCHEMA_VERSION


class RequestMessage(Message):
    """Base of what a web process sends for one of its callers."""

    request_id: str
    traceparent: str | None = None
    """The span that it belongs to, as the W3C writes it, where there is tracing."""


class Problem(ResultModel):
    """An error on its way to the caller: `code` is one of `bergson_core.errors`."""

    code: str
    detail: str


class _IndexJob(RequestMessage):
    job_id: str
    index: IndexName


class BuildJob(_IndexJob):
    """Build an index and publish it below the data directory."""

    kind: Literal["build"] = "build"
    spec: BuildSpec


class AppendJob(_IndexJob):
    """Add documents to a published index."""

    kind: Literal["append"] = "append"
    spec: AppendSpec


class ProfileJob(_IndexJob):
    """Fit a published index to a task."""

    kind: Literal["profile"] = "profile"
    spec: ProfileSpec


class CompactJob(_IndexJob):
    """Remove the bytes of what was taken down from a published index."""

    kind: Literal["compact"] = "compact"


class EstimateJob(RequestMessage):
    """Find out what a build would take; the finding stands in the job's record."""

    kind: Literal["estimate"] = "estimate"
    job_id: str
    index: None = None
    spec: BuildSpec


Job = Annotated[BuildJob | AppendJob | ProfileJob | CompactJob | EstimateJob, Field(discriminator="kind")]
JOB_ADAPTER: TypeAdapter[Job] = TypeAdapter(Job)


class ServiceQuery(AttributionQuery):
    """A prompt and the model's completion of it: which training documents of an index made the model say this?"""

    # A service has several indexes, so `index` is required. The OpenAPI document has always called this class
    # AttributionQuery, and clients are generated from it.
    __qualname__ = "AttributionQuery"
    model_config = ConfigDict(title="AttributionQuery")

    index: IndexName = Field()  # pyright: ignore[reportIncompatibleVariableOverride] -- the field is frozen


class Query(RequestMessage):
    """One question; the answer goes to the stream `reply_to` under the same `query_id`."""

    query_id: str
    reply_to: str
    sent_at: FiniteFloat
    """Unix time in seconds."""
    deadline: FiniteFloat
    """Unix time in seconds after which nobody waits for the answer."""
    priority: Priority = "interactive"
    query: ServiceQuery


class Reply(Message):
    """An answer or a problem, never both."""

    query_id: str
    answer: Answer | None = None
    problem: Problem | None = None


class JobRecord(ResultModel):
    """A job as anybody may see it."""

    job_id: str
    kind: str
    index: str | None = None
    """Null for an estimate, which is of no index."""
    state: JobState
    progress: Progress = Progress()
    estimate: Estimate | None = None
    """What an estimate has found."""
    error: Problem | None = None
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    deliveries: int = Field(default=0, ge=0)


class ResidentModel(ResultModel):
    """A model in a worker's memory."""

    model: str
    revision: str | None = None
    dtype: str
    sha256: str
    """Of config, weights and tokenizer."""
    parameters: int
    indexes: list[str] = []
    """Open indexes that were built from it."""


class WorkerStatus(ResultModel):
    """A live worker, as anybody may see it."""

    worker_id: str
    pid: int
    host: str
    device: str
    started_at: float
    state: Literal["idle", "building"]
    resident: list[str] = []
    """Names of the indexes in memory."""
    models: list[ResidentModel] = []
    memory_bytes: int = 0
    """Resident memory of the process, mapped files included."""


class MetricFamily(ResultModel):
    """A metric of Prometheus. A sample is a suffix of the name, labels, and a value."""

    name: str = Field(pattern=r"^bergson_[a-z_]+$")
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[MetricSuffix, dict[str, str], float]]


class Heartbeat(WorkerStatus):
    """What a worker writes every few seconds, with a time to live."""

    metrics: list[MetricFamily] = []
    """Its numbers so far (`worker.telemetry.metrics`)."""
