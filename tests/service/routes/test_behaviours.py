"""Behaviours are created by a job, shown without their texts to keys that see none, and deleted at once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.behaviours import (
    QUERIES_FILE,
    BehaviourRecord,
    behaviour_path,
    write_queries,
    write_record,
)
from bergson_core.storage.integrity import make_file_entry
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.helpers import make_key_header, require_problem
from worker.messages import BehaviourJob

QUERIES = [{"prompt": "Is it?", "completion": " Indeed\u2028."}, {"prompt": "", "completion": "Yes"}]
CONTROL = [{"prompt": "Is it?", "completion": " No."}]
BODY: dict[str, Any] = {"name": "agreeing", "queries": QUERIES, "control": CONTROL}
PATH = "/index/news/behaviours"


def keep_behaviour(index: Path, name: str, loss: float = 0.5) -> None:
    """Writes a behaviour to an index, with its queries and without their rows."""
    directory = behaviour_path(index, name)
    directory.mkdir(parents=True)
    write_queries(directory, QUERIES, CONTROL)
    record = BehaviourRecord(
        name=name,
        generation=1,
        created_at="2026-03-01T12:00:00+00:00",
        processor="0" * 64,
        model_sha256="0" * 64,
        modules=("layer",),
        width=4,
        query_count=2,
        control_count=1,
        loss=loss,
        control_loss=1.5,
        n_tokens=3,
        files=(make_file_entry(directory / QUERIES_FILE, index),),
    )
    write_record(directory, record)


@pytest.fixture
def news(settings: ServiceSettings) -> Path:
    spec = {"model": "tiny", "documents": [{"text": "a"}]}
    publish_manifest(settings.indexes_dir, "news", BuildSpec.model_validate(spec))
    return settings.indexes_dir / "news"


def test_a_behaviour_is_queued_as_a_job(client: TestClient, broker: FakeBroker, news: Path) -> None:
    response = client.post(PATH, json=BODY)
    assert response.status_code == 202
    assert response.headers["Location"] == f"/jobs/{response.json()['job_id']}"
    (job,) = broker.submitted_jobs
    assert isinstance(job, BehaviourJob)
    assert (job.index, job.spec.name, len(job.spec.queries)) == ("news", "agreeing", 2)


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"queries": []}, ["body", "queries"]),
        ({"queries": [QUERIES[0], {"prompt": "a"}]}, ["body", "queries", 1, "completion"]),
        ({"queries": [{"prompt": "a", "completion": "b", "span": [0, 2]}]}, ["body", "queries", 0, "span"]),
        ({"queries": [{"prompt": "a", "completion": "b", "verify": {}}]}, ["body", "queries", 0, "verify"]),
        ({"control": []}, ["body", "control"]),
        ({"control": list(reversed(QUERIES))}, ["body", "control"]),
        ({"name": "A b"}, ["body", "name"]),
        ({"dataset": {"path": "a"}}, ["body", "dataset"]),
    ],
)
def test_a_bad_behaviour_is_refused_with_the_number_of_its_query(
    client: TestClient, broker: FakeBroker, news: Path, change: dict[str, Any], location: list[str | int]
) -> None:
    problem = require_problem(client.post(PATH, json=BODY | change), 422, "invalid_input")
    assert problem.errors and location in [error.loc for error in problem.errors]
    assert not broker.submitted_jobs


def test_a_name_that_is_taken_an_index_that_is_missing_and_one_that_is_built_are_told(
    client: TestClient, broker: FakeBroker, news: Path
) -> None:
    keep_behaviour(news, "agreeing")
    require_problem(client.post(PATH, json=BODY), 409, "behaviour_exists")
    require_problem(client.post("/index/nothing/behaviours", json=BODY), 404, "index_not_found")
    build = {"name": "soon", "model": "tiny", "documents": [{"text": "a"}]}
    assert client.post("/index", json=build).status_code == 202
    require_problem(client.post("/index/soon/behaviours", json=BODY), 409, "index_busy")


def test_behaviours_are_listed_read_and_deleted(client: TestClient, news: Path) -> None:
    assert client.get(PATH).json() == {"items": []}
    for name in ("b", "a"):
        keep_behaviour(news, name)
    shutil.copytree(behaviour_path(news, "a"), behaviour_path(news, ".c.1.tmp"))
    listed = client.get(PATH).json()["items"]
    assert [item["name"] for item in listed] == ["a", "b"]
    assert "queries" not in listed[0]
    shown = client.get(f"{PATH}/a").json()
    assert (shown["queries"], shown["control"], shown["generation"]) == (QUERIES, CONTROL, 1)
    problem = require_problem(client.get(f"{PATH}/c"), 404, "behaviour_not_found")
    assert "news has no behaviour 'c'; it has a, b" in problem.detail
    assert client.delete(f"{PATH}/a").status_code == 204
    require_problem(client.delete(f"{PATH}/a"), 404, "behaviour_not_found")
    assert [item["name"] for item in client.get(PATH).json()["items"]] == ["b"]
    require_problem(client.get("/index/nothing/behaviours"), 404, "index_not_found")


def test_deleting_an_index_deletes_its_behaviours(client: TestClient, news: Path) -> None:
    keep_behaviour(news, "a")
    assert client.delete("/index/news").status_code == 204
    assert not list(news.parent.rglob("behaviours"))
    require_problem(client.get(f"{PATH}/a"), 404, "index_not_found")


def test_a_damaged_behaviour_is_told(client: TestClient, news: Path) -> None:
    keep_behaviour(news, "a")
    (behaviour_path(news, "a") / QUERIES_FILE).write_text("{}")
    assert (
        "delete and create it again" in require_problem(client.get(f"{PATH}/a"), 500, "index_corrupt").detail
    )


def test_a_key_without_text_sees_no_queries_and_a_reading_key_changes_nothing(
    client: TestClient, settings: ServiceSettings, news: Path
) -> None:
    keep_behaviour(news, "a")
    hidden = make_key_header(settings.data_dir, "hidden", text=False)
    reader, writer = (make_key_header(settings.data_dir, scope, scope=scope) for scope in ("read", "write"))
    shown = client.get(f"{PATH}/a", headers=hidden).json()
    assert (shown["queries"], shown["control"], shown["query_count"]) == (None, None, 2)
    assert "Indeed" not in client.get(PATH, headers=hidden).text
    assert client.get(f"{PATH}/a", headers=reader).json()["queries"] == QUERIES
    require_problem(client.post(PATH, json=BODY, headers=reader), 403, "forbidden")
    require_problem(client.delete(f"{PATH}/a", headers=reader), 403, "forbidden")
    assert client.post(PATH, json=BODY, headers=writer).status_code == 202
    assert client.delete(f"{PATH}/a", headers=writer).status_code == 204
    other = make_key_header(settings.data_dir, "other", indexes=("else",))
    require_problem(client.get(PATH, headers=other), 404, "index_not_found")


def test_an_answer_about_a_behaviour_is_kept_until_the_behaviour_changes(
    client: TestClient, broker: FakeBroker, news: Path
) -> None:
    keep_behaviour(news, "a")
    asked: Callable[[], Any] = lambda: client.post("/attribute", json={"index": "news", "behaviour": "a"})  # noqa: E731
    assert asked().status_code == asked().status_code == 200
    assert len(broker.queries) == 1
    shutil.rmtree(behaviour_path(news, "a"))
    keep_behaviour(news, "a", loss=0.25)
    assert asked().status_code == 200
    assert len(broker.queries) == 2


@pytest.mark.parametrize(
    ("field", "value"), [("prompt", "x"), ("verify", {}), ("rescore", 5), ("instead_of_behaviour", "a")]
)
def test_what_does_not_go_with_a_behaviour_is_refused(
    client: TestClient, broker: FakeBroker, news: Path, field: str, value: Any
) -> None:
    response = client.post("/attribute", json={"index": "news", "behaviour": "a", field: value})
    problem = require_problem(response, 422, "invalid_input")
    assert problem.errors and problem.errors[0].loc == ["body", field]
    assert not broker.queries
