"""The tool that previews unlearning: what the model would say less often without some documents."""

from typing import Annotated, Any, Final

from anyio import CancelScope, fail_after, get_cancelled_exc_class
from mcp.server.mcpserver import Context
from pydantic import Field

from bergson_core.errors import DeadlineExceeded
from bergson_core.schemas.query import MAX_LEARNING_RATE
from bergson_core.schemas.unlearning.results import UnlearnPreview
from bergson_core.schemas.unlearning.spec import MAX_WATCHED_QUERIES, WatchedQuery
from service.mcp.arguments import Filter, IndexName
from service.mcp.service_access import ServiceAccess

MAX_IDS: Final = 1000


class UnlearningTool:
    """The tool of one server that previews unlearning; `access` says how the service is called."""

    def __init__(self, access: ServiceAccess):
        self._access = access

    async def preview_unlearning(
        self,
        context: Context,
        index: IndexName,
        queries: Annotated[
            list[WatchedQuery],
            Field(
                min_length=1,
                max_length=MAX_WATCHED_QUERIES,
                description="What the model should say less often: a prompt and a completion each, or messages.",
            ),
        ],
        ids: Annotated[
            list[str] | None,
            Field(
                min_length=1, max_length=MAX_IDS, description="Ids of the documents, or else give a filter."
            ),
        ] = None,
        filter: Filter = None,
        control: Annotated[
            list[WatchedQuery] | None,
            Field(
                min_length=1,
                max_length=MAX_WATCHED_QUERIES,
                description="Queries that have nothing to do with the documents: what else would change?",
            ),
        ] = None,
        learning_rate: Annotated[
            float | None,
            Field(
                gt=0, le=MAX_LEARNING_RATE, description="Learning rate of the step; leave it to the service."
            ),
        ] = None,
        timeout_s: Annotated[
            float, Field(gt=0, le=3600, description="Seconds to wait; the work is then cancelled.")
        ] = 300,
    ) -> UnlearnPreview:
        """Previews what the model would say less often without some training documents, and what else would change.

        The model takes one step of gradient ascent on all of the documents together in the memory of a worker, and is
        restored. The documents, the index and the model stay as they are. It takes seconds to minutes. The API key
        needs the scope `write`, because a worker is busy for as long as a job.
        """
        given = {"ids": ids, "filter": filter, "control": control, "learning_rate": learning_rate}
        spec: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if control is not None:
            spec["control"] = [query.model_dump(exclude_unset=True) for query in control]
        async with self._access.open(context) as client:
            job = await client.preview_unlearning(index, queries, **spec)
            try:
                with fail_after(timeout_s):
                    record = await client.wait(job)
            except TimeoutError as error:
                await client.cancel(job)
                raise DeadlineExceeded(
                    f"the preview took longer than {timeout_s:g} s: choose fewer documents, or a longer timeout_s"
                ) from error
            except get_cancelled_exc_class():  # the assistant has cancelled the call
                with CancelScope(shield=True):
                    await client.cancel(job)
                raise
        assert record.unlearning is not None  # a job that has succeeded has its result
        return record.unlearning
