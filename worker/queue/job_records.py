"""The record of a job in Redis: how workers and web processes read it, and what they send to save it.

A record is saved under the fencing token that the job has, so that whoever has lost the job saves nothing.
"""

import logging
import secrets
from typing import Any, Final, Literal

from pydantic import ValidationError

from worker.messages import JobRecord
from worker.queue.redis_keys import (
    BUILDING,
    ENDED_JOBS,
    EVENTS_SUFFIX,
    JOB_LANE_PREFIX,
    JOB_LANES,
    JOB_LEASES,
    JOB_PREFIX,
    JOBS_BY_CREATION,
    events_key,
    job_key,
)
from worker.settings import Settings

logger = logging.getLogger(__name__)

MAX_JOB_EVENTS: Final = 256
"""Number of events that are kept of a job, about."""

Transition = Literal["keep", "back", "end"]
"""What saving a job's record does to the job: nothing, another worker may take it at once, or it leaves the queue."""


def next_token(token: int) -> int:
    """Returns the fencing token that follows on `token`, by a random step.

    A Redis that was restored from an older state hands jobs out a second time. The step makes sure that the second
    worker has another token than the first.
    """
    return token + 1 + secrets.randbelow(2**32)


def save_job_arguments(
    record: JobRecord, token: int, new_token: int, transition: Transition, settings: Settings
) -> dict[str, Any]:
    """Returns the keys and arguments of `lua_scripts.SAVE_JOB`, which workers and web processes run.

    Args:
        record: The job's new record.
        token: Fencing token that the job is expected to have.
        new_token: Fencing token that the job gets.
        transition: What happens to the job.
        settings: How long, and how many, ended jobs are kept.
    """
    job_id = record.job_id
    return {
        "keys": [
            *(job_key(job_id), events_key(job_id), JOB_LEASES, BUILDING, JOB_LANES),
            *(ENDED_JOBS, JOBS_BY_CREATION),
        ],
        "args": [
            token,
            new_token,
            record.model_dump_json(),
            transition,
            job_id,
            settings.keep_jobs_s,
            MAX_JOB_EVENTS,
            JOB_LANE_PREFIX,
            settings.keep_jobs,
            JOB_PREFIX,
            EVENTS_SUFFIX,
        ],
    }


def parse_token(raw: str | None) -> int:
    """Returns a stored fencing token.

    Raises:
        ValueError: It is not written as `save_job_arguments` writes it, so that no script would take it for the same.
    """
    token = int(raw or 0)
    if str(token) != raw:
        raise ValueError(f"expected a fencing token, got {raw!r}")
    return token


def parse_record(raw: str | None) -> JobRecord | None:
    """Returns a stored record, or None if there is none that this version can read."""
    try:
        return JobRecord.model_validate_json(raw) if raw else None
    except ValidationError as error:
        logger.warning("job record cannot be read: %s", error)
        return None
