"""An index that grows, forgets and is fitted to a task, over HTTP, while it is asked."""

import os
import signal
import time

import pytest

from bergson_core.errors import IdsExist, IndexNotFound, InvalidInput
from service.client import Client
from tests import tiny
from tests.e2e.conftest import build_request

pytestmark = pytest.mark.e2e


def ids(client: Client, **options) -> list[str]:
    answer = client.attribute("facts", "Person 3 lives", " in city 1.", top_k=60, **options)
    return [row.id for row in answer.results]


def test_an_index_grows_forgets_and_is_fitted_while_it_is_asked(start, sources):
    client = Client(start(workers=2).url)
    client.build("facts", wait=True, **build_request(sources))
    first = ids(client)
    assert len(first) == 40

    new = [{"id": f"new-{k}", "text": text, "source": "news"} for k, text in enumerate(tiny.texts(12))]
    job = client.append("facts", documents=new, wait=True)
    assert (job.state, job.kind) == ("succeeded", "append")
    assert client.index("facts").rows == 52
    assert set(ids(client)) == {*first, *(row["id"] for row in new)}
    assert len(ids(client, filter={"source": "news"})) == 12
    with pytest.raises(IdsExist) as refused:
        client.append("facts", documents=new[:2])
    assert (refused.value.status, refused.value.ids) == (409, ("new-0", "new-1"))

    gone = ids(client)[:3]
    assert client.document("facts", gone[0]).id == gone[0]
    for one in gone:
        client.take_down("facts", one)
        assert not set(gone[: gone.index(one) + 1]) & set(ids(client))
    one, _ = client.workers()
    os.kill(one.pid, signal.SIGKILL)
    assert len(ids(client)) == 49

    client.compact("facts", wait=True)
    found = client.index("facts")
    assert (found.rows, found.taken_down, found.compacted) == (49, 3, 3)
    assert len(ids(client)) == 49

    queries = [{"prompt": f"Person {k} works", "completion": f" for company {k % 3}."} for k in range(8)]
    profile = {"queries": queries, "mixing": 0.8}
    client.fit_profile("facts", "work", wait=True, **profile)
    assert client.index("facts").profiles == ["default", "work"]
    assert len(ids(client, profile="work")) == 49
    with pytest.raises(InvalidInput):
        client.fit_profile("facts", "work", wait=True, **profile)

    client.delete_index("facts")
    with pytest.raises(IndexNotFound):
        client.index("facts")
    end = time.monotonic() + 20
    while any(beat.resident for beat in client.workers()):
        assert time.monotonic() < end
        time.sleep(0.1)
