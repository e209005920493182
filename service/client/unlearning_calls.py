"""`UnlearningCalls`: the call of the client that previews what unlearning documents would do."""

from collections.abc import Mapping, Sequence
from typing import Any

from bergson_core.schemas.unlearning.spec import UnlearnSpec, WatchedQuery
from service.client.job_calls import JobCalls, ProgressListener
from service.client.requests import quote_path_segment, request_body
from worker.messages import JobRecord


class UnlearningCalls(JobCalls):
    """The part of `AsyncClient` that is about unlearning."""

    async def preview_unlearning(
        self,
        name: str,
        queries: Sequence[WatchedQuery | Mapping[str, Any]],
        *,
        wait: bool = False,
        on_progress: ProgressListener | None = None,
        **spec: Any,
    ) -> JobRecord:
        """Queues a preview of what unlearning some documents together would do. The index stays as it is.

        Args:
            name: Name of the index.
            queries: What the model should say less often, as queries or as dicts of their fields.
            wait: Whether to wait until the job has succeeded; its record then has the result in `unlearning`.
            on_progress: Called with the progress of the job while `wait` waits for it.
            spec: Further fields of `UnlearnSpec`: `ids` or `filter`, `control`, `learning_rate`.

        Returns:
            The queued job, or with `wait` the job that has succeeded.

        Raises:
            IndexNotFound: There is no index of this name.
            DocumentNotFound: The index has no document of one of the ids.
            InvalidInput: A field is wrong, or more documents are named than the service allows.
            BergsonError: With `wait`: what the job failed with, or `Cancelled`.
        """
        given = [
            query.model_dump(exclude_unset=True) if isinstance(query, WatchedQuery) else query
            for query in queries
        ]
        body = request_body(UnlearnSpec, {"queries": given, **spec})
        return await self._submit(f"/index/{quote_path_segment(name)}/unlearn", body, wait, on_progress)
