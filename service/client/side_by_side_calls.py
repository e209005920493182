"""`SideBySideCalls`: the call of the client that asks several indexes the same query."""

import json
from collections.abc import Sequence
from typing import Any

from bergson_core.errors import BergsonError
from service.client.errors import error_from_problem
from service.client.requests import RequestSender, request_body
from service.schemas import AttributeResponse, SideBySideRequest


class SideBySideCalls:
    """The part of `AsyncClient` that is about several indexes."""

    _sender: RequestSender

    async def attribute_indexes(
        self,
        indexes: Sequence[str],
        prompt: str | None = None,
        completion: str | None = None,
        **options: Any,
    ) -> list[AttributeResponse | BergsonError]:
        """Asks several indexes the same query.

        Scores of different indexes have different scales. Compare the answers by `strength` and `notice`.

        Args:
            indexes: Names of the indexes, from 2 to 16.
            prompt: Text before the completion; it may be empty.
            completion: Text to explain, usually with a space at its beginning. By default the model of each index
                generates its own.
            options: Further fields of `AttributeRequest`, as in `attribute`.

        Returns:
            For each index, in the order of the indexes, its answer or the error that it alone met.

        Raises:
            InvalidInput: A field is wrong, or an index is named twice.
            IndexNotFound: There is no index of one of the names, or none for this API key.
        """
        texts = {"prompt": prompt, "completion": completion}
        fields = {"indexes": tuple(indexes), **options}
        fields |= {name: text for name, text in texts.items() if text is not None}
        content = await self._sender.send(
            "POST",
            "/attribute/indexes",
            request_body(SideBySideRequest, fields),
            is_idempotent=True,
            wait_s=options.get("timeout_s"),
        )
        return parse_answers(content)


def parse_answers(content: bytes) -> list[AttributeResponse | BergsonError]:
    """Returns the answers and errors of a response with several answers."""
    return [
        error_from_problem(result)
        if "code" in result
        else AttributeResponse.model_validate(result, extra="ignore")
        for result in json.loads(content)["results"]
    ]
