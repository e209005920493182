"""`JobLimits`: how many jobs, and how many bytes of them, may wait or run. `submit_job.lua` counts what there is."""

from dataclasses import dataclass
from typing import Literal, Self

from bergson_core.errors import InvalidInput, QueueFull
from worker.settings import Settings


@dataclass(frozen=True)
class JobLimits:
    """How many jobs, and how many bytes of their messages, may wait or run: in all, and in one lane."""

    all_jobs: int
    all_bytes: int
    lane_jobs: int
    lane_bytes: int

    @classmethod
    def for_lane(cls, settings: Settings, lane: str) -> Self:
        """Returns the limits for a job of a lane. The lane of callers without an API key may fill all that there is."""
        jobs, size = settings.max_queued_jobs, settings.max_queued_job_bytes
        if not lane:
            return cls(jobs, size, jobs, size)
        return cls(jobs, size, settings.max_queued_jobs_per_key, settings.max_queued_job_bytes_per_key)

    def require_possible(self, size: int) -> None:
        """Checks the bytes of a job.

        Raises:
            InvalidInput: The job would be refused even if there were no other.
        """
        limit = min(self.all_bytes, self.lane_bytes)
        if size > limit:
            raise InvalidInput(
                f"the job has {size:,} bytes; expected at most {limit:,}: name a dataset in place of inline documents, "
                "or raise BERGSON_MAX_QUEUED_JOB_BYTES and BERGSON_MAX_QUEUED_JOB_BYTES_PER_KEY"
            )

    def full_error(self, where: Literal["lane", "all"], jobs: int, size: int) -> QueueFull:
        """Returns the error for a job that there is no room for.

        Args:
            where: Where there is no room: in the lane of the job, or in all lanes together.
            jobs: Number of jobs there.
            size: Their bytes.
        """
        is_lane = where == "lane"
        max_jobs, max_bytes = (
            (self.lane_jobs, self.lane_bytes) if is_lane else (self.all_jobs, self.all_bytes)
        )
        return QueueFull(
            f"{jobs:,} jobs{' of this API key' if is_lane else ''}, of {size:,} bytes, have not ended yet; expected at "
            f"most {max_jobs:,} jobs of {max_bytes:,} bytes: try again when some have ended, or cancel some (GET /jobs)"
        )
