"""An open page with the requests that it made and its errors, and texts that must stay texts."""

from playwright.sync_api import ConsoleMessage, Page, Request

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class Visit:
    """An open page.

    Attributes:
        page: The page.
        requests: The addresses that the page has fetched.
        errors: What the page wrote to the console as an error or a warning, and requests that failed.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.requests, self.errors = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", self._record_failure)
        page.on("console", self._record_message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)

    def _record_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _record_failure(self, request: Request) -> None:
        """Records a failed request, except those that the browser ends itself when it leaves or reloads the page."""
        if request.failure != "net::ERR_ABORTED":
            self.errors.append(f"failed: {request.url}: {request.failure}")
