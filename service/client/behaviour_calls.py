"""`BehaviourCalls`: the calls of the client about behaviours, which are named sets of queries kept with an index."""

from collections.abc import Iterable, Mapping
from typing import Any

from bergson_core.schemas.behaviours.results import BehaviourDetail, BehaviourList, BehaviourSummary
from bergson_core.schemas.behaviours.spec import BehaviourQuery, BehaviourSpec
from service.client.job_calls import JobCalls, ProgressListener
from service.client.requests import parse_response, quote_path_segment, request_body
from worker.messages import JobRecord


class BehaviourCalls(JobCalls):
    """The part of `AsyncClient` that is about behaviours."""

    async def create_behaviour(
        self,
        index: str,
        name: str,
        queries: Iterable[BehaviourQuery | Mapping[str, Any]],
        control: Iterable[BehaviourQuery | Mapping[str, Any]] | None = None,
        *,
        wait: bool = False,
        on_progress: ProgressListener | None = None,
    ) -> JobRecord:
        """Queues a job that creates a behaviour of an index.

        Args:
            index: Name of the index.
            name: Name of the behaviour, for the field `behaviour` of a query.
            queries: What the model says when it behaves so: queries or their fields.
            control: Queries that are like them except for the behaviour, whose mean score is subtracted.
            wait: Whether to wait until the job has succeeded.
            on_progress: Called with the progress of the job while `wait` waits for it.

        Returns:
            The queued job, or with `wait` the job that has succeeded.

        Raises:
            BehaviourExists: The index has a behaviour of this name.
            IndexNotFound: There is no index of this name.
            IndexBusy: Another job is changing the index, or it is being built.
            InvalidInput: A field is wrong, or with `wait` a query is; the message has its number.
            BergsonError: With `wait`: what the job failed with, or `Cancelled`.
        """
        fields: dict[str, Any] = {"name": name, "queries": list(map(_query_body, queries))}
        if control is not None:
            fields["control"] = list(map(_query_body, control))
        body = request_body(BehaviourSpec, fields)
        return await self._submit(_behaviours_path(index), body, wait, on_progress)

    async def behaviours(self, index: str) -> list[BehaviourSummary]:
        """Returns the behaviours of an index, in the order of their names.

        Raises:
            IndexNotFound: There is no index of this name.
        """
        return parse_response(BehaviourList, await self._sender.send("GET", _behaviours_path(index))).items

    async def behaviour(self, index: str, name: str) -> BehaviourDetail:
        """Returns a behaviour of an index with its queries.

        Raises:
            IndexNotFound: There is no index of this name.
            BehaviourNotFound: The index has no behaviour of this name.
        """
        path = f"{_behaviours_path(index)}/{quote_path_segment(name)}"
        return parse_response(BehaviourDetail, await self._sender.send("GET", path))

    async def delete_behaviour(self, index: str, name: str) -> None:
        """Deletes a behaviour of an index.

        Raises:
            IndexNotFound: There is no index of this name.
            BehaviourNotFound: The index has no behaviour of this name.
        """
        await self._sender.send("DELETE", f"{_behaviours_path(index)}/{quote_path_segment(name)}")


def _query_body(query: BehaviourQuery | Mapping[str, Any]) -> dict[str, Any]:
    return request_body(BehaviourQuery, query)


def _behaviours_path(index: str) -> str:
    return f"/index/{quote_path_segment(index)}/behaviours"
