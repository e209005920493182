"""A document is read and taken down by its own id and by no other, whatever characters the id has."""

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, make_document_table, write_document_table
from service.settings import ServiceSettings
from tests.service.fake_broker import publish_manifest
from tests.service.helpers import require_problem

LATIN, COMBINED = "caf\u00e9", "cafe\u0301"
IDS = [
    "abc",
    "a/b",
    "/abc",
    "abc/",
    "a//b",
    "../abc",
    "100%",
    "a?b=c",
    "a#1",
    " abc ",
    " ",
    "a;b",
    "a+b",
    "\u202eabc",
    "😀" * 4096,
    "...",
    LATIN,
    COMBINED,
    "\ufffd",
    "x" * 4096,
]
OLD_IDS = ["abc\n", "a\nb", "\n", "\tabc", "abc\x00", "x" * 5000]
"""Ids that older releases accepted."""


@pytest.fixture
def news(settings: ServiceSettings) -> Path:
    """The directory of an index of documents with all of these ids."""
    spec = {"model": "tiny", "documents": [{"text": "a"}], "columns": {"id": "id"}}
    publish_manifest(settings.indexes_dir, "news", BuildSpec.model_validate(spec))
    shard = settings.indexes_dir / "news" / "shards" / "00000"
    shard.mkdir(parents=True)
    records = [Record(name, f"text of {name}", None, {}) for name in (*IDS, *OLD_IDS)]
    count = len(records)
    write_document_table(
        shard / DOCUMENT_TABLE_FILE, make_document_table(records, np.ones(count), [6] * count)
    )
    return settings.indexes_dir / "news"


def document_path(document_id: str) -> str:
    return f"/index/news/documents/{quote(document_id, safe='')}"


@pytest.mark.parametrize("document_id", [*IDS, *OLD_IDS])
def test_a_document_is_read_and_taken_down_by_its_id_alone(client: TestClient, news: Path, document_id: str):
    assert client.get(document_path(document_id)).json()["id"] == document_id
    assert client.delete(document_path(document_id)).status_code == 204
    require_problem(client.get(document_path(document_id)), 404, "document_not_found")
    for other in {*IDS, *OLD_IDS} - {document_id}:
        assert client.get(document_path(other)).json()["id"] == other


@pytest.mark.parametrize(
    "path", ["def%0A", "abc%0A%0A", "abc%0D", "abc%20", "%E2%80%A8abc", "ABC", "abc%00%00", "caf%C3%89"]
)
def test_an_id_that_no_document_has_is_not_found(client: TestClient, news: Path, path: str):
    for method in ("GET", "DELETE"):
        require_problem(client.request(method, f"/index/news/documents/{path}"), 404, "document_not_found")
    assert not (news / "takedowns.jsonl").exists()


@pytest.mark.parametrize("path", ["%FF", "abc%C3", "%ED%A0%80", "%C0%AF"])
def test_a_path_that_is_not_utf_8_is_refused(client: TestClient, news: Path, path: str):
    for method in ("GET", "DELETE"):
        require_problem(client.request(method, f"/index/news/documents/{path}"), 422, "invalid_input")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/index/news%0A", 422),
        ("DELETE", "/index/news%0A", 422),
        ("GET", "/index%0A", 404),
        ("POST", "/index/news/compact%0A", 404),
        ("GET", "/index/news%0A/documents/abc", 422),
        ("GET", "/jobs%0A", 404),
        ("GET", "/jobs/" + "0" * 32 + "%0A", 422),
        ("GET", "/jobs/" + "0" * 32 + "/events%0A", 404),
        ("GET", "/livez%0A", 404),
        ("GET", "/metrics%0A", 404),
    ],
)
def test_a_line_break_at_the_end_of_a_path_makes_another_path(
    client: TestClient, news: Path, method: str, path: str, status: int
):
    assert client.request(method, path).status_code == status
    assert (news / "manifest.json").exists()
