"""`JobCalls`: the calls of the client about jobs, which it lists, follows, waits for and cancels."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from bergson_core.errors import Cancelled, from_code
from bergson_core.schemas.results import Progress
from service.client.requests import RequestSender, parse_response, quote_path_segment
from service.schemas import JobAccepted, JobPage
from worker.messages import FINAL_STATES, JobRecord, JobState

ProgressListener = Callable[[Progress], object]


class JobCalls:
    """The part of `AsyncClient` that is about jobs."""

    _sender: RequestSender

    async def job(self, job: str | JobRecord) -> JobRecord:
        """Returns the current record of a job, which is given by its id or an earlier record.

        Raises:
            JobNotFound: There is no such job.
        """
        return parse_response(JobRecord, await self._sender.send("GET", _job_path(job)))

    async def jobs(self, state: JobState | None = None) -> AsyncIterator[JobRecord]:
        """Yields all jobs, or those in `state`, newest first."""
        async for page in self._sender.iter_pages(JobPage, "/jobs", state=state):
            for job in page.items:
                yield job

    async def cancel(self, job: str | JobRecord) -> JobRecord:
        """Asks for a job to stop, and returns its record right after that.

        A queued job is cancelled at once. A running one stops after the batch that it is working on, so that its
        record may still say `running`.

        Raises:
            JobNotFound: There is no such job.
        """
        content = await self._sender.send("DELETE", _job_path(job), is_idempotent=True)
        return parse_response(JobRecord, content)

    async def events(self, job: str | JobRecord) -> AsyncIterator[JobRecord]:
        """Yields the record of a job each time it changes, from the first one to that of its final state.

        A connection that breaks is opened again, and the stream goes on after the last event.

        Raises:
            JobNotFound: There is no such job.
            Unavailable: The service did not answer for longer than the client retries.
        """
        async with aclosing(self._sender.follow_events(f"{_job_path(job)}/events")) as events:
            async for event in events:
                record = parse_response(JobRecord, event.data)
                yield record
                if record.state in FINAL_STATES:
                    return

    async def wait(self, job: str | JobRecord, on_progress: ProgressListener | None = None) -> JobRecord:
        """Waits until a job has succeeded, and returns its record.

        Args:
            job: Id or record of the job.
            on_progress: Called with the progress of the job each time it changes.

        Raises:
            Cancelled: The job was cancelled.
            BergsonError: What the job failed with.
        """
        record = None
        async for record in self.events(job):
            if on_progress:
                on_progress(record.progress)
        assert record is not None
        if record.error is not None:
            raise from_code(record.error.code, record.error.detail)
        if record.state == "cancelled":
            raise Cancelled(f"job {record.job_id} was cancelled")
        return record

    async def _submit(
        self, path: str, body: dict[str, Any] | None, wait: bool, on_progress: ProgressListener | None
    ) -> JobRecord:
        """Makes a call that queues a job. All attempts have the same idempotency key, and so make one job."""
        headers = {"Idempotency-Key": uuid4().hex}
        content = await self._sender.send("POST", path, body, is_idempotent=True, headers=headers)
        job_id = parse_response(JobAccepted, content).job_id
        return await (self.wait(job_id, on_progress) if wait else self.job(job_id))


def _job_path(job: str | JobRecord) -> str:
    return f"/jobs/{quote_path_segment(job if isinstance(job, str) else job.job_id)}"
