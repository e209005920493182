"""The calls of the HTTP API that the demo makes, as any program would make them."""

import json
import os
from typing import Any

import httpx

from bergson_core.answers import Answer, Progress
from bergson_core.errors import from_code
from service.cli.output import Bar


class Api:
    """A client of the service at `url`. A problem that it answers is raised as the error that it stands for.

    It sends the key in `BERGSON_API_KEY`, where there is one.
    """

    def __init__(self, url: str) -> None:
        key = os.environ.get("BERGSON_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else None
        self._client = httpx.Client(base_url=url, timeout=60, headers=headers)

    def index(self, name: str) -> dict[str, Any] | None:
        """A published index, or None where there is none of that name."""
        answer = self._client.get(f"/index/{name}")
        if answer.status_code == 404:
            return None
        return self._checked(answer)

    def start_build(self, name: str, request: dict[str, Any]) -> str:
        """Launches a build; the id of its job."""
        return self._checked(self._client.post("/index", json={"name": name, **request}))["job_id"]

    def follow(self, job_id: str, show: Bar) -> float:
        """Shows a build's progress to its end; its tokens/s. Raises what the build failed with."""
        rate, record = 0.0, {}
        with self._client.stream("GET", f"/jobs/{job_id}/events", timeout=None) as events:
            for line in events.iter_lines():
                if not line.startswith("data:"):
                    continue
                record = json.loads(line.removeprefix("data:"))
                if "progress" not in record:  # a problem on the way
                    break
                progress = Progress.model_validate(record["progress"])
                show(progress)
                if progress.stage == "gradients":
                    rate = progress.tokens_per_s or rate
        if record.get("state") != "succeeded":
            error = record.get("error") or {}
            raise from_code(
                error.get("code", "error"), error.get("detail", f"the build {job_id} did not succeed")
            )
        return rate

    def attribute(self, index: str, prompt: str, completion: str, **options: Any) -> Answer:
        """The answer to one query."""
        body = {"index": index, "prompt": prompt, "completion": completion, **options}
        answer = self._checked(self._client.post("/attribute", json=body))
        answer.pop("request_id")
        return Answer.model_validate(answer)

    @staticmethod
    def _checked(answer: httpx.Response) -> Any:
        body = answer.json()
        if not answer.is_success:
            raise from_code(body["code"], body["detail"])
        return body
