"""The way of a build and of a query over HTTP, and what happens when a worker is killed or a build is cancelled."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from bergson_core import build_index
from bergson_core.errors import (
    Cancelled,
    ColumnNotFound,
    IndexExists,
    IndexNotFound,
    InvalidInput,
    ModelNotFound,
    TooLong,
)
from bergson_core.indexing.shard_builder import MAX_SHARD_ROWS
from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.manifest import read_manifest
from service.cli import app
from service.client import Client
from tests import tiny
from tests.e2e.helpers import build_request

pytestmark = pytest.mark.e2e


def test_an_index_is_built_and_queried_over_http_and_bad_input_is_named(start_service, sources):
    system = start_service()
    client = Client(system.url)
    client.build("facts", wait=True, **build_request(sources))
    detail = client.index("facts")
    assert (detail.state, detail.rows, detail.dimensions) == ("ready", 40, 128)

    texts = tiny.texts(40)
    answer = client.attribute("facts", texts[5][:1], texts[5][1:], top_k=40)
    assert answer.results[0].prompt == texts[5]
    assert answer.results[0].score == pytest.approx(1, abs=2e-3)
    assert answer.results[0].metadata == {"source": "wiki"}

    one_by_one = [client.attribute("facts", text[:6], text[6:], top_k=40) for text in texts[:12]]
    with ThreadPoolExecutor(12) as pool:
        at_once = list(
            pool.map(lambda text: client.attribute("facts", text[:6], text[6:], top_k=40), texts[:12])
        )
    for alone, batched in zip(one_by_one, at_once, strict=True):
        scores = {row.id: row.score for row in alone.results}
        assert {row.id: row.score for row in batched.results} == pytest.approx(scores, abs=1e-5)

    with pytest.raises(IndexNotFound):
        client.attribute("nothing", "a", " b")
    with pytest.raises(TooLong, match="64"):
        client.attribute("facts", "word " * 90, " b")
    with pytest.raises(IndexExists):
        client.build("facts", **build_request(sources))
    with pytest.raises(InvalidInput, match="BERGSON_ALLOWED_ROOTS"):
        client.build("outside", wait=True, **build_request(sources, model="/etc"))
    with pytest.raises(ModelNotFound):
        client.build("no-model", wait=True, **build_request(sources, model=str(sources / "nothing")))
    with pytest.raises(ColumnNotFound, match="it has"):
        client.build("no-column", wait=True, **build_request(sources, columns={"prompt": "body"}))
    zero = build_request(sources, gradients={"projection_dim": 0})
    refused = httpx.post(f"{system.url}/index", json={"name": "x", **zero})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    assert [index.name for index in client.indexes()] == ["facts"]
    check_canary(system.url, sources, texts)


def check_canary(url: str, sources: Path, texts: list[str]) -> None:
    """Checks that a canary's figures are those of the service, and that one below its floor ends with status 1."""
    queries = sources / "queries.jsonl"
    rows = [{"prompt": text[:1], "completion": text[1:], "source": "wiki"} for text in texts[1:6:2]]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["canary", "facts", "--queries", str(queries), "--gold", "source", "--url", url]
    good = CliRunner().invoke(app, [*command, "--min_mrr", "0.3", "--min_recall", "1"])
    assert good.exit_code == 0, good.output
    metrics = httpx.get(f"{url}/metrics").text
    assert 'bergson_canary_recall_at_10{index="facts"} 1.0' in metrics
    assert 'bergson_canary_mrr{index="facts"} ' in metrics
    no_column = CliRunner().invoke(app, [*command, "--min_mrr", "1", "--gold", "number"])
    assert no_column.exit_code == 1
    rows = [row | {"source": "nowhere"} for row in rows]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert CliRunner().invoke(app, [*command, "--min_mrr", "0.1"]).exit_code == 1
    assert 'bergson_canary_mrr{index="facts"} 0.0' in httpx.get(f"{url}/metrics").text


def test_inline_documents_are_indexed_and_not_left_in_the_upload_directory(start_service, sources):
    client = Client(start_service().url)
    documents = [
        {"id": f"d{k}", "text": text, "kind": k} for k, text in enumerate(dict.fromkeys(tiny.texts(20)))
    ]
    request = build_request(sources, columns={"id": "id", "metadata": ["kind"]}, documents=documents)
    del request["dataset"]
    client.build("inline", wait=True, **request)
    answer = client.attribute("inline", documents[3]["text"][:1], documents[3]["text"][1:], top_k=1)
    assert (answer.results[0].id, answer.results[0].metadata) == ("d3", {"kind": 3})
    assert list((sources / "uploads").iterdir()) == []


def test_the_build_of_a_killed_worker_is_finished_by_another_with_the_same_rows(start_service, sources):
    rows = [{"id": f"d{k}", "text": text} for k, text in enumerate(tiny.texts(2 * MAX_SHARD_ROWS + 1000))]
    (sources / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = build_request(sources, dataset={"path": str(sources / "many.jsonl")}, columns={"id": "id"})
    client = Client(start_service(workers=2).url)
    job = client.build("facts", **request).job_id
    shard = sources / "indexes" / "facts" / "shards" / "00000" / "gradients.bin"
    deadline = time.monotonic() + 120
    while not shard.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (building,) = [worker for worker in client.workers() if worker.state == "building"]
    os.kill(building.pid, signal.SIGKILL)
    assert not (sources / "indexes" / "facts" / "manifest.json").exists()
    finished_at = shard.stat().st_mtime_ns

    record = client.wait(job)
    assert shard.stat().st_mtime_ns == finished_at, "a finished shard is not built again"
    assert (record.state, record.deliveries) == ("succeeded", 2)
    undisturbed = build_index(BuildSpec.model_validate(request), sources / "undisturbed")
    assert [shard.files for shard in read_manifest(sources / "indexes" / "facts").shards] == [
        shard.files for shard in undisturbed.shards
    ]


def test_a_cancelled_build_leaves_no_files_and_frees_its_name(start_service, sources):
    rows = [{"text": text} for text in tiny.texts(8000)]
    (sources / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    client = Client(start_service().url)
    request = build_request(sources, dataset={"path": str(sources / "many.jsonl")}, columns={})
    job = client.build("facts", **request).job_id
    while client.job(job).progress.stage != "gradients":
        time.sleep(0.05)
    client.cancel(job)
    with pytest.raises(Cancelled):
        client.wait(job)
    assert not (sources / "indexes" / "facts").exists()
    client.build("facts", wait=True, **build_request(sources))
    assert client.index("facts").rows == 40
