"""A key may be for some indexes alone, and may show no text: what else there is, is not there for it."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from service.settings import ServiceSettings
from tests.service.fake_broker import WORKER, FakeBroker, publish_manifest
from tests.service.helpers import EXAMPLE_BODIES, create_key, iter_calls, require_problem

QUERY = {"index": "facts", "prompt": "a", "completion": " b"}


@pytest.fixture
def limited(app: FastAPI, settings: ServiceSettings, spec: BuildSpec) -> dict[str, str]:
    """The header of a key for `facts` alone, beside which there is an index `secret`."""
    publish_manifest(settings.data_dir / "indexes", "secret", spec)
    return create_key(settings.data_dir, scope="admin", indexes=["facts*"])


def test_every_call_on_an_index_that_the_key_is_not_for_is_as_if_there_were_none(
    app: FastAPI, client: TestClient, limited: dict[str, str]
) -> None:
    calls = [call for call in iter_calls(app, "secret") if "/secret" in call[2]]
    assert len(calls) == 7
    for name, method, path in calls:
        there = client.request(method, path, json=EXAMPLE_BODIES.get(name), headers=limited)
        missing = path.replace("secret", "missing")
        not_there = client.request(method, missing, json=EXAMPLE_BODIES.get(name), headers=limited)
        problem = require_problem(there, 404, "index_not_found")
        assert (
            problem.detail.replace("secret", "missing")
            == require_problem(not_there, 404, "index_not_found").detail
        )
    query = QUERY | {"index": "secret"}
    require_problem(client.post("/attribute", json=query, headers=limited), 404, "index_not_found")
    assert client.get("/index/facts", headers=limited).status_code == 200
    assert client.post("/attribute", json=QUERY, headers=limited).status_code == 200


def test_a_build_under_a_name_that_the_key_is_not_for_is_refused(
    client: TestClient, limited: dict[str, str]
) -> None:
    body = EXAMPLE_BODIES["build_index"]
    refused = client.post("/index", json=body | {"name": "secret"}, headers=limited)
    assert "facts*" in require_problem(refused, 403, "forbidden").detail
    assert client.post("/index", json=body, headers=limited).status_code == 202


def test_lists_show_what_the_key_is_for(
    client: TestClient, limited: dict[str, str], broker: FakeBroker, jobs: list[str]
) -> None:
    broker.heartbeats = [WORKER.model_copy(update={"resident": ["facts", "secret"]})]
    shown = [
        client.get(path, headers=limited).json()["items"]
        for path in ("/index", "/jobs", "/workers", "/models")
    ]
    assert [one["name"] for one in shown[0]] == ["facts"]
    assert [one["job_id"] for one in shown[1]] == jobs[:1]
    assert [one["resident"] for one in shown[2]] == [["facts"]]


@pytest.mark.parametrize("call", ["GET /jobs/{}", "DELETE /jobs/{}", "GET /jobs/{}/events"])
def test_a_job_of_another_index_is_as_if_there_were_none(
    client: TestClient, limited: dict[str, str], broker: FakeBroker, jobs: list[str], call: str
) -> None:
    broker.advance(jobs[0], "succeeded")
    for job_id in (*jobs[1:], "none"):
        method, path = call.format(job_id).split()
        problem = require_problem(client.request(method, path, headers=limited), 404, "job_not_found")
        assert problem.detail == f"no job {job_id!r}: GET /jobs lists them"
    method, path = call.format(jobs[0]).split()
    assert client.request(method, path, headers=limited).is_success
    assert broker.records[jobs[1]].state == "queued"


def test_two_keys_may_use_the_same_idempotency_key(client: TestClient, tmp_path: Path) -> None:
    body = EXAMPLE_BODIES["build_index"]
    same = {"Idempotency-Key": "try-1"}
    ada, bob = create_key(tmp_path, scope="write") | same, create_key(tmp_path, "bob", scope="write") | same
    first, other = (
        client.post("/index", json=body, headers=ada),
        client.post("/index", json=body | {"name": "facts-3"}, headers=bob),
    )
    again = client.post("/index", json=body, headers=ada)
    assert first.json() == again.json() != other.json()


JOBS = {"build_index", "append_documents", "fit_profile", "compact"}


def test_every_call_that_makes_a_job_takes_the_turn_of_its_key_and_makes_it_once(
    app: FastAPI, client: TestClient, broker: FakeBroker, tmp_path: Path
) -> None:
    ada = create_key(tmp_path, scope="write")
    calls = {name: path for name, _, path in iter_calls(app) if name in {*JOBS, "estimate_index"}}
    for name, path in calls.items():
        headers = ada | {"Idempotency-Key": name}
        first, again = (client.post(path, json=EXAMPLE_BODIES.get(name), headers=headers) for _ in range(2))
        if name in JOBS:
            assert (first.status_code, again.json()) == (202, first.json()), name
    assert len(broker.submitted_jobs) == len(JOBS) + 2  # an estimate is an answer
    assert len(set(broker.lanes)) == 1 and broker.lanes[0]


# Text


def test_a_key_without_text_gets_ids_and_scores_alone(
    client: TestClient, tmp_path: Path, broker: FakeBroker
) -> None:
    hidden = create_key(tmp_path, text=False)
    assert client.post("/attribute", json=QUERY, headers=hidden).status_code == 200
    assert broker.queries[0][0].include == ()
    everything = QUERY | {"include": ["text", "metadata", "tokens", "modules"]}
    assert client.post("/attribute", json=everything, headers=hidden).status_code == 200
    assert broker.queries[1][0].include == ("modules",)
    filtered = client.post("/attribute", json=QUERY | {"filter": {"source": ["wiki"]}}, headers=hidden)
    assert "filter" in require_problem(filtered, 403, "forbidden").detail


def test_a_document_is_shown_without_text_where_the_key_shows_none(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "doc-1", "prompt": "a", "completion": "b", "metadata": {"k": 1}, "loss": 0.5, "n_tokens": 3}
    monkeypatch.setattr(
        "bergson_core.storage.document_lookup.find_document", lambda directory, document_id: row
    )
    seen = client.get("/index/facts/documents/doc-1", headers=create_key(tmp_path, text=False)).json()
    assert seen == row | {"index": "facts", "prompt": None, "completion": None, "metadata": None}
    assert (
        client.get("/index/facts/documents/doc-1", headers=create_key(tmp_path, "bob")).json()["prompt"]
        == "a"
    )
