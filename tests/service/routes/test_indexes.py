"""POST /index queues a build; the other calls show the indexes on disk and those being built."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.presets import PRESETS, PresetName
from service.openapi import examples
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, publish_manifest
from tests.service.helpers import require_problem
from worker.messages import BuildJob, EstimateJob

BODY: dict[str, Any] = {"name": "news", "model": "tiny", "documents": [{"text": "a"}]}


def test_a_build_is_accepted_and_its_job_is_at_location(client: TestClient, broker: FakeBroker) -> None:
    response = client.post("/index", json=BODY)
    assert response.status_code == 202
    assert response.json() == {"job_id": "job-1", "index": "news", "state": "queued"}
    assert client.get(response.headers["location"]).json()["index"] == "news"
    assert broker.specs["news"] == BuildSpec.model_validate({"model": "tiny", "documents": [{"text": "a"}]})


@pytest.mark.parametrize(
    "body",
    [
        examples.INDEX_REQUEST,
        examples.INDEX_PRESET,
        examples.INDEX_CHECKPOINTS,
        examples.INDEX_INLINE,
    ],
)
def test_the_documented_bodies_are_accepted(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/index", json=body).status_code == 202


def test_a_build_of_several_checkpoints_is_queued(client: TestClient, broker: FakeBroker) -> None:
    body = {"name": "run", "models": ["run/1", "run/2"], "documents": [{"text": "a"}]}
    assert client.post("/index", json=body).status_code == 202
    assert (broker.specs["run"].model, broker.specs["run"].models) == ("run/2", ("run/1", "run/2"))
    for wrong in ({"models": ["run/1"]}, {"model": "run/3"}, {"device_map": "auto"}):
        assert client.post("/index", json=body | {"name": "other"} | wrong).status_code == 422


@pytest.mark.parametrize("name", PRESETS)
def test_a_build_with_a_preset_is_queued_with_its_values(
    client: TestClient, broker: FakeBroker, name: PresetName
) -> None:
    assert client.post("/index", json=BODY | {"preset": name}).status_code == 202
    job = broker.submitted_jobs[0]
    assert isinstance(job, BuildJob)
    body = {key: value for key, value in BODY.items() if key != "name"}
    assert job.spec == BuildSpec.model_validate(body | PRESETS[name].values)
    assert "preset" not in job.model_dump_json()


def test_an_estimate_takes_a_preset_too(client: TestClient, broker: FakeBroker) -> None:
    assert client.post("/index/estimate", json=BODY | {"preset": "best"}).status_code == 200
    job = broker.submitted_jobs[0]
    assert isinstance(job, EstimateJob)
    body = {key: value for key, value in BODY.items() if key != "name"}
    assert job.spec == BuildSpec.model_validate(body | {"preset": "best"})


def test_what_is_given_beside_a_preset_counts(client: TestClient, broker: FakeBroker) -> None:
    body = BODY | {"preset": "best", "gradients": {"projection_dim": 32, "modules": None}}
    assert client.post("/index", json=body).status_code == 202
    gradients = broker.specs[BODY["name"]].gradients
    expected = {**PRESETS["best"].values["gradients"], "projection_dim": 32, "modules": None}
    assert gradients == GradientSpec(**expected)


@pytest.mark.parametrize(
    ("change", "loc", "message"),
    [
        ({"preset": "fast"}, ["body", "preset"], "expected 'default', 'trackstar' or 'best'"),
        (
            {"preset": "best", "gradients": {"optimizer_state": "optimizer.pt"}},
            ["body", "gradients", "normalizer"],
            "this value is of the preset 'best'",
        ),
    ],
)
def test_a_preset_that_is_unknown_or_does_not_fit_is_refused_by_its_field(
    client: TestClient, change: dict[str, Any], loc: list[str], message: str
) -> None:
    problem = require_problem(client.post("/index", json=BODY | change), 422, "invalid_input")
    (error,) = problem.errors or ()
    assert error.loc == loc
    assert message in error.msg


def test_a_build_states_what_becomes_of_long_and_bad_documents(
    client: TestClient, broker: FakeBroker
) -> None:
    choices = {"long_documents": "chunk", "chunk_overlap": 8, "on_bad_document": "skip"}
    assert client.post("/index", json=BODY | choices).status_code == 202
    assert broker.specs[BODY["name"]].model_dump(include=set(choices)) == choices


def test_a_taken_name_is_a_conflict(client: TestClient) -> None:
    client.post("/index", json=BODY)
    require_problem(client.post("/index", json=BODY), 409, "index_exists")


def test_the_same_idempotency_key_gives_the_same_job(client: TestClient) -> None:
    first = client.post("/index", json=BODY, headers={"Idempotency-Key": "try-1"})
    again = client.post("/index", json=BODY, headers={"Idempotency-Key": "try-1"})
    assert again.status_code == 202
    assert again.json() == first.json()


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
def test_a_malformed_idempotency_key_is_refused(client: TestClient, key: str) -> None:
    response = client.post("/index", json=BODY, headers={"Idempotency-Key": key})
    require_problem(response, 422, "invalid_input")


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"surprise": 1}, ("body", "surprise")),
        ({"gradients": {"surprise": 1}}, ("body", "gradients", "surprise")),
        ({"gradients": {"projection_dim": 0}}, ("body", "gradients", "projection_dim")),
        ({"gradients": {"projection_dim": -1}}, ("body", "gradients", "projection_dim")),
        ({"gradients": {"optimizer_state": ""}}, ("body", "gradients", "optimizer_state")),
        ({"gradients": {"modules": "("}}, ("body", "gradients", "modules")),
        ({"long_documents": "split"}, ("body", "long_documents")),
        ({"on_bad_document": "zero"}, ("body", "on_bad_document")),
        ({"chunk_overlap": -1}, ("body", "chunk_overlap")),
        ({"chunk_overlap": 8}, ("body", "chunk_overlap")),
        ({"long_documents": "chunk", "columns": {"completion": "answer"}}, ("body", "long_documents")),
        ({"long_documents": "truncate", "columns": {"messages": "chat"}}, ("body", "long_documents")),
        ({"model": "x" * 300}, ("body", "model")),
        ({"gradients": {"projection_dim": 65}}, ("body", "gradients", "projection_dim")),
        ({"dataset": {"path": "a"}}, ("body",)),
        ({"documents": None}, ("body",)),
        ({"documents": [1]}, ("body", "documents", 0)),
        ({"documents": [{"text": "a"}, {"text": None}]}, ("body", "documents", 1, "text")),
        ({"documents": [{"txt": "a"}]}, ("body", "documents", 0, "text")),
        (
            {"columns": {"chosen": "a", "rejected": "b"}, "documents": [{"a": "x", "b": "x"}]},
            ("body", "documents", 0, "a"),
        ),
        (
            {"columns": {"chosen": "a", "rejected": "b"}, "documents": [{"a": "x", "b": ""}]},
            ("body", "documents", 0, "b"),
        ),
        ({"columns": {"messages": "a"}, "documents": [{"a": []}]}, ("body", "documents", 0, "a")),
        ({"columns": {"id": "id"}}, ("body", "documents", 0, "id")),
        (
            {"columns": {"id": "id"}, "documents": [{"id": n // 2, "text": "a"} for n in range(4)]},
            ("body", "documents", 1, "id"),
        ),
        ({"model": ""}, ("body", "model")),
        ({"name": "Ärger"}, ("body", "name")),
        ({"name": "../etc"}, ("body", "name")),
        ({"name": "a\n"}, ("body", "name")),
        ({"name": "a" * 64}, ("body", "name")),
        ({"name": ""}, ("body", "name")),
        ({"name": None}, ("body", "name")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_refused_with_its_location(
    client: TestClient, broker: FakeBroker, change: dict[str, Any], loc: tuple[str | int, ...]
) -> None:
    for path in ("/index", "/index/estimate") if "name" not in change else ("/index",):
        problem = require_problem(client.post(path, json=BODY | change), 422, "invalid_input")
        assert loc in [tuple(error.loc) for error in problem.errors or []]
    assert not broker.specs


def test_bad_documents_may_be_sent_where_they_are_left_out(client: TestClient, broker: FakeBroker) -> None:
    documents = [{"text": "a"}, {"text": None}]
    body = BODY | {"documents": documents, "on_bad_document": "skip"}
    assert client.post("/index", json=body).status_code == 202
    assert broker.specs["news"].documents == tuple(documents)


def test_a_published_index_shows_its_counts_sizes_and_spec(client: TestClient, spec: BuildSpec) -> None:
    index = client.get("/index/facts").json()
    expected = {
        "name": "facts",
        "state": "ready",
        "rows": 1000,
        "tokens": 61_000,
        "modules": 1,
        "dimensions": 256,
        "coverage_percent": 52.3,
        "generation": 1,
        "created_at": "2026-03-01T12:00:00+00:00",
        "size_bytes": {"rows": 400, "search": 30, "statistics": 5, "total": 435},
        "fingerprint": spec.fingerprint(),
    }
    assert {key: index[key] for key in expected} == expected
    assert index["spec"] == spec.model_dump(mode="json") | {"documents": []}


def test_an_index_that_is_being_built_shows_its_job(client: TestClient) -> None:
    job = client.post("/index", json=BODY).json()
    index = client.get("/index/news").json()
    assert (index["state"], index["job_id"], index["rows"]) == ("building", job["job_id"], None)


def test_an_index_is_ready_as_soon_as_it_is_published(
    client: TestClient, settings: ServiceSettings, spec: BuildSpec
) -> None:
    client.post("/index", json=BODY)
    publish_manifest(settings.indexes_dir, "news", spec)
    assert client.get("/index/news").json()["state"] == "ready"
    assert [item["state"] for item in client.get("/index").json()["items"]] == ["ready", "ready"]


def test_an_unknown_index_is_not_found(client: TestClient) -> None:
    require_problem(client.get("/index/none"), 404, "index_not_found")


@pytest.mark.parametrize(
    "name", ["Facts", "..%2ffacts", "a%0a", "%2e%2e", "a" * 64, "fa%20cts", "-facts", "a%00"]
)
def test_a_malformed_name_in_a_path_never_reaches_the_disk(client: TestClient, name: str) -> None:
    assert client.get(f"/index/{name}").status_code in (404, 422)
    assert client.get(f"/index/{name}").json()["code"] in ("not_found", "invalid_input")


def test_an_index_with_a_damaged_manifest_is_corrupt_and_does_not_hide_others(
    client: TestClient, settings: ServiceSettings
) -> None:
    (settings.indexes_dir / "broken").mkdir()
    (settings.indexes_dir / "broken" / "manifest.json").write_text("{")
    items = client.get("/index").json()["items"]
    assert [(item["name"], item["state"]) for item in items] == [("broken", "corrupt"), ("facts", "ready")]
    assert client.get("/index/broken").json()["error"]["code"] == "index_corrupt"


def test_a_replaced_manifest_is_read_again(
    client: TestClient, settings: ServiceSettings, spec: BuildSpec
) -> None:
    client.get("/index/facts")
    changed = (settings.indexes_dir / "facts" / "manifest.json").read_text()
    new = settings.indexes_dir / "facts" / "manifest.tmp"
    new.write_text(changed.replace('"generation": 1', '"generation": 2'))
    new.rename(settings.indexes_dir / "facts" / "manifest.json")
    assert client.get("/index/facts").json()["generation"] == 2


def test_pages_of_indexes_cover_all_of_them_once_and_in_order(
    client: TestClient, settings: ServiceSettings, spec: BuildSpec
) -> None:
    for name in ("a", "b", "z"):
        publish_manifest(settings.indexes_dir, name, spec)
    client.post("/index", json=BODY)
    names, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = client.get("/index", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        names += [item["name"] for item in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert (names, pages) == (["a", "b", "facts", "news", "z"], 3)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=..%2f", "cursor="])
def test_a_malformed_page_is_refused(client: TestClient, query: str) -> None:
    require_problem(client.get(f"/index?{query}"), 422, "invalid_input")


def test_an_empty_data_directory_has_no_indexes(client: TestClient, settings: ServiceSettings) -> None:
    (settings.indexes_dir).rename(settings.data_dir / "elsewhere")
    assert client.get("/index").json() == {"items": [], "next_cursor": None}


def test_an_estimate_takes_the_body_of_a_build(client: TestClient, broker: FakeBroker) -> None:
    assert client.post("/index/estimate", json=BODY).json() == examples.ESTIMATE
    assert client.post("/index/estimate", json=BODY | {"name": None, "timeout_s": 5}).status_code == 200
    assert broker.estimate_timeouts_s == [300, 5]
    assert broker.submitted_jobs[0].spec == BuildSpec(model="tiny", documents=({"text": "a"},))
    require_problem(client.post("/index/estimate", json=BODY | {"model": ""}), 422, "invalid_input")
    require_problem(client.post("/index/estimate", json=BODY | {"timeout_s": 4000}), 422, "invalid_input")
