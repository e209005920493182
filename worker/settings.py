"""Settings of the workers and of the queue, which are read from environment variables such as BERGSON_DATA_DIR.

Web processes read the same settings, and `service.settings` adds their own. The docstrings of the fields are the table
of docs/settings.md and the help of the command line.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bergson_core.errors import InvalidInput
from bergson_core.schemas.base import describe_validation_error
from bergson_core.schemas.build import ExecutorName

PROCESS_LOG_FILE = "processes.log"
"""File in the data directory that `bergson up` and `bergson demo` have their processes log to."""
_SERVICE_FILES = ("indexes", "uploads", "redis", "keys.json", "canary", "links", PROCESS_LOG_FILE)
"""What the service itself keeps in the data directory, and what no job may read as a model or dataset."""


def _split_paths(value: object) -> object:
    """Splits a string of paths as a shell writes it, such as `/data:/models`."""
    if isinstance(value, str):
        return [part for part in value.split(os.pathsep) if part]
    return value


def _split_patterns(value: object) -> object:
    """Splits a string of patterns at its commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


LogFormat = Literal["auto", "json", "text"]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
PathList = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_paths)]
PatternList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_patterns)]


class Settings(BaseSettings):
    """Settings that all web processes and workers of a system share."""

    model_config = SettingsConfigDict(
        env_prefix="BERGSON_",
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,  # a URL may hold a password
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("data")
    """Directory of the indexes, of inline documents while an index is built from them, and of the embedded Redis."""
    redis_url: str | None = Field(default=None, validation_alias="REDIS_URL", repr=False)
    """URL of Redis: `redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://` or `rediss+sentinel://`, with user
    and password if Redis requires them (docs/service.md). By default a Redis is started; its data is in `data_dir`."""
    allowed_roots: PathList = ()
    """Directories that requests may name local models and datasets in, separated by `:`. By default only `data_dir`."""
    allowed_models: PatternList = ("*",)
    """Models on the Hugging Face hub that requests may name: shell patterns separated by commas, such as
    `EleutherAI/*,gpt2`. An empty value allows none. Local models are allowed by `allowed_roots`."""
    allowed_datasets: PatternList = ("*",)
    """Datasets on the Hugging Face hub that requests may name, as patterns like those of `allowed_models`."""
    lease_s: float = Field(default=60, gt=0)
    """Seconds after which a job whose worker has fallen silent goes to another worker."""
    query_lease_s: float = Field(default=5, gt=0)
    """Seconds after which a query whose worker has fallen silent goes to another worker."""
    heartbeat_s: float = Field(default=2, gt=0)
    """Seconds between the heartbeats of a worker. A worker counts as dead once it has missed three of them."""
    poll_s: float = Field(default=0.25, gt=0, le=4)
    """Seconds that an idle worker waits for a query, or a busy one answers queries, before it looks for a job."""
    job_share: float = Field(default=0.5, gt=0, lt=1)
    """Part of a worker's time, between 0 and 1, that a job gets while queries wait all the time. Whatever the load, a
    job that waits starts within seconds."""
    query_batch: int = Field(default=32, ge=1, le=1024)
    """Largest number of waiting queries that a worker takes and answers together."""
    max_query_tokens: int | None = Field(default=None, ge=2)
    """Largest number of tokens of a query. By default it is the context of the model or, for a model that states none,
    as many as a pass has memory for when the index is opened."""
    max_queued_queries: int = Field(default=1000, ge=1)
    """Largest number of queries that wait or are worked on; further queries are refused."""
    max_queue_wait_s: float = Field(default=10, gt=0)
    """Longest time in seconds that the oldest waiting query may have waited; after it, further queries are refused."""
    max_queued_jobs: int = Field(default=1000, ge=1, le=10_000)
    """Largest number of jobs, estimates among them, that wait or run; further jobs are refused."""
    max_queued_job_bytes: int = Field(default=512 * 2**20, ge=1)
    """Largest size in bytes, in Redis, of the jobs that wait or run, with their inline documents."""
    max_queued_jobs_per_key: int = Field(default=100, ge=1)
    """Largest number of jobs of one API key that wait or run; further jobs of this key are refused."""
    max_queued_job_bytes_per_key: int = Field(default=128 * 2**20, ge=1)
    """Largest size in bytes, in Redis, of the jobs of one API key that wait or run, with their inline documents."""
    max_deliveries: int = Field(default=3, ge=1)
    """Number of times that a job is started before it is given up as one that kills its workers."""
    max_unlearned_documents: int = Field(default=1000, ge=1, le=100_000)
    """Largest number of documents, or chunks of documents, that `POST /index/{name}/unlearn` unlearns together. Each
    takes two passes through the model."""
    resident_indexes: int = Field(default=4, ge=1)
    """Largest number of indexes that a worker keeps in memory; the least recently used index makes room for another."""
    keep_jobs_s: int = Field(default=7 * 24 * 3600, ge=1)
    """Seconds for which a job can still be looked up after it has ended. What a failed build has finished is kept as
    long, so that a build of the same spec can go on from there."""
    keep_jobs: int = Field(default=10_000, ge=1)
    """Largest number of ended jobs that can still be looked up; the one that ended first makes room for another."""
    device_map: str | None = None
    """Where this machine puts the parts of a model that is larger than one device, unless a build says it: a value of
    `device_map` as in `POST /index`, an object as JSON (docs/scaling.md). Commands without a service read it too."""
    threads: int = Field(default=0, ge=0)
    """Threads that torch and FAISS use in a worker; with 0 the libraries choose."""
    executor: ExecutorName = "local"
    """Where shards are built and searched: `local` in the worker itself, `ray` on the machines of a Ray cluster."""
    log_format: LogFormat = "auto"
    """Format of the log: `json` writes one object a line, `text` is for people, and `auto` is text on a terminal and
    JSON elsewhere."""
    log_level: LogLevel = "info"
    """Lowest level that is logged: debug, info, warning or error."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def indexes_dir(self) -> Path:
        """Parent directory of the indexes; the name of a directory in it is the name of its index."""
        return self.data_dir / "indexes"

    @property
    def uploads_dir(self) -> Path:
        """Directory of inline documents while an index is built from them."""
        return self.data_dir / "uploads"

    @property
    def heartbeat_ttl_s(self) -> float:
        """Seconds after its latest heartbeat for which a worker counts as alive."""
        return 3 * self.heartbeat_s

    @property
    def readable_roots(self) -> tuple[Path, ...]:
        """Real paths of the directories that a job may read models and datasets from."""
        return tuple(root.expanduser().resolve() for root in self.allowed_roots or (self.data_dir,))

    def require_roots(self) -> None:
        """Checks that the allowed directories exist, in a process that reads from them.

        Raises:
            InvalidInput: One of them does not exist.
        """
        for root in self.allowed_roots:
            if not root.expanduser().is_dir():
                raise InvalidInput(
                    f"BERGSON_ALLOWED_ROOTS: no directory at {root.expanduser().absolute()}; expected one that exists, "
                    f"or several separated by {os.pathsep!r}"
                )

    def may_read(self, path: Path) -> bool:
        """Returns whether a job may read a real path: it is below a readable root, and not a file of the service."""
        data_dir = self.data_dir.resolve()
        is_below_root = any(path.is_relative_to(root) for root in self.readable_roots)
        return is_below_root and not any(path.is_relative_to(data_dir / name) for name in _SERVICE_FILES)


def environment_variable(settings: type[BaseSettings], name: str) -> str:
    """Returns the environment variable that a field of `settings` is read from."""
    alias = settings.model_fields[name].validation_alias
    return str(alias) if alias else f"{settings.model_config.get('env_prefix', '')}{name}".upper()


def describe_settings_error(error: ValidationError, settings: type[BaseSettings]) -> str:
    """Returns one line that says which environment variables are wrong, what was expected, and what came."""

    def with_variable(line: str) -> str:
        path, colon, message = line.partition(": ")
        field = path.partition(".")[0]
        name = environment_variable(settings, field) if field in settings.model_fields else path
        return f"{name}{colon}{message}"

    return "; ".join(map(with_variable, describe_validation_error(error, "settings").splitlines()))
