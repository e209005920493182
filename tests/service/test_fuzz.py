"""The service holds to its OpenAPI document, whatever it is sent: no 500, nothing that is not documented."""

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from service import examples
from tests.service.fake_broker import NOW, FakeBroker
from tests.service.keyed import bearer
from worker.messages import JobRecord

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
EXAMPLES = 15


def calls(mode: GenerationMode) -> list[Any]:
    """(path, method) of all calls, or of those that can be called wrongly."""
    found = [
        (path, method, call) for path, item in DOCUMENT["paths"].items() for method, call in item.items()
    ]
    return [
        pytest.param(path, method, mode, id=f"{method} {path} {mode.value}")
        for path, method, call in found
        if mode == GenerationMode.POSITIVE or call.get("parameters") or call.get("requestBody")
    ]


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize(
    ("path", "method", "mode"), [*calls(GenerationMode.POSITIVE), *calls(GenerationMode.NEGATIVE)]
)
def test_every_call_answers_as_the_document_says(
    app: FastAPI,
    broker: FakeBroker,
    tmp_path: Path,
    path: str,
    method: str,
    mode: GenerationMode,
    keyed: bool,
) -> None:
    job = JobRecord(job_id=examples.JOB_ID, kind="build", index="facts", state="succeeded", created_at=NOW)
    broker.put(job)
    headers = {"Host": "localhost"}
    if keyed:
        headers |= bearer(tmp_path, scope="admin")
    else:  # then there is nothing to ignore
        app.openapi()["paths"][path][method].pop("security", None)
    served = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=served[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers)

    check()
