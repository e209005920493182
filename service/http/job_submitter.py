"""`JobSubmitter`: queues a job in the course of one request."""

from dataclasses import dataclass

from fastapi import Response

from service.auth.api_keys import Caller
from service.queue.broker import Broker
from service.schemas import JobAccepted
from worker.messages import Job


@dataclass(frozen=True)
class JobSubmitter:
    """Queues jobs in the name of `caller`, and puts the address of the job into the headers of `response`.

    The address is a path below `root_path`, the prefix at the proxy.
    """

    broker: Broker
    caller: Caller
    request_id: str
    idempotency_key: str | None
    response: Response
    root_path: str = ""

    async def submit(self, job: Job) -> JobAccepted:
        """Queues a job and returns what the service answers. Raises the errors of `JobBroker.submit`."""
        record = await self.broker.submit(job, self.idempotency_key, lane=self.caller.id)
        self.response.headers["Location"] = f"{self.root_path}/jobs/{record.job_id}"
        return JobAccepted(job_id=record.job_id, index=record.index or "", state=record.state)
