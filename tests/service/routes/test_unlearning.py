"""`POST /index/{name}/unlearn` queues a preview, and the job's record has its result."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import DocumentNotFound, InvalidInput
from bergson_core.schemas.unlearning.results import UnlearnPreview
from service.client import Client
from service.indexes import catalog
from service.openapi import examples
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header, require_problem, serve_app
from worker.messages import UnlearnJob

PATH = "/index/facts/unlearn"


@pytest.fixture(autouse=True)
def existing_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the index `facts`, which has no rows, the documents doc-17 and doc-40."""

    def require_documents(root: Path, name: str, ids: tuple[str, ...]) -> None:
        catalog.require_index(root, name)
        if missing := sorted(set(ids) - {"doc-17", "doc-40"}):
            raise DocumentNotFound.for_ids(name, missing)

    monkeypatch.setattr(catalog, "require_documents", require_documents)


@pytest.mark.parametrize("body", [examples.UNLEARN_IDS, examples.UNLEARN_FILTER])
def test_a_preview_is_queued_and_its_result_is_in_the_job(
    client: TestClient, broker: FakeBroker, body: dict[str, Any]
) -> None:
    response = client.post(PATH, json=body)
    assert response.status_code == 202
    job_id = response.json()["job_id"]
    assert response.headers["Location"] == f"/jobs/{job_id}"
    (job,) = broker.submitted_jobs
    assert isinstance(job, UnlearnJob)
    assert job.spec.model_dump(mode="json", exclude_unset=True) == body
    assert client.get(f"/jobs/{job_id}").json()["unlearning"] is None
    preview = UnlearnPreview.model_validate(examples.JOB_UNLEARNED["unlearning"])
    broker.put(broker.records[job_id].model_copy(update={"state": "succeeded", "unlearning": preview}))
    assert client.get(f"/jobs/{job_id}").json()["unlearning"] == examples.JOB_UNLEARNED["unlearning"]


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"ids": None}, "ids"),
        ({"filter": {"source": ["wiki"]}}, "ids"),
        ({"ids": []}, "ids"),
        ({"ids": ["doc-17", "doc-17"]}, "ids.1"),
        ({"ids": ["doc-17", 3]}, "ids.1"),
        ({"queries": []}, "queries"),
        ({"queries": None}, "queries"),
        ({"queries": [{"prompt": "a"}]}, "queries.0.completion"),
        ({"queries": [{"prompt": "a", "completion": " b", "verify": {}}]}, "queries.0.verify"),
        ({"control": examples.UNLEARN_IDS["queries"]}, "control.0"),
        ({"control": []}, "control"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": 1e39}, "learning_rate"),
        ({"steps": 3}, "steps"),
    ],
)
def test_a_bad_preview_is_refused_by_its_field(
    client: TestClient, broker: FakeBroker, change: dict[str, Any], loc: str
) -> None:
    problem = require_problem(client.post(PATH, json=examples.UNLEARN_IDS | change), 422, "invalid_input")
    assert problem.errors is not None
    assert [".".join(map(str, error.loc)) for error in problem.errors] == [f"body.{loc}"]
    assert not broker.submitted_jobs


def test_documents_that_do_not_exist_and_an_index_that_does_not_are_404(
    client: TestClient, broker: FakeBroker
) -> None:
    missing = client.post(PATH, json=examples.UNLEARN_IDS | {"ids": ["doc-17", "none"]})
    assert "'none'" in require_problem(missing, 404, "document_not_found").detail
    for body in (examples.UNLEARN_IDS, examples.UNLEARN_FILTER):
        require_problem(client.post("/index/none/unlearn", json=body), 404, "index_not_found")
    assert not broker.submitted_jobs


def test_more_ids_than_the_setting_allows_are_refused_with_its_name(
    app: FastAPI, client: TestClient, settings: ServiceSettings
) -> None:
    app.state.settings = settings.model_copy(update={"max_unlearned_documents": 1})
    problem = require_problem(client.post(PATH, json=examples.UNLEARN_IDS), 422, "invalid_input")
    assert "at most 1 documents (BERGSON_MAX_UNLEARNED_DOCUMENTS), got 2" in problem.detail


def test_it_needs_a_key_that_may_write_and_a_filter_one_that_sees_metadata(
    client: TestClient, tmp_path: Path
) -> None:
    reader, writer = make_key_header(tmp_path), make_key_header(tmp_path, "bob", scope="write")
    blind = make_key_header(tmp_path, "eve", scope="write", text=False)
    other = make_key_header(tmp_path, "dan", scope="write", indexes=["news"])
    require_problem(client.post(PATH, json=examples.UNLEARN_IDS, headers=reader), 403, "forbidden")
    assert client.post(PATH, json=examples.UNLEARN_FILTER, headers=writer).status_code == 202
    assert client.post(PATH, json=examples.UNLEARN_IDS, headers=blind).status_code == 202
    refused = client.post(PATH, json=examples.UNLEARN_FILTER, headers=blind)
    assert "`ids`" in require_problem(refused, 403, "forbidden").detail
    require_problem(client.post(PATH, json=examples.UNLEARN_IDS, headers=other), 404, "index_not_found")


def test_the_client_waits_for_the_result(
    app: FastAPI, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = UnlearnPreview.model_validate(examples.JOB_UNLEARNED["unlearning"])
    put = broker.put

    def finish(record: Any) -> Any:
        return put(record.model_copy(update={"state": "succeeded", "unlearning": preview}))

    monkeypatch.setattr(broker, "put", finish)
    with serve_app(app) as url, Client(url) as caller:
        queries = examples.UNLEARN_IDS["queries"]
        record = caller.preview_unlearning("facts", queries, ids=["doc-17"], wait=True)
        assert record.unlearning == preview
        with pytest.raises(InvalidInput, match="either `ids` or `filter`"):
            caller.preview_unlearning("facts", queries)
        with pytest.raises(DocumentNotFound, match="'none'"):
            caller.preview_unlearning("facts", queries, ids=["none"])
