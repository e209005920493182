"""`Reader`: asks an index again and again, and compares each answer with the generations that were published."""

import math
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import httpx

TIMEOUT_S = 30.0
_SLACK_S = 15.0
"""Seconds that an answer may come after its deadline on a busy machine."""
_UNAVAILABLE = (429, 500, 503, 504)
"""What a question may be answered whose workers died: a question is given up that has ended two of them."""


class Reader:
    """Asks one question in a loop. Fails if an answer comes late, shows half a generation, or a hidden document.

    Args:
        url: A web process.
        index: Name of the index, which need not exist at first.
        documents: The ids of the documents of each generation.

    Attributes:
        asked: How many questions were asked, and answered.
        answered: How many of them were answered with results.
    """

    def __init__(self, url: str, index: str, documents: Mapping[int, Collection[str]]):
        self._http = httpx.Client(
            base_url=url, timeout=TIMEOUT_S + _SLACK_S, trust_env=False, headers={"Cache-Control": "no-cache"}
        )
        self._body = {"index": index, "prompt": "Person 3 lives in", "completion": " city 1.", "top_k": 100}
        self._body |= {"timeout_s": TIMEOUT_S, "include": []}
        self._documents = documents
        self._scores: dict[str, float] = {}
        self._generation = self.asked = self.answered = 0
        self.asked_to_hide: set[str] = set()
        self.hidden: set[str] = set()

    def ask_until(self, is_over: threading.Event) -> None:
        """Asks until the event is set, and at least once."""
        while True:
            was_answered = self._ask()
            if is_over.is_set():
                return
            time.sleep(0.02 if was_answered else 0.5)

    def _ask(self) -> bool:
        """Returns whether the question was answered with results."""
        hidden_before = set(self.hidden)
        response = self._http.post("/attribute", json=self._body)
        self.asked += 1
        if response.status_code == 200:
            self.answered += 1
            self._check(response.json(), hidden_before)
            return True
        allowed = _UNAVAILABLE if self.answered else (*_UNAVAILABLE, 404, 409)
        assert response.status_code in allowed, response.text
        if response.status_code == 500:
            assert "workers that took this query died" in response.text, response.text
        return False

    def _check(self, answer: dict[str, Any], hidden_before: set[str]) -> None:
        scores = {row["id"]: row["score"] for row in answer["results"]}
        generation = answer["generation"]
        assert len(scores) == len(answer["results"]), "a row came twice"
        assert generation >= self._generation, f"generation {generation} after {self._generation}"
        documents = set(self._documents[generation])
        missing = documents - scores.keys() - self.asked_to_hide
        assert not missing, f"missing in generation {generation}: {missing}"
        excess = scores.keys() - (documents - hidden_before)
        assert not excess, f"not to be shown in generation {generation}: {excess}"
        for document, score in scores.items():
            known = self._scores.setdefault(document, score)
            assert math.isclose(score, known, rel_tol=1e-3, abs_tol=1e-4), (document, score, known)
        self._generation = generation
