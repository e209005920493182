"""`LinkCalls`: the calls of the client about links, under which the service keeps answers."""

from typing import Any

from service.client.requests import RequestSender, parse_response, quote_path_segment, request_body
from service.schemas import AttributeRequest, Link


class LinkCalls:
    """The part of `AsyncClient` that is about links."""

    _sender: RequestSender

    async def make_link(
        self, index: str, prompt: str | None = None, completion: str | None = None, **options: Any
    ) -> Link:
        """Asks a query and has the service keep the answer under a link, whose `id` opens it again.

        Args:
            index: Name of the index.
            prompt: Text before the completion; it may be empty.
            completion: Text to explain, usually with a space at its beginning. By default the model generates it.
            options: Further fields of `AttributeRequest`, as `attribute` takes them.

        Raises:
            InvalidInput: A field is wrong, or the text is too long for the model (`TooLong`).
            IndexNotFound: There is no index of this name, or none for this API key.
            DeadlineExceeded: There was no answer within `timeout_s` seconds.
            DiskFull: The links of the service, or those of this API key, take all of their space.
            Forbidden: The service keeps no links.
        """
        texts = {"prompt": prompt, "completion": completion}
        fields = options | {"index": index} | {name: text for name, text in texts.items() if text is not None}
        body = {"request": request_body(AttributeRequest, fields)}
        content = await self._sender.send(
            "POST", "/links", body, is_idempotent=True, wait_s=options.get("timeout_s")
        )
        return parse_response(Link, content)

    async def link(self, link_id: str) -> Link:
        """Returns a link: the request, what the service answered then, and whether the index has changed since.

        Raises:
            LinkNotFound: There is no such link, or it has ended.
        """
        return parse_response(Link, await self._sender.send("GET", _link_path(link_id)))

    async def remove_link(self, link_id: str) -> None:
        """Removes a link.

        Raises:
            LinkNotFound: There is no such link, or it has ended.
            Forbidden: Another API key has made it, and this key may not write.
        """
        await self._sender.send("DELETE", _link_path(link_id))


def _link_path(link_id: str) -> str:
    return f"/links/{quote_path_segment(link_id)}"
