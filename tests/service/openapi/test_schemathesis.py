"""The service holds to its OpenAPI document, whatever it is sent: no 500, nothing that is not documented."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as limited
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, make_document_table, write_document_table
from service.app import create_app
from service.openapi import examples
from service.settings import ServiceSettings
from tests.service.fake_broker import NOW, FakeBroker
from tests.service.helpers import create_key
from worker.messages import JobRecord

DOCUMENT = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
EXAMPLES = 8
WITHOUT = [positive_data_acceptance]
"""What is valid by itself may be wrong together, or for this index: that it is refused with 422 is documented."""


def calls(mode: GenerationMode) -> list[Any]:
    """(path, method, mode) of all calls, or of those that can be called wrongly."""
    found = [
        (path, method, call) for path, item in DOCUMENT["paths"].items() for method, call in item.items()
    ]
    return [
        pytest.param(path, method, mode, id=f"{method} {path} {mode.value}")
        for path, method, call in found
        if mode == GenerationMode.POSITIVE or call.get("parameters") or call.get("requestBody")
    ]


@pytest.fixture
def roomy(app: FastAPI, settings: ServiceSettings, broker: FakeBroker) -> FastAPI:
    """The service over the same index, with a job, and room for what is too long for a field."""
    job = JobRecord(job_id=examples.JOB_ID, kind="build", index="facts", state="succeeded", created_at=NOW)
    broker.put(job)
    texts = settings.indexes_dir / "facts" / "shards" / "00000" / DOCUMENT_TABLE_FILE
    texts.parent.mkdir(parents=True)
    write_document_table(texts, make_document_table([], np.zeros(0), []))
    return create_app(settings.model_copy(update={"max_body_bytes": 2**27}), broker)  # type: ignore[arg-type]


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize(
    ("path", "method", "mode"), [*calls(GenerationMode.POSITIVE), *calls(GenerationMode.NEGATIVE)]
)
def test_every_call_answers_as_the_document_says(
    roomy: FastAPI, settings: ServiceSettings, path: str, method: str, mode: GenerationMode, keyed: bool
) -> None:
    headers = {"Host": "localhost"}
    if keyed:
        headers |= create_key(settings.data_dir, scope="admin")
    else:  # then no call is refused that has none
        roomy.openapi()["paths"][path][method].pop("security", None)
    served = schemathesis.openapi.from_asgi("/openapi.json", roomy, headers=headers)

    @seed(0)
    @limited(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=served[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, excluded_checks=WITHOUT)

    check()
