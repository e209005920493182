"""`TotalsCalls`: the call of the client that sums influence by a metadata column."""

import logging
from typing import Any

from service.client.requests import RequestSender, parse_response, quote_path_segment, request_body
from service.schemas import TotalsRequest, TotalsResponse

logger = logging.getLogger(__name__)


class TotalsCalls:
    """The part of `AsyncClient` that is about totals."""

    _sender: RequestSender

    async def totals(
        self, index: str, prompt: str | None = None, completion: str | None = None, *, by: str, **options: Any
    ) -> TotalsResponse:
        """Sums the influence of all documents on a completion or a behaviour by the values of a metadata column.

        Args:
            index: Name of the index.
            prompt: Text before the completion; it may be empty.
            completion: Text to explain, usually with a space at its beginning. By default the model generates it.
            by: The metadata column.
            options: Further fields of `TotalsRequest`, such as `top`, `threshold`, `filter`, `instead_of`, `messages`,
                `behaviour` and `timeout_s`.

        Returns:
            The groups with the largest sums, the largest first, with the interval of each sum.

        Raises:
            InvalidInput: A field is wrong, the index does not keep the column, or the text is too long (`TooLong`).
            IndexNotFound: There is no index of this name, or none for this API key.
            BehaviourNotFound: The index has no such behaviour.
            Forbidden: The API key sees no metadata.
            DeadlineExceeded: There was no answer within `timeout_s` seconds.
        """
        texts = {"prompt": prompt, "completion": completion}
        fields = options | {"by": by} | {name: text for name, text in texts.items() if text is not None}
        content = await self._sender.send(
            "POST",
            f"/index/{quote_path_segment(index)}/totals",
            request_body(TotalsRequest, fields),
            is_idempotent=True,
            wait_s=options.get("timeout_s"),
        )
        totals = parse_response(TotalsResponse, content)
        for warning in totals.warnings:
            logger.warning("%s: %s", warning.code, warning.detail)
        return totals
