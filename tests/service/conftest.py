import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from service.app import create_app
from service.openapi.metadata import openapi_document
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.worker.helpers import make_build_job


@pytest.fixture(scope="session", autouse=True)
def _document_made_once() -> Iterator[None]:
    """Shares the OpenAPI document among all applications: it is the same, and takes a quarter of a second to make."""
    documents: list[dict[str, Any]] = []

    def share_document(app: FastAPI) -> dict[str, Any]:
        documents[:] = documents or [openapi_document(app)]
        return documents[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.openapi_document", share_document)
        yield


@pytest.fixture
def spec() -> BuildSpec:
    documents = [{"text": "Ada Lovelace's birthplace is London"}]
    return BuildSpec.model_validate({"model": "tiny", "documents": documents})


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(
        data_dir=tmp_path,
        allowed_hosts=("localhost", "127.0.0.1", "[::1]", "testserver"),
        max_body_bytes=20_000,
    )


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def app(settings: ServiceSettings, broker: FakeBroker, spec: BuildSpec) -> FastAPI:
    """The service over a fake broker, with one published index, `facts`."""
    publish_manifest(settings.data_dir / "indexes", "facts", spec)
    return create_app(settings, broker)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def jobs(broker: FakeBroker, spec: BuildSpec) -> list[str]:
    """Ids of three jobs: one of the index `facts`, one of `secret`, and an estimate, which belongs to no index."""
    ids = [asyncio.run(broker.submit(make_build_job(name, spec))).job_id for name in ("facts", "secret")]
    estimate = broker.records[ids[0]].model_copy(
        update={"job_id": "job-3", "kind": "estimate", "index": None}
    )
    return [*ids, broker.put(estimate).job_id]
