"""An address that stays while the applications behind it change."""

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send


class Stage:
    """Passes each request to the application of the test that runs.

    The addresses of scripts and styles are the same in all tests, so that a browser keeps them.

    Attributes:
        app: The application of the test that runs.
        address: Where the server of this application listens.
    """

    def __init__(self) -> None:
        self.app: ASGIApp = Starlette()
        self.address = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as the application does."""
        await self.app(scope, receive, send)
