"""`Traffic`: queries that are sent all the time, while a test does something to the system."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

import httpx

BUSY_MACHINE_S = 1.0
"""Seconds by which a machine that is busy with other tests may delay a response, besides the half second allowed."""


@dataclass(frozen=True)
class QueryResponse:
    """The response to a query: its status, the code of its problem (or an empty text), and when it was there."""

    status: int
    code: str
    seconds: float


class Traffic:
    """Sends queries in some threads for as long as the context is open; no answer comes from the cache.

    Args:
        url: Address of the web process.
        index: Index to query.
        timeout_s: The `timeout_s` of the queries.
        threads: Number of queries that are open at once.

    Attributes:
        responses: What has come back.
        failures: What should not happen: connections that were cut, and answers to another query.
    """

    def __init__(self, url: str, index: str, timeout_s: float = 1.0, threads: int = 3):
        self.responses: list[QueryResponse] = []
        self.failures: list[str] = []
        self._url, self._index, self._timeout_s = url, index, timeout_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self) -> Counter[tuple[int, str]]:
        """Returns how often there was each status and code."""
        return Counter((response.status, response.code) for response in self.responses)

    def require_sound(self, *codes: str) -> None:
        """Fails unless each query had one response in time: its own answer, or a problem of one of these codes."""
        assert not self.failures, self.failures[:3]
        assert {response.code for response in self.responses} <= {"", *codes}, self.count()
        slowest_s = max((response.seconds for response in self.responses), default=0.0)
        assert slowest_s < self._timeout_s + 0.5 + BUSY_MACHINE_S, f"a response took {slowest_s:.2f} s"

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._stop.wait(0.02):
                try:
                    self._ask(client, f"Query {number} at {time.monotonic()}")
                except (httpx.HTTPError, AssertionError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def _ask(self, client: httpx.Client, prompt: str) -> None:
        body = {
            "index": self._index,
            "prompt": prompt,
            "completion": " Paris",
            "top_k": 1,
            "timeout_s": self._timeout_s,
        }
        started = time.monotonic()
        response = client.post("/attribute", json=body, headers={"Cache-Control": "no-cache"})
        seconds = time.monotonic() - started
        answer: dict[str, Any] = response.json()
        if response.status_code == 200:
            assert answer["query"]["prompt"] == prompt, "the answer to another query"
        self.responses.append(QueryResponse(response.status_code, answer.get("code", ""), seconds))
