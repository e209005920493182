"""The tool that previews unlearning queues a job of the service, waits for it, and cancels what takes too long."""

from typing import Any

import pytest

from bergson_core.schemas.unlearning.results import UnlearnPreview
from service.openapi import examples
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker
from tests.service.helpers import make_key_header
from tests.service.mcp.test_tools import call, error_of
from worker.messages import JobRecord, UnlearnJob

PREVIEW = UnlearnPreview.model_validate(examples.JOB_UNLEARNED["unlearning"])
QUERIES = examples.UNLEARN_FILTER["queries"]


@pytest.fixture
def finished(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job has succeeded as soon as it is queued."""
    submit = broker.submit

    async def submit_and_finish(*arguments: Any, **options: Any) -> JobRecord:
        record = await submit(*arguments, **options)
        return broker.put(record.model_copy(update={"state": "succeeded", "unlearning": PREVIEW}))

    monkeypatch.setattr(broker, "submit", submit_and_finish)


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("chosen", [{"ids": ["doc-0", "doc-1"]}, {"filter": {"source": ["wiki"]}}])
async def test_a_preview_is_queued_with_its_fields_and_its_result_returned(
    url: str, broker: FakeBroker, chosen: dict[str, Any]
) -> None:
    fields = {**chosen, "queries": QUERIES, "control": examples.UNLEARN_IDS["control"], "learning_rate": 0.01}
    result = await call(url, "preview_unlearning", index="news", **fields)
    assert UnlearnPreview.model_validate(result.structured_content) == PREVIEW
    (job,) = broker.submitted_jobs
    assert isinstance(job, UnlearnJob) and job.index == "news"
    assert job.spec.model_dump(mode="json", exclude_unset=True) == fields


async def test_a_preview_that_takes_too_long_is_cancelled(url: str, broker: FakeBroker) -> None:
    result = await call(
        url, "preview_unlearning", index="news", ids=["doc-0"], queries=QUERIES, timeout_s=0.3
    )
    assert "deadline_exceeded: the preview took longer than 0.3 s" in error_of(result)
    (record,) = broker.records.values()
    assert record.state == "cancelled"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expected either `ids` or `filter`, got neither"),
        ({"ids": ["doc-0"], "filter": {"source": ["wiki"]}}, "expected either `ids` or `filter`, got both"),
        ({"ids": ["doc-7"]}, "document_not_found"),
        ({"ids": ["doc-0"], "queries": []}, "queries"),
        ({"ids": ["doc-0"], "queries": [{"prompt": "a"}]}, "expected a completion"),
        ({"ids": ["doc-0"], "queries": [{"prompt": "a", "completion": "b", "top_k": 3}]}, "top_k"),
        ({"ids": ["doc-0"], "save": True}, "unknown argument 'save'"),
    ],
)
async def test_a_preview_that_cannot_be_made_is_an_error(
    url: str, broker: FakeBroker, changes: dict[str, Any], message: str
) -> None:
    result = await call(url, "preview_unlearning", **{"index": "news", "queries": QUERIES} | changes)
    assert message in error_of(result)
    assert not broker.submitted_jobs


async def test_a_key_that_may_only_read_gets_no_preview(
    url: str, settings: ServiceSettings, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = make_key_header(settings.data_dir)
    monkeypatch.setenv("BERGSON_API_KEY", header["Authorization"].removeprefix("Bearer "))
    result = await call(url, "preview_unlearning", index="news", ids=["doc-0"], queries=QUERIES)
    assert "forbidden: this call needs a key of scope write" in error_of(result)
    assert not broker.submitted_jobs
