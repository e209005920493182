"""A key may be limited to some indexes, and may be denied the texts of documents."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from service.settings import ServiceSettings
from tests.service.fake_broker import WORKER, FakeBroker, publish_manifest
from tests.service.helpers import EXAMPLE_BODIES, iter_calls, make_key_header, require_problem

QUERY = {"index": "facts", "prompt": "a", "completion": " b"}


@pytest.fixture
def limited(app: FastAPI, settings: ServiceSettings, spec: BuildSpec) -> dict[str, str]:
    """The header of a key for `facts` alone, next to an index `secret`."""
    publish_manifest(settings.data_dir / "indexes", "secret", spec)
    return make_key_header(settings.data_dir, scope="admin", indexes=["facts*"])


def test_an_index_that_the_key_may_not_see_looks_like_one_that_does_not_exist(
    app: FastAPI, client: TestClient, limited: dict[str, str]
) -> None:
    calls = [call for call in iter_calls(app, "secret") if "/secret" in call[2]]
    assert len(calls) == 13
    for name, method, path in calls:
        hidden = client.request(method, path, json=EXAMPLE_BODIES.get(name), headers=limited)
        missing = path.replace("secret", "missing")
        nonexistent = client.request(method, missing, json=EXAMPLE_BODIES.get(name), headers=limited)
        problem = require_problem(hidden, 404, "index_not_found")
        assert (
            problem.detail.replace("secret", "missing")
            == require_problem(nonexistent, 404, "index_not_found").detail
        )
    query = QUERY | {"index": "secret"}
    require_problem(client.post("/attribute", json=query, headers=limited), 404, "index_not_found")
    assert client.get("/index/facts", headers=limited).status_code == 200
    assert client.post("/attribute", json=QUERY, headers=limited).status_code == 200


def test_a_build_under_a_name_that_the_key_may_not_see_is_refused(
    client: TestClient, limited: dict[str, str]
) -> None:
    body = EXAMPLE_BODIES["build_index"]
    refused = client.post("/index", json=body | {"name": "secret"}, headers=limited)
    assert "facts*" in require_problem(refused, 403, "forbidden").detail
    assert client.post("/index", json=body, headers=limited).status_code == 202


def test_a_key_can_look_up_what_it_may_do(client: TestClient, tmp_path: Path) -> None:
    everything = client.get("/key").json()
    assert (everything["name"], everything["scope"], everything["text"]) == ("anybody", "admin", True)
    header = make_key_header(
        tmp_path, "bo", 4e9, scope="write", indexes=("facts*",), text=False, rate="9/minute", concurrent=3
    )
    assert client.get("/key", headers=header).json() == {
        "name": "bo",
        "scope": "write",
        "indexes": ["facts*"],
        "text": False,
        "rate": "9/minute",
        "concurrent": 3,
        "expires_at": 4e9,
    }
    assert client.get("/key").status_code == 401


def test_lists_show_only_what_the_key_may_see(
    client: TestClient, limited: dict[str, str], broker: FakeBroker, jobs: list[str]
) -> None:
    broker.heartbeats = [WORKER.model_copy(update={"resident": ["facts", "secret"]})]
    pages = [
        client.get(path, headers=limited).json()["items"]
        for path in ("/index", "/jobs", "/workers", "/models")
    ]
    indexes, listed_jobs, workers, _ = pages
    assert [index["name"] for index in indexes] == ["facts"]
    assert [job["job_id"] for job in listed_jobs] == jobs[:1]
    assert [worker["resident"] for worker in workers] == [["facts"]]


@pytest.mark.parametrize("call", ["GET /jobs/{}", "DELETE /jobs/{}", "GET /jobs/{}/events"])
def test_a_job_of_another_index_looks_like_one_that_does_not_exist(
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
    idempotency_key = {"Idempotency-Key": "try-1"}
    ada, bob = (
        make_key_header(tmp_path, scope="write") | idempotency_key,
        make_key_header(tmp_path, "bob", scope="write") | idempotency_key,
    )
    first, other = (
        client.post("/index", json=body, headers=ada),
        client.post("/index", json=body | {"name": "facts-3"}, headers=bob),
    )
    again = client.post("/index", json=body, headers=ada)
    assert first.json() == again.json() != other.json()


JOBS = {
    *("build_index", "append_documents", "fit_profile", "create_behaviour", "compact"),
    "preview_unlearning",
}


def test_every_call_that_queues_a_job_uses_the_lane_of_its_key_and_queues_it_once(
    app: FastAPI, client: TestClient, broker: FakeBroker, tmp_path: Path
) -> None:
    ada = make_key_header(tmp_path, scope="write")
    calls = {name: path for name, _, path in iter_calls(app) if name in {*JOBS, "estimate_index"}}
    for name, path in calls.items():
        headers = ada | {"Idempotency-Key": name}
        first, again = (client.post(path, json=EXAMPLE_BODIES.get(name), headers=headers) for _ in range(2))
        if name in JOBS:
            assert (first.status_code, again.json()) == (202, first.json()), name
    assert len(broker.submitted_jobs) == len(JOBS) + 2  # an estimate is made anew by each call
    assert len(set(broker.lanes)) == 1 and broker.lanes[0]


# Text


def test_a_key_without_text_gets_only_ids_and_scores(
    client: TestClient, tmp_path: Path, broker: FakeBroker
) -> None:
    hidden = make_key_header(tmp_path, text=False)
    assert client.post("/attribute", json=QUERY, headers=hidden).status_code == 200
    assert broker.queries[0][0].include == ()
    everything = QUERY | {"include": ["text", "metadata", "tokens", "modules", "words", "background"]}
    assert client.post("/attribute", json=everything, headers=hidden).status_code == 200
    assert broker.queries[1][0].include == ("modules", "background")
    filtered = client.post("/attribute", json=QUERY | {"filter": {"source": ["wiki"]}}, headers=hidden)
    assert "filter" in require_problem(filtered, 403, "forbidden").detail
    by_column = client.post("/attribute", json=QUERY | {"group_by": "source"}, headers=hidden)
    assert "near_duplicates" in require_problem(by_column, 403, "forbidden").detail
    grouped = client.post("/attribute", json=QUERY | {"group_by": "near_duplicates"}, headers=hidden)
    assert grouped.json()["results"][0]["group"]["count"] > 0
    for order in ("words", "fused"):
        ordered = client.post("/attribute", json=QUERY | {"order": order}, headers=hidden)
        assert order in require_problem(ordered, 403, "forbidden").detail


def test_a_key_without_text_gets_documents_without_text(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "doc-1", "prompt": "a", "completion": "b", "metadata": {"k": 1}, "loss": 0.5, "n_tokens": 3}
    monkeypatch.setattr(
        "bergson_core.storage.document_lookup.find_document", lambda directory, document_id: row
    )
    document = client.get(
        "/index/facts/documents/doc-1", headers=make_key_header(tmp_path, text=False)
    ).json()
    hidden = dict.fromkeys(("prompt", "completion", "rejected", "metadata", "chunk", "chunks"))
    assert document == row | {"index": "facts"} | hidden
    assert (
        client.get("/index/facts/documents/doc-1", headers=make_key_header(tmp_path, "bob")).json()["prompt"]
        == "a"
    )
