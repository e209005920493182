"""A link keeps what the service answered, and shows of it what the index still has and the caller may see."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.preference.pair_texts import PairTexts
from bergson_core.schemas.record import Record, record_of_pair
from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, make_document_table, write_document_table
from bergson_core.storage.takedown_log import record_takedown
from service.app import create_app
from service.schemas import Link
from service.settings import ServiceSettings
from tests.service.fake_broker import TOKENS, FakeBroker, publish_manifest
from tests.service.helpers import make_key_header, require_problem

TEXTS = ["<b>Ada</b> London", "Alan was born in Maida Vale", "Grace was born in New York"]
REQUEST: dict[str, Any] = {"index": "news", "prompt": "Ada was born in", "completion": " London", "top_k": 3}
UNKNOWN = "69cbbcd0" + 32 * "0"


def write_documents(index: Path, texts: dict[str, str], source: str = "wiki") -> None:
    """Writes the table of the only shard of an index anew."""
    write_records(index, [Record(name, text, None, {"source": source}) for name, text in texts.items()])


def write_records(index: Path, records: list[Record]) -> None:
    shard = index / "shards" / "00000"
    shard.mkdir(parents=True, exist_ok=True)
    table = make_document_table(records, np.full(len(records), 1.5), [6] * len(records))
    write_document_table(shard / DOCUMENT_TABLE_FILE, table)


@pytest.fixture
def news(settings: ServiceSettings, broker: FakeBroker) -> Path:
    """The directory of an index of three documents, all of which every answer has."""
    spec = {"model": "tiny", "documents": [{"text": "a"}], "columns": {"id": "id", "metadata": ["source"]}}
    publish_manifest(settings.indexes_dir, "news", BuildSpec.model_validate(spec))
    write_documents(settings.indexes_dir / "news", {f"doc-{n}": text for n, text in enumerate(TEXTS)})
    broker.texts = list(TEXTS)
    return settings.indexes_dir / "news"


@pytest.fixture
def make(client: TestClient, news: Path) -> Callable[..., dict[str, Any]]:
    """`make(headers, **fields)` makes a link and returns it."""

    def make_link(headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        response = client.post("/links", json={"request": REQUEST | fields}, headers=headers)
        assert response.status_code == 201, response.text
        assert response.headers["Location"] == f"/links/{response.json()['id']}"
        return response.json()

    return make_link


@pytest.fixture
def change_manifest(news: Path) -> Callable[..., None]:
    def change(**fields: Any) -> None:
        path = news / "manifest.json"
        changed = json.loads(path.read_text()) | fields
        path.unlink()  # a published manifest is a new file
        path.write_text(json.dumps(changed))

    return change


def iter_link_files(settings: ServiceSettings) -> list[Path]:
    return sorted((settings.data_dir / "links").glob("*/*.json"))


def ids_of(link: dict[str, Any]) -> list[str]:
    return [row["id"] for row in link["answer"]["results"]]


def test_a_link_shows_the_answer_that_the_service_gave(
    client: TestClient, broker: FakeBroker, make: Callable[..., dict[str, Any]], settings: ServiceSettings
) -> None:
    answered = client.post("/attribute", json=REQUEST).json()
    made = make()
    opened = client.get(f"/links/{made['id']}").json()
    assert opened == made
    assert len(broker.queries) == 1, "the answer that is kept came from the cache"
    for name in ("results", "query", "notice", "generation", "profile"):
        assert opened["answer"][name] == answered[name]
    assert [row["prompt"] for row in opened["answer"]["results"]] == TEXTS
    assert [row["metadata"] for row in opened["answer"]["results"]] == [{"source": "wiki"}] * 3
    assert opened["request"] == REQUEST
    assert (opened["stale"], opened["removed"], opened["current_generation"]) == (False, 0, 1)
    assert opened["expires_at"] - opened["created_at"] == pytest.approx(settings.keep_links_s)


def test_an_answer_cannot_be_handed_in(client: TestClient, news: Path, broker: FakeBroker) -> None:
    for forged in ({"answer": {}}, {"request_id": "r"}, {"results": []}):
        refused = client.post("/links", json={"request": REQUEST} | forged)
        require_problem(refused, 422, "invalid_input")
    require_problem(client.post("/links", json={"request_id": "r"}), 422, "invalid_input")
    require_problem(client.post("/links", json=REQUEST), 422, "invalid_input")
    assert not broker.queries


def test_a_link_survives_a_restart_of_the_service(
    client: TestClient, make: Callable[..., dict[str, Any]], settings: ServiceSettings, broker: FakeBroker
) -> None:
    made = make()
    again = TestClient(create_app(settings, broker))  # pyright: ignore[reportArgumentType]
    assert again.get(f"/links/{made['id']}").json() == made


def test_a_document_that_was_taken_down_is_shown_by_no_link(
    client: TestClient, news: Path, make: Callable[..., dict[str, Any]], settings: ServiceSettings
) -> None:
    made = make(verify={"top": 1, "controls": 1}, include=["text", "metadata", "tokens"])
    assert client.delete("/index/news/documents/doc-1").status_code == 204
    response = client.get(f"/links/{made['id']}")
    link = response.json()
    assert (ids_of(link), link["removed"]) == (["doc-0", "doc-2"], 1)
    assert [row["rank"] for row in link["answer"]["results"]] == [1, 2]
    assert "Maida" not in response.text


def test_nothing_is_shown_of_a_random_document_or_a_group_that_has_a_document_that_was_taken_down(
    client: TestClient, news: Path, make: Callable[..., dict[str, Any]]
) -> None:
    write_documents(news, {f"doc-{n}": f"text {n}" for n in range(12)})
    made = make(verify={"top": 2, "controls": 1, "together": True})
    before = made["answer"]["verification"]
    assert before["controls"][0]["id"] == "doc-9" and before["together"]["ids"]
    for document_id in ("doc-9", before["together"]["ids"][0]):
        client.delete(f"/index/news/documents/{document_id}")
    after = client.get(f"/links/{made['id']}").json()["answer"]["verification"]
    assert (after["controls"], after["mean"], after["together"]) == ([], None, None)


def test_the_disk_has_no_text_of_a_document_beside_the_index(
    make: Callable[..., dict[str, Any]], settings: ServiceSettings
) -> None:
    make(include=["text", "metadata", "tokens"])
    (path,) = iter_link_files(settings)
    content = path.read_text()
    assert not [word for word in ("<b>", "Maida", "Grace", "wiki") if word in content]
    assert "doc-1" in content and " London" in content, "ids and the query are kept"


def test_the_value_of_a_group_comes_from_the_index(
    news: Path, make: Callable[..., dict[str, Any]], settings: ServiceSettings
) -> None:
    made = make(group_by="source", include=[])
    assert made["answer"]["results"][0]["group"]["value"] == "wiki"
    (path,) = iter_link_files(settings)
    assert "wiki" not in path.read_text()


def test_an_id_that_is_used_again_for_another_text_is_not_shown_as_the_old_document(
    client: TestClient, news: Path, make: Callable[..., dict[str, Any]]
) -> None:
    made = make()
    write_documents(news, {"doc-0": TEXTS[0], "doc-1": "an essay about zebras", "doc-2": TEXTS[2]})
    response = client.get(f"/links/{made['id']}")
    assert ids_of(response.json()) == ["doc-0", "doc-2"]
    assert "zebra" not in response.text


def test_tokens_have_their_texts_from_the_document(make: Callable[..., dict[str, Any]]) -> None:
    made = make(include=["text", "tokens"])
    tokens = made["answer"]["results"][0]["tokens"]
    assert tokens == [token.model_dump() for token in TOKENS]


def test_a_link_shows_the_words_of_its_results(make: Callable[..., dict[str, Any]]) -> None:
    rows = make(order="fused")["answer"]["results"]
    assert [row["words"]["states"] for row in rows] == [True, False, False]


def test_the_tokens_of_a_preference_pair_are_of_the_completion_that_they_are_read_with(
    news: Path, make: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = PairTexts("Is it?", " yes", " not", is_chat=False)
    write_records(news, [record_of_pair("doc-0", pair, {"source": "wiki"})])
    tokens = [
        TOKENS[0].model_copy(update={"start": 6, "end": 10, "token": text, "sequence": sequence})
        for text, sequence in ((" yes", "chosen"), (" not", "rejected"))
    ]
    monkeypatch.setattr("tests.service.fake_broker.TOKENS", tokens)
    row = make(include=["text", "tokens"])["answer"]["results"][0]
    assert (row["completion"], row["rejected"]) == (" yes", " not")
    assert [token["token"] for token in row["tokens"]] == [" yes", " not"]


def test_tokens_without_a_place_in_the_text_are_not_kept(
    broker: FakeBroker, make: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    placeless = [token.model_copy(update={"start": None, "end": None}) for token in TOKENS]
    monkeypatch.setattr("tests.service.fake_broker.TOKENS", placeless)
    assert make(include=["text", "tokens"])["answer"]["results"][0]["tokens"] is None


def test_a_link_shows_what_its_request_included(make: Callable[..., dict[str, Any]]) -> None:
    row = make(include=["metadata"])["answer"]["results"][0]
    assert (row["prompt"], row["metadata"], row["tokens"]) == (None, {"source": "wiki"}, None)


@pytest.mark.parametrize("change", [{"generation": 2}, {"fingerprint": "1" * 64}])
def test_a_link_is_stale_once_the_index_has_changed(
    client: TestClient,
    make: Callable[..., dict[str, Any]],
    change_manifest: Callable[..., None],
    change: dict[str, Any],
) -> None:
    made = make()
    change_manifest(**change)
    link = client.get(f"/links/{made['id']}").json()
    assert link["stale"]
    assert link["current_generation"] == change.get("generation", 1)
    assert (link["generation"], link["fingerprint"]) == (made["generation"], made["fingerprint"])
    assert ids_of(link) == ids_of(made), "the answer of then is shown all the same"


def test_a_link_to_a_deleted_index_says_so_and_shows_no_documents(
    client: TestClient, make: Callable[..., dict[str, Any]]
) -> None:
    made = make()
    assert client.delete("/index/news").status_code == 204
    link = client.get(f"/links/{made['id']}").json()
    assert (link["stale"], link["answer"], link["current_generation"]) == (True, None, None)
    assert link["request"] == REQUEST


def test_a_link_ends_when_it_says(
    client: TestClient,
    make: Callable[..., dict[str, Any]],
    settings: ServiceSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + settings.keep_links_s - 60)
    assert client.get(f"/links/{made['id']}").status_code == 200
    monkeypatch.setattr(time, "time", lambda: now + settings.keep_links_s + 1)
    require_problem(client.get(f"/links/{made['id']}"), 404, "link_not_found")
    assert iter_link_files(settings) == []


@pytest.mark.parametrize("link_id", ["x", "A" * 40, UNKNOWN[:-1], UNKNOWN + "0", "*" * 40])
def test_an_id_of_another_form_is_refused(client: TestClient, news: Path, link_id: str) -> None:
    assert client.get(f"/links/{link_id}").status_code in (404, 422)
    assert client.delete(f"/links/{link_id}").status_code in (404, 405, 422)


def test_an_unknown_link_is_not_found(client: TestClient, news: Path) -> None:
    require_problem(client.get(f"/links/{UNKNOWN}"), 404, "link_not_found")
    require_problem(client.delete(f"/links/{UNKNOWN}"), 404, "link_not_found")


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", None])
def test_a_damaged_file_is_a_link_that_is_not_there(
    client: TestClient,
    make: Callable[..., dict[str, Any]],
    settings: ServiceSettings,
    content: bytes | None,
) -> None:
    made = make()
    (path,) = iter_link_files(settings)
    path.write_bytes(path.read_bytes().replace(b'"rank": 1', b'"rank": 7') if content is None else content)
    require_problem(client.get(f"/links/{made['id']}"), 404, "link_not_found")


# Keys


def test_a_key_that_sees_no_text_sees_none_through_a_link(
    client: TestClient, make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ada = make_key_header(tmp_path)
    outside = make_key_header(tmp_path, "outside", text=False)
    link_id = make(ada, include=["text", "metadata", "tokens", "words"])["id"]
    response = client.get(f"/links/{link_id}", headers=outside)
    rows = response.json()["answer"]["results"]
    assert [row["id"] for row in rows] == ["doc-0", "doc-1", "doc-2"]
    assert all(
        row[name] is None for row in rows for name in ("prompt", "completion", "metadata", "tokens", "words")
    )
    assert not [word for word in ("<b>", "Maida", "Grace", "wiki") if word in response.text]


def test_a_key_that_sees_no_text_opens_no_link_to_some_of_the_documents(
    client: TestClient, make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ada, outside = make_key_header(tmp_path), make_key_header(tmp_path, "outside", text=False)
    link_id = make(ada, filter={"source": ["wiki"]})["id"]
    problem = require_problem(client.get(f"/links/{link_id}", headers=outside), 403, "forbidden")
    assert "metadata" in problem.detail
    body = {"request": REQUEST | {"filter": {"source": ["wiki"]}}}
    require_problem(client.post("/links", json=body, headers=outside), 403, "forbidden")


def test_a_link_of_a_key_without_text_shows_texts_to_those_who_may_see_them(
    client: TestClient, make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    outside, ada = make_key_header(tmp_path, "outside", text=False), make_key_header(tmp_path)
    made = make(outside)
    assert made["answer"]["results"][0]["prompt"] is None
    assert (
        client.get(f"/links/{made['id']}", headers=ada).json()["answer"]["results"][0]["prompt"] == TEXTS[0]
    )


def test_a_link_of_an_index_that_the_key_may_not_see_looks_like_one_that_does_not_exist(
    client: TestClient, make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    link_id = make(make_key_header(tmp_path))["id"]
    limited = make_key_header(tmp_path, "limited", scope="admin", indexes=["facts*"])
    for call in (client.get, client.delete):
        hidden = require_problem(call(f"/links/{link_id}", headers=limited), 404, "link_not_found")
        unknown = require_problem(call(f"/links/{UNKNOWN}", headers=limited), 404, "link_not_found")
        assert hidden.detail.replace(link_id, UNKNOWN) == unknown.detail
    refused = client.post("/links", json={"request": REQUEST}, headers=limited)
    require_problem(refused, 404, "index_not_found")
    require_problem(client.get(f"/links/{link_id}"), 401, "unauthorized")


def test_a_link_counts_as_many_calls_as_its_query(client: TestClient, news: Path, tmp_path: Path) -> None:
    slow = make_key_header(tmp_path, rate="5/minute")
    verified = {"request": REQUEST | {"verify": {"top": 3, "controls": 3}}}
    refused = client.post("/links", json=verified, headers=slow)
    assert "7 queries" in require_problem(refused, 422, "invalid_input").detail
    statuses = [client.post("/links", json={"request": REQUEST}, headers=slow).status_code for _ in range(5)]
    assert statuses == [201] * 4 + [429]


def test_a_link_is_removed_by_its_key_or_one_that_may_write(
    client: TestClient, make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ada, bob = make_key_header(tmp_path), make_key_header(tmp_path, "bob")
    writer = make_key_header(tmp_path, "writer", scope="write")
    first, second = (make(ada)["id"] for _ in range(2))
    refused = client.delete(f"/links/{first}", headers=bob)
    assert "scope write" in require_problem(refused, 403, "forbidden").detail
    for link_id, headers in ((first, ada), (second, writer)):
        assert client.delete(f"/links/{link_id}", headers=headers).status_code == 204
        require_problem(client.get(f"/links/{link_id}", headers=ada), 404, "link_not_found")


# Space


@pytest.fixture
def small(settings: ServiceSettings, broker: FakeBroker, news: Path) -> Callable[[int], TestClient]:
    """`small(links_bytes)` is a client of a service with so much space for links."""

    def make_client(links_bytes: int) -> TestClient:
        limited = settings.model_copy(update={"links_bytes": links_bytes})
        return TestClient(create_app(limited, broker), raise_server_exceptions=False)  # type: ignore[arg-type]

    return make_client


def test_no_link_is_kept_where_there_is_no_space_for_any(
    small: Callable[[int], TestClient], broker: FakeBroker
) -> None:
    refused = small(0).post("/links", json={"request": REQUEST})
    assert "BERGSON_LINKS_BYTES" in require_problem(refused, 403, "forbidden").detail
    assert not broker.queries


def test_links_take_no_more_space_than_the_setting_and_none_is_lost_for_another(
    small: Callable[[int], TestClient], settings: ServiceSettings, make: Callable[..., dict[str, Any]]
) -> None:
    made = make()
    size = iter_link_files(settings)[0].stat().st_size
    client = small(int(2.5 * size))
    assert client.post("/links", json={"request": REQUEST}).status_code == 201
    refused = client.post("/links", json={"request": REQUEST})
    assert "BERGSON_LINKS_BYTES" in require_problem(refused, 507, "disk_full").detail
    assert client.get(f"/links/{made['id']}").status_code == 200
    client.delete(f"/links/{made['id']}")
    assert client.post("/links", json={"request": REQUEST}).status_code == 201


def test_a_key_leaves_as_much_space_as_it_takes(
    small: Callable[[int], TestClient],
    settings: ServiceSettings,
    make: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    make()
    (path,) = iter_link_files(settings)
    client = small(int(4.5 * path.stat().st_size))
    path.unlink()
    ada, bob = make_key_header(tmp_path), make_key_header(tmp_path, "bob")
    statuses = [client.post("/links", json={"request": REQUEST}, headers=ada).status_code for _ in range(3)]
    assert statuses == [201, 201, 507]
    assert client.post("/links", json={"request": REQUEST}, headers=bob).status_code == 201


def test_links_that_have_ended_and_what_killed_processes_left_make_room(
    make: Callable[..., dict[str, Any]], settings: ServiceSettings
) -> None:
    make()
    (path,) = iter_link_files(settings)
    ended = shutil.copy(path, path.with_name("0" * 40 + ".json"))
    left = path.with_name(f".{path.name}.abc.tmp")
    left.write_bytes(b"half")
    make()
    assert not Path(ended).exists() and not left.exists()
    assert len(iter_link_files(settings)) == 2


def test_a_link_fits_the_schema_of_the_client(
    client: TestClient, make: Callable[..., dict[str, Any]]
) -> None:
    link = Link.model_validate(make())
    assert client.post("/attribute", json=link.request).status_code == 200


def test_an_answer_loses_what_is_taken_down_before_it_is_kept(
    client: TestClient, broker: FakeBroker, news: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/attribute", json=REQUEST)
    record_takedown(news, "doc-0", lambda: 1)
    link = client.post("/links", json={"request": REQUEST}).json()
    assert ids_of(link) == ["doc-1", "doc-2"]
