"""An index is appended to, loses documents and gets a profile over HTTP while queries are answered."""

import os
import signal
import time

import pytest

from bergson_core.errors import IdsExist, IndexNotFound, InvalidInput
from service.client import Client
from tests import tiny
from tests.e2e.helpers import build_request

pytestmark = pytest.mark.e2e


def result_ids(client: Client, **options) -> list[str]:
    answer = client.attribute("facts", "Person 3 lives", " in city 1.", top_k=60, **options)
    return [row.id for row in answer.results]


def test_an_index_is_appended_to_taken_down_from_compacted_and_profiled_while_it_answers(
    start_service, sources
):
    client = Client(start_service(workers=2).url)
    client.build("facts", wait=True, **build_request(sources))
    built = result_ids(client)
    assert len(built) == 40

    new = [{"id": f"new-{k}", "text": text, "source": "news"} for k, text in enumerate(tiny.texts(12))]
    job = client.append("facts", documents=new, wait=True)
    assert (job.state, job.kind) == ("succeeded", "append")
    assert client.index("facts").rows == 52
    assert set(result_ids(client)) == {*built, *(row["id"] for row in new)}
    assert len(result_ids(client, filter={"source": "news"})) == 12
    with pytest.raises(IdsExist) as refused:
        client.append("facts", documents=new[:2])
    assert (refused.value.status, refused.value.ids) == (409, ("new-0", "new-1"))

    unwanted = result_ids(client)[:3]
    assert client.document("facts", unwanted[0]).id == unwanted[0]
    for count, document_id in enumerate(unwanted, start=1):
        client.take_down("facts", document_id)
        assert not set(unwanted[:count]) & set(result_ids(client))
    killed, _ = client.workers()
    os.kill(killed.pid, signal.SIGKILL)
    assert len(result_ids(client)) == 49

    client.compact("facts", wait=True)
    detail = client.index("facts")
    assert (detail.rows, detail.taken_down, detail.compacted) == (49, 3, 3)
    assert len(result_ids(client)) == 49

    queries = [{"prompt": f"Person {k} works", "completion": f" for company {k % 3}."} for k in range(8)]
    profile = {"queries": queries, "mixing": 0.8}
    client.fit_profile("facts", "work", wait=True, **profile)
    assert client.index("facts").profiles == ["default", "work"]
    assert len(result_ids(client, profile="work")) == 49
    with pytest.raises(InvalidInput):
        client.fit_profile("facts", "work", wait=True, **profile)

    client.delete_index("facts")
    with pytest.raises(IndexNotFound):
        client.index("facts")
    deadline = time.monotonic() + 20
    while any(worker.resident for worker in client.workers()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
