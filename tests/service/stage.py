"""An address that stays while the applications behind it change."""

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Stage:
    """Passes each request to the application of the test that runs.

    A browser may keep the files of the pages, which are the same in all tests, without asking for them again.

    Attributes:
        app: The application of the test that runs.
        address: Where the server of this application listens.
    """

    def __init__(self) -> None:
        self.app: ASGIApp = Starlette()
        self.address = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as the application does, but lets files be kept."""

        async def send_lasting(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Cache-Control"] = "max-age=3600"
            await send(message)

        is_file = scope["type"] == "http" and scope["path"].startswith("/static/")
        await self.app(scope, receive, send_lasting if is_file else send)
