"""Documents are read and taken down on disk, without a worker; adding documents is a job."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from bergson_core.errors import RedisUnavailable
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.documents import Chunk
from bergson_core.schemas.record import Record
from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, make_document_table, write_document_table
from bergson_core.storage.takedown_log import record_takedown
from service.app import create_app
from service.settings import ServiceSettings
from tests.processes import stopped_takedown
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.helpers import require_problem
from worker.messages import AppendJob, CompactJob, ProfileJob

IDS = ["doc-0", "a/b c", "ü?#", "a/../..", "x" * 300]
QUERY: dict[str, Any] = {"index": "news", "prompt": "Ada was born in", "completion": " London"}


@pytest.fixture
def news(settings: ServiceSettings) -> Path:
    """The directory of an index whose documents have ids of their own, and which has no rows."""
    spec = {"model": "tiny", "documents": [{"text": "a"}], "columns": {"id": "id", "metadata": ["source"]}}
    publish_manifest(settings.indexes_dir, "news", BuildSpec.model_validate(spec))
    shard = settings.indexes_dir / "news" / "shards" / "00000"
    shard.mkdir(parents=True)
    records = [Record(document_id, f"text of {document_id}", None, {"source": "wiki"}) for document_id in IDS]
    write_document_table(
        shard / DOCUMENT_TABLE_FILE, make_document_table(records, np.array([1.5] * 4 + [np.nan]), [6] * 5)
    )
    return settings.indexes_dir / "news"


def document_path(document_id: str) -> str:
    return f"/index/news/documents/{quote(document_id, safe='')}"


def test_a_process_that_is_stopped_in_a_takedown_keeps_only_the_takedowns_of_its_index_from_their_answers(
    client: TestClient, news: Path
) -> None:
    other = shutil.copytree(news, news.with_name("other"))
    with stopped_takedown(news) as pid, ThreadPoolExecutor(120) as threads:
        started = time.monotonic()
        deletes = [threads.submit(client.delete, document_path("doc-0")) for _ in range(120)]
        assert client.get(f"/index/{other.name}/documents/doc-0").status_code == 200
        assert (
            time.monotonic() - started < 10
        )  # each wave of 40 threads that waited for 5 s would take longer
        for delete in deletes:
            problem = require_problem(delete.result(), 409, "index_busy")
            assert f"(process {pid} on " in problem.detail
        assert time.monotonic() - started < 12
    assert client.delete(document_path("doc-0")).status_code == 204


@pytest.mark.parametrize("document_id", IDS)
def test_a_document_is_found_by_any_id(client: TestClient, news: Path, document_id: str) -> None:
    assert client.get(document_path(document_id)).json() == {
        "index": "news",
        "id": document_id,
        "prompt": f"text of {document_id}",
        "completion": None,
        "rejected": None,
        "metadata": {"source": "wiki"},
        "loss": None if document_id == IDS[-1] else 1.5,
        "n_tokens": 6,
        "chunk": None,
        "chunks": None,
    }


@pytest.fixture
def cut(news: Path) -> Path:
    """The same index, with the document `long` in three chunks of ten characters that overlap by two."""
    text = "abcdefghijklmnopqrstuvwxyz"
    parts = [(0, 10), (8, 18), (16, 26)]
    records = [
        Record(
            f"long#{number}",
            text[start:end],
            None,
            {"source": "wiki"},
            chunk=Chunk(document="long", start=start, end=end, count=3),
        )
        for number, (start, end) in enumerate(parts, start=1)
    ]
    table = make_document_table(records, np.array([1.0, 2.0, 4.0]), [5, 6, 7])
    write_document_table(news / "shards" / "00000" / DOCUMENT_TABLE_FILE, table)
    return news


def test_a_document_that_was_cut_is_found_as_a_whole_and_by_its_chunks(client: TestClient, cut: Path) -> None:
    whole = client.get(document_path("long")).json()
    assert (whole["prompt"], whole["chunk"]) == ("abcdefghijklmnopqrstuvwxyz", None)
    assert whole["chunks"] == ["long#1", "long#2", "long#3"]
    assert (whole["loss"], whole["n_tokens"]) == (7.0, 18)
    chunk = client.get(document_path("long#2")).json()
    assert (chunk["id"], chunk["prompt"]) == ("long#2", "ijklmnopqr")
    assert chunk["chunk"] == {"document": "long", "start": 8, "end": 18, "count": 3}


def test_a_takedown_of_a_document_hides_all_of_its_chunks(client: TestClient, cut: Path) -> None:
    assert client.delete(document_path("long")).status_code == 204
    for document_id in ("long", "long#1", "long#3"):
        require_problem(client.get(document_path(document_id)), 404, "document_not_found")


def test_a_takedown_of_a_chunk_leaves_the_others(client: TestClient, cut: Path) -> None:
    assert client.delete(document_path("long#2")).status_code == 204
    require_problem(client.get(document_path("long#2")), 404, "document_not_found")
    whole = client.get(document_path("long")).json()
    assert (whole["chunks"], whole["prompt"]) == (["long#1", "long#3"], "abcdefghijqrstuvwxyz")


def test_an_append_of_a_document_that_is_there_in_chunks_is_refused_with_its_id(
    client: TestClient, broker: FakeBroker, cut: Path
) -> None:
    documents = [{"id": name, "text": "a", "source": "x"} for name in ("long", "new", "long#3")]
    problem = require_problem(
        client.post("/index/news/documents", json={"documents": documents}), 409, "ids_exist"
    )
    assert problem.ids == ["long", "long#3"]
    assert not broker.submitted_jobs


def test_an_append_states_what_becomes_of_long_and_bad_documents(
    client: TestClient, broker: FakeBroker, news: Path
) -> None:
    documents = [{"id": "new", "text": "b", "source": "x"}]
    choices = {"long_documents": "chunk", "chunk_overlap": 8, "on_bad_document": "skip"}
    assert client.post("/index/news/documents", json={"documents": documents} | choices).status_code == 202
    (job,) = broker.submitted_jobs
    assert isinstance(job, AppendJob)
    assert job.spec.model_dump(include=set(choices)) == choices
    for wrong in ({"long_documents": "split"}, {"chunk_overlap": 8}, {"on_bad_document": "zero"}):
        response = client.post("/index/news/documents", json={"documents": documents} | wrong)
        assert next(iter(wrong)) in require_problem(response, 422, "invalid_input").detail


@pytest.mark.parametrize("document_id", IDS)
def test_a_takedown_takes_effect_at_once_without_a_worker_or_redis(
    client: TestClient, broker: FakeBroker, news: Path, document_id: str
) -> None:
    broker.heartbeats, broker.error = [], RedisUnavailable("gone")
    assert client.delete(document_path(document_id)).status_code == 204
    require_problem(client.get(document_path(document_id)), 404, "document_not_found")
    require_problem(client.delete(document_path(document_id)), 404, "document_not_found")
    others = [other for other in IDS if other != document_id]
    assert [client.get(document_path(other)).status_code for other in others] == [200] * 4


def test_takedowns_are_counted_and_survive_a_restart(
    client: TestClient, settings: ServiceSettings, broker: FakeBroker, news: Path
) -> None:
    client.delete(document_path("doc-0"))
    again = TestClient(create_app(settings, broker))  # pyright: ignore[reportArgumentType]
    assert again.get(document_path("doc-0")).status_code == 404
    index = again.get("/index/news").json()
    assert (index["taken_down"], index["compacted"]) == (1, 0)


def test_a_document_taken_down_meanwhile_is_removed_from_the_answer(
    client: TestClient, broker: FakeBroker, news: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.texts = ["a", "b", "c"]
    ask = broker.ask

    async def ask_and_take_down(*arguments: Any) -> Any:
        answer = await ask(*arguments)
        record_takedown(news, "doc-1", lambda: 1)
        return answer

    monkeypatch.setattr(broker, "ask", ask_and_take_down)
    results = client.post("/attribute", json=QUERY).json()["results"]
    assert [(row["rank"], row["id"]) for row in results] == [(1, "doc-0"), (2, "doc-2")]


def test_documents_of_an_unknown_index_are_not_found(client: TestClient) -> None:
    for call in (client.get, client.delete):
        require_problem(call("/index/none/documents/x"), 404, "index_not_found")
    for path in ("documents", "profiles"):
        body = {"documents": [{"text": "a"}]} if path == "documents" else PROFILE
        require_problem(client.post(f"/index/none/{path}", json=body), 404, "index_not_found")
    require_problem(client.post("/index/none/compact"), 404, "index_not_found")
    require_problem(client.delete("/index/none"), 404, "index_not_found")


def test_a_damaged_index_is_reported_as_corrupt(client: TestClient, news: Path) -> None:
    (news / "manifest.json").write_text("{")
    require_problem(client.get(document_path("doc-0")), 500, "index_corrupt")


def test_an_append_is_queued_as_a_job(client: TestClient, broker: FakeBroker, news: Path) -> None:
    body = {"documents": [{"id": "new", "text": "b", "source": "x"}], "model": "tiny"}
    response = client.post("/index/news/documents", json=body, headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json()["state"]) == (202, "queued")
    assert response.headers["Location"] == f"/jobs/{response.json()['job_id']}"
    (job,) = broker.submitted_jobs
    assert isinstance(job, AppendJob)
    assert (job.index, job.spec.documents) == ("news", tuple(body["documents"]))
    again = client.post("/index/news/documents", json=body, headers={"Idempotency-Key": "k"})
    assert again.json() == response.json()
    assert len(broker.submitted_jobs) == 1


def test_ids_that_exist_are_refused_with_their_list(
    client: TestClient, broker: FakeBroker, news: Path
) -> None:
    documents = [{"id": name, "text": "b", "source": "x"} for name in ("new", "ü?#", "doc-0")]
    problem = require_problem(
        client.post("/index/news/documents", json={"documents": documents}), 409, "ids_exist"
    )
    assert problem.ids == ["ü?#", "doc-0"]
    assert not broker.submitted_jobs
    for document_id in ("ü?#", "doc-0"):
        client.delete(document_path(document_id))
    assert client.post("/index/news/documents", json={"documents": documents}).status_code == 202


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "exactly one of `dataset` and `documents`"),
        ({"documents": [{"text": "a"}], "dataset": {"path": "a"}}, "exactly one"),
        ({"documents": [{"text": "a"}], "model": "other"}, "model: the index news was built with tiny"),
        ({"documents": [{"text": "a"}], "gradients": {"projection_dim": 3}}, "gradients: the index"),
        ({"documents": [{"text": "a"}], "name": "x"}, "name"),
        ({"documents": [{"text": "a"}]}, "documents.0.id: the id is null or missing"),
        (
            {"documents": [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]},
            "documents.1.id: documents.0 has",
        ),
        ({"documents": [{"id": "x", "text": 1}]}, "documents.0.text: expected text"),
    ],
)
def test_a_bad_append_is_refused_before_it_is_queued(
    client: TestClient, broker: FakeBroker, news: Path, body: dict[str, Any], message: str
) -> None:
    problem = require_problem(client.post("/index/news/documents", json=body), 422, "invalid_input")
    assert message in problem.detail
    assert not broker.submitted_jobs


@pytest.mark.parametrize(
    ("value", "status"), [("books", 202), (None, 202), (7, 422), (True, 422), (["a"], 422)]
)
def test_metadata_of_another_type_is_refused_before_it_is_queued(
    client: TestClient, broker: FakeBroker, news: Path, value: Any, status: int
) -> None:
    manifest = json.loads((news / "manifest.json").read_text())
    manifest["shards"][0]["metadata_types"] = {"source": "text"}
    (news / "manifest.json").write_text(json.dumps(manifest))
    documents = [{"id": "new-0", "text": "a"}, {"id": "new-1", "text": "b", "source": value}]
    response = client.post("/index/news/documents", json={"documents": documents})
    assert response.status_code == status
    assert len(broker.submitted_jobs) == (status == 202)
    if status == 422:
        problem = require_problem(response, 422, "invalid_input")
        assert "'source' of the index news holds text, and documents.1 has" in problem.detail


PROFILE: dict[str, Any] = {"name": "law", "queries": [{"prompt": "a", "completion": " b"}]}


def test_profiles_and_compaction_are_queued_as_jobs(
    client: TestClient, broker: FakeBroker, news: Path
) -> None:
    for call, body in (("profiles", PROFILE), ("compact", None)):
        response = (
            client.post(f"/index/news/{call}", json=body) if body else client.post(f"/index/news/{call}")
        )
        assert response.status_code == 202
        assert response.headers["Location"] == f"/jobs/{response.json()['job_id']}"
    assert [type(job) for job in broker.submitted_jobs] == [ProfileJob, CompactJob]


@pytest.mark.parametrize(
    "change",
    [{"queries": None}, {"queries": []}, {"mixing": 1.5}, {"name": "Law"}, {"dataset": {"path": "a"}}],
)
def test_a_bad_profile_is_refused(
    client: TestClient, broker: FakeBroker, news: Path, change: dict[str, Any]
) -> None:
    require_problem(client.post("/index/news/profiles", json=PROFILE | change), 422, "invalid_input")
    assert not broker.submitted_jobs


def test_a_deleted_index_is_gone_from_disk(client: TestClient, settings: ServiceSettings, news: Path) -> None:
    assert client.delete("/index/news").status_code == 204
    assert [path.name for path in settings.indexes_dir.iterdir()] == ["facts"]
    require_problem(client.get("/index/news"), 404, "index_not_found")
    require_problem(client.delete("/index/news"), 404, "index_not_found")
    assert [item["name"] for item in client.get("/index").json()["items"]] == ["facts"]


def test_an_index_is_not_deleted_while_a_job_works_on_it(client: TestClient, news: Path) -> None:
    job = client.post("/index/news/compact").json()["job_id"]
    problem = require_problem(client.delete("/index/news"), 409, "index_busy")
    assert job in problem.detail
    assert (news / "manifest.json").exists()
