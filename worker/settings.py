"""Settings of the worker and of the queue, from the environment: `BERGSON_DATA_DIR`, `BERGSON_LEASE_S`, ...

The web process reads the same ones. A field's docstring is its documentation. No torch here.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bergson_core.schemas.build import ExecutorName


def _split_paths(value: object) -> object:
    """A string as the shell writes a list of paths: `/data:/models`."""
    if isinstance(value, str):
        return [part for part in value.split(os.pathsep) if part]
    return value


def _split_patterns(value: object) -> object:
    """Patterns separated by commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


PatternList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_patterns)]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


LogFormat = Literal["auto", "json", "text"]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
PathList = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_paths)]


class Settings(BaseSettings):
    """Where things are and how long they may take; the same for every web and worker process of a system."""

    model_config = SettingsConfigDict(
        env_prefix="BERGSON_",
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,  # a URL may hold a password
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("data")
    """Directory of the indexes, of inline documents while they are read, and of the embedded Redis."""
    redis_url: str | None = Field(default=None, validation_alias="REDIS_URL", repr=False)
    """`redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://` or `rediss+sentinel://`, with user and password
    where it asks for them (docs/service.md). Without it a Redis is started in `data_dir`."""
    allowed_roots: PathList = ()
    """Directories, separated by `:`, below which a request may name local models and datasets; only `data_dir`
    where none is given."""
    allowed_models: PatternList = ("*",)
    """Hub ids of models that a request may name, as shell patterns separated by commas, such as `EleutherAI/*,gpt2`;
    none where it is empty. Local models are allowed by `allowed_roots`."""
    allowed_datasets: PatternList = ("*",)
    """The same for datasets."""
    lease_s: float = Field(default=60, gt=0)
    """Seconds after which a job whose worker is silent goes to another one."""
    query_lease_s: float = Field(default=5, gt=0)
    """The same for a query."""
    heartbeat_s: float = Field(default=2, gt=0)
    """Seconds between the heartbeats of a worker; it counts as dead after three of them are missing."""
    poll_s: float = Field(default=0.25, gt=0, le=4)
    """Seconds that an idle worker waits for a query before it looks for a job."""
    query_batch: int = Field(default=32, ge=1, le=1024)
    """Largest number of waiting queries that are answered together."""
    max_queued_queries: int = Field(default=1000, ge=1)
    """Queries that may wait or be worked on before more are refused."""
    max_queue_wait_s: float = Field(default=10, gt=0)
    """Seconds that the oldest waiting query may have waited before more are refused."""
    max_deliveries: int = Field(default=3, ge=1)
    """Times that a job is started before it is given up as one that kills its workers."""
    resident_indexes: int = Field(default=4, ge=1)
    """Indexes that a worker keeps in memory; the least recently used is dropped for another."""
    keep_jobs_s: int = Field(default=7 * 24 * 3600, ge=1)
    """Seconds for which a finished job can still be looked up."""
    threads: int = Field(default=0, ge=0)
    """Threads that torch and FAISS use in a worker; 0 leaves it to them."""
    executor: ExecutorName = "local"
    """`ray` makes and searches shards on the machines of a Ray cluster, `local` in the worker itself."""
    log_format: LogFormat = "auto"
    """`json`, an object a line; `text`, for people; `auto` is text on a terminal and JSON elsewhere."""
    log_level: LogLevel = "info"
    """The least that is logged: debug, info, warning or error."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def indexes_dir(self) -> Path:
        """Parent of the index directories, each of which bears its index's name."""
        return self.data_dir / "indexes"

    @property
    def uploads_dir(self) -> Path:
        """Where documents that came inline are put while an index is built from them."""
        return self.data_dir / "uploads"

    def may_read(self, path: Path) -> bool:
        """Whether a job may read what lies at this real path: below one of `roots`, and not what the service keeps."""
        own = self.data_dir.resolve()
        kept = (own / name for name in ("indexes", "uploads", "redis", "keys.json", "canary"))
        return any(path.is_relative_to(root) for root in self.readable_roots) and not any(
            path.is_relative_to(one) for one in kept
        )

    @property
    def heartbeat_ttl_s(self) -> float:
        """Seconds after its last heartbeat for which a worker counts as alive."""
        return 3 * self.heartbeat_s

    @property
    def readable_roots(self) -> tuple[Path, ...]:
        """Real paths of the directories below which a job may read."""
        return tuple(root.expanduser().resolve() for root in self.allowed_roots or (self.data_dir,))
