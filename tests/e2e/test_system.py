"""The whole path over HTTP, and what happens when a worker is killed."""

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
from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.manifest import read_manifest
from service.cli import app
from service.client import Client
from tests import tiny
from tests.e2e.conftest import build_request

pytestmark = pytest.mark.e2e


def test_an_index_is_built_and_asked_over_http_and_bad_input_is_named(start, sources):
    system = start()
    api = Client(system.url)
    api.build("facts", wait=True, **build_request(sources))
    found = api.index("facts")
    assert (found.state, found.rows, found.dimensions) == ("ready", 40, 128)

    texts = tiny.texts(40)
    answer = api.attribute("facts", texts[5][:1], texts[5][1:], top_k=40)
    assert answer.results[0].prompt == texts[5]
    assert answer.results[0].score == pytest.approx(1, abs=2e-3)
    assert answer.results[0].metadata == {"source": "wiki"}

    alone = [api.attribute("facts", text[:6], text[6:], top_k=40) for text in texts[:12]]
    with ThreadPoolExecutor(12) as pool:
        together = list(
            pool.map(lambda text: api.attribute("facts", text[:6], text[6:], top_k=40), texts[:12])
        )
    for one, batched in zip(alone, together, strict=True):
        scores = {row.id: row.score for row in one.results}
        assert {row.id: row.score for row in batched.results} == pytest.approx(scores, abs=1e-5)

    with pytest.raises(IndexNotFound):
        api.attribute("nothing", "a", " b")
    with pytest.raises(TooLong, match="64"):
        api.attribute("facts", "word " * 90, " b")
    with pytest.raises(IndexExists):
        api.build("facts", **build_request(sources))
    with pytest.raises(InvalidInput, match="BERGSON_ALLOWED_ROOTS"):
        api.build("outside", wait=True, **build_request(sources, model="/etc"))
    with pytest.raises(ModelNotFound):
        api.build("no-model", wait=True, **build_request(sources, model=str(sources / "nothing")))
    with pytest.raises(ColumnNotFound, match="it has"):
        api.build("no-column", wait=True, **build_request(sources, columns={"prompt": "body"}))
    zero = build_request(sources, gradients={"projection_dim": 0})
    bad = httpx.post(f"{system.url}/index", json={"name": "x", **zero})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_input")
    assert [index.name for index in api.indexes()] == ["facts"]
    check_canary(system.url, sources, texts)


def check_canary(url: str, sources: Path, texts: list[str]) -> None:
    """Its figures are those of the service that it asks, and a floor that they are below ends with status 1."""
    queries = sources / "queries.jsonl"
    rows = [{"prompt": one[:1], "completion": one[1:], "source": "wiki"} for one in texts[1:6:2]]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["canary", "facts", "--queries", str(queries), "--gold", "source", "--url", url]
    good = CliRunner().invoke(app, [*command, "--min_mrr", "0.3", "--min_recall", "1"])
    assert good.exit_code == 0, good.output
    shown = httpx.get(f"{url}/metrics").text
    assert 'bergson_canary_recall_at_10{index="facts"} 1.0' in shown
    assert 'bergson_canary_mrr{index="facts"} ' in shown
    absent = CliRunner().invoke(app, [*command, "--min_mrr", "1", "--gold", "number"], catch_exceptions=True)
    assert absent.exit_code == 1
    rows = [row | {"source": "nowhere"} for row in rows]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert CliRunner().invoke(app, [*command, "--min_mrr", "0.1"]).exit_code == 1
    assert 'bergson_canary_mrr{index="facts"} 0.0' in httpx.get(f"{url}/metrics").text


def test_inline_documents_are_indexed(start, sources):
    api = Client(start().url)
    documents = [
        {"id": f"d{k}", "text": text, "kind": k} for k, text in enumerate(dict.fromkeys(tiny.texts(20)))
    ]
    request = build_request(sources, columns={"id": "id", "metadata": ["kind"]}, documents=documents)
    del request["dataset"]
    api.build("inline", wait=True, **request)
    answer = api.attribute("inline", documents[3]["text"][:1], documents[3]["text"][1:], top_k=1)
    assert (answer.results[0].id, answer.results[0].metadata) == ("d3", {"kind": 3})
    assert list((sources / "uploads").iterdir()) == []


def test_a_killed_workers_build_is_finished_by_the_next_with_the_same_rows(start, sources):
    rows = [{"id": f"d{k}", "text": text} for k, text in enumerate(tiny.texts(20_000))]
    (sources / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = build_request(sources, dataset={"path": str(sources / "many.jsonl")}, columns={"id": "id"})
    system = start(workers=2)
    api = Client(system.url)
    job = api.build("facts", **request).job_id
    shard = sources / "indexes" / "facts" / "shards" / "00001" / "gradients.bin"
    deadline = time.monotonic() + 120
    while not shard.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    (first,) = [beat for beat in api.workers() if beat.state == "building"]
    os.kill(first.pid, signal.SIGKILL)
    assert not (sources / "indexes" / "facts" / "manifest.json").exists()
    kept = shard.stat().st_mtime_ns

    record = api.wait(job)
    assert shard.stat().st_mtime_ns == kept  # what was finished was not done again
    assert (record.state, record.deliveries) == ("succeeded", 2)
    spec = BuildSpec.model_validate(request)
    undisturbed = build_index(spec, sources / "undisturbed")
    assert [shard.files for shard in read_manifest(sources / "indexes" / "facts").shards] == [
        shard.files for shard in undisturbed.shards
    ]


def test_a_cancelled_build_leaves_nothing_and_frees_its_name(start, sources):
    rows = [{"text": text} for text in tiny.texts(20_000)]
    (sources / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    system = start()
    api = Client(system.url)
    request = build_request(sources, dataset={"path": str(sources / "many.jsonl")}, columns={})
    job = api.build("facts", **request).job_id
    while api.job(job).progress.stage != "gradients":
        time.sleep(0.05)
    api.cancel(job)
    with pytest.raises(Cancelled):
        api.wait(job)
    assert not (sources / "indexes" / "facts").exists()
    api.build("facts", wait=True, **build_request(sources))
    assert api.index("facts").rows == 40
