"""Whatever the service is sent, it answers as its OpenAPI document says, and never with a 500."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, make_document_table, write_document_table
from service.app import create_app
from service.openapi import examples
from service.settings import ServiceSettings
from tests.service.fake_broker import NOW, FakeBroker
from tests.service.helpers import make_key_header
from tests.service.stage import Stage
from worker.messages import JobRecord

DOCUMENT = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
MAX_EXAMPLES = 8
EXCLUDED_CHECKS = [positive_data_acceptance]
"""Fields that are valid one by one may be wrong together, or for this index. The document says that this is a 422."""


def make_parameters(mode: GenerationMode) -> list[Any]:
    """Returns path, method and mode of all calls, or of those that can be called in a wrong way."""
    operations = [
        (path, method, call) for path, item in DOCUMENT["paths"].items() for method, call in item.items()
    ]
    return [
        pytest.param(path, method, mode, id=f"{method} {path} {mode.value}")
        for path, method, call in operations
        if mode == GenerationMode.POSITIVE or call.get("parameters") or call.get("requestBody")
    ]


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage()


@pytest.fixture(scope="module")
def schemas(stage: Stage) -> dict[bool, Any]:
    """What the document says of a service with keys, and of one without: that one refuses no call without a key."""
    keyless = deepcopy(DOCUMENT)
    for item in keyless["paths"].values():
        for call in item.values():
            call.pop("security", None)
    schemas = {True: schemathesis.openapi.from_dict(DOCUMENT), False: schemathesis.openapi.from_dict(keyless)}
    for schema in schemas.values():
        schema.app = stage
    return schemas


@pytest.fixture
def service(app: FastAPI, settings: ServiceSettings, broker: FakeBroker, stage: Stage) -> None:
    """The service over the index of `app`, with a job. Its limit of bodies is above that of every field."""
    job = JobRecord(job_id=examples.JOB_ID, kind="build", index="facts", state="succeeded", created_at=NOW)
    broker.put(job)
    texts = settings.indexes_dir / "facts" / "shards" / "00000" / DOCUMENT_TABLE_FILE
    texts.parent.mkdir(parents=True)
    write_document_table(texts, make_document_table([], np.zeros(0), []))
    stage.app = create_app(settings.model_copy(update={"max_body_bytes": 2**27}), broker)  # type: ignore[arg-type]


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [*make_parameters(GenerationMode.POSITIVE), *make_parameters(GenerationMode.NEGATIVE)],
)
def test_every_call_answers_as_the_document_says(
    schemas: dict[bool, Any],
    settings: ServiceSettings,
    path: str,
    method: str,
    mode: GenerationMode,
    keyed: bool,
) -> None:
    headers = {"Host": "localhost"}
    if keyed:
        headers |= make_key_header(settings.data_dir, scope="admin")

    @seed(0)
    @hypothesis_settings(
        max_examples=MAX_EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=schemas[keyed][path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        response = case.call(headers=headers)
        # A wrong body may be one that is too large, which schemathesis does not count as refused.
        is_too_large = mode == GenerationMode.NEGATIVE and response.status_code == 413
        excluded = [*EXCLUDED_CHECKS, negative_data_rejection] if is_too_large else EXCLUDED_CHECKS
        case.validate_response(response, headers=headers, excluded_checks=excluded)

    check()
