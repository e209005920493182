"""An index that grows, forgets and is fitted to a task, over HTTP, while it is asked."""

import os
import signal
import time

import httpx
import pytest

from service.cli.api import Api
from tests import tiny
from tests.e2e.conftest import build, build_request

pytestmark = pytest.mark.e2e


def follow(url: str, response: httpx.Response) -> dict:
    """The record of a job once it has ended."""
    assert response.status_code == 202, response.text
    place, end = url + response.headers["Location"], time.monotonic() + 120
    while (record := httpx.get(place).json())["finished_at"] is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    return record


def ids(api: Api, **options) -> list[str]:
    return [
        row.id for row in api.attribute("facts", "Person 3 lives", " in city 1.", top_k=60, **options).results
    ]


def test_an_index_grows_forgets_and_is_fitted_while_it_is_asked(start, sources):
    system = start(workers=2)
    api, index = Api(system.url), f"{system.url}/index/facts"
    build(api, "facts", build_request(sources))
    first = ids(api)
    assert len(first) == 40

    new = [{"id": f"new-{k}", "text": text, "source": "news"} for k, text in enumerate(tiny.texts(12))]
    job = follow(system.url, httpx.post(f"{index}/documents", json={"documents": new}))
    assert (job["state"], job["kind"]) == ("succeeded", "append")
    assert api.index("facts")["rows"] == 52
    assert set(ids(api)) == {*first, *(row["id"] for row in new)}
    assert len(ids(api, filter={"source": "news"})) == 12
    refused = httpx.post(f"{index}/documents", json={"documents": new[:2]})
    assert (refused.status_code, refused.json()["ids"]) == (409, ["new-0", "new-1"])

    gone = ids(api)[:3]
    assert httpx.get(f"{index}/documents/{gone[0]}").json()["id"] == gone[0]
    for one in gone:
        assert httpx.delete(f"{index}/documents/{one}").status_code == 204
        assert not set(gone[: gone.index(one) + 1]) & set(ids(api))
    one, _ = httpx.get(f"{system.url}/workers").json()["items"]
    os.kill(one["pid"], signal.SIGKILL)
    assert len(ids(api)) == 49

    job = follow(system.url, httpx.post(f"{index}/compact"))
    assert (job["state"], api.index("facts")["rows"]) == ("succeeded", 49)
    assert (api.index("facts")["taken_down"], api.index("facts")["compacted"]) == (3, 3)
    assert len(ids(api)) == 49

    queries = [{"prompt": f"Person {k} works", "completion": f" for company {k % 3}."} for k in range(8)]
    profile = {"name": "work", "queries": queries, "mixing": 0.8}
    assert follow(system.url, httpx.post(f"{index}/profiles", json=profile))["state"] == "succeeded"
    assert api.index("facts")["profiles"] == ["default", "work"]
    assert len(ids(api, profile="work")) == 49
    again = follow(system.url, httpx.post(f"{index}/profiles", json=profile))
    assert (again["state"], again["error"]["code"]) == ("failed", "invalid_input")

    assert httpx.delete(index).status_code == 204
    assert api.index("facts") is None
    end = time.monotonic() + 20
    while any(beat["resident"] for beat in httpx.get(f"{system.url}/workers").json()["items"]):
        assert time.monotonic() < end
        time.sleep(0.1)
