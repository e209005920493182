"""A job creates a behaviour once, however often it is started, and one that is cancelled leaves nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import BehaviourExists, Cancelled, InvalidInput
from bergson_core.schemas.results import Progress
from tests import tiny
from tests.core.helpers import make_spec
from worker.messages import JOB_ADAPTER, BehaviourJob
from worker.process.index_cache import IndexCache
from worker.process.job_handlers import run_job
from worker.settings import Settings

QUERIES = [{"prompt": f"Person {k} lives in", "completion": f" city {k % 3}."} for k in range(3)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny.save_model(tmp_path / "model")
    tiny.save_documents(tmp_path / "documents.jsonl")
    settings = Settings(data_dir=tmp_path / "data")
    build_index(make_spec(tmp_path), settings.indexes_dir / "facts")
    return settings


def make_job(job_id: str = "j-1", **changes: object) -> BehaviourJob:
    spec = {"name": "living", "queries": QUERIES} | changes
    fields = {"kind": "behaviour", "job_id": job_id, "index": "facts", "request_id": "r", "spec": spec}
    job = JOB_ADAPTER.validate_json(JOB_ADAPTER.dump_json(JOB_ADAPTER.validate_python(fields)))
    assert isinstance(job, BehaviourJob)
    return job


def run(job: BehaviourJob, settings: Settings, report: Callable[[Progress], None]) -> None:
    cache = IndexCache(settings.indexes_dir, capacity=1)
    assert run_job(job, settings, report, lambda: None, cache.get) is None


def test_a_job_that_is_started_again_creates_the_behaviour_once(settings: Settings) -> None:
    progress: list[Progress] = []
    for _ in range(2):
        run(make_job(), settings, progress.append)
    with pytest.raises(BehaviourExists):
        run(make_job("j-2"), settings, progress.append)
    index = AttributionIndex.open(settings.indexes_dir / "facts")
    assert index.behaviours.get("living").queries == QUERIES
    assert index.query(behaviour="living").results
    assert {each.unit for each in progress} == {"queries"}


def test_a_job_that_is_cancelled_or_wrong_leaves_nothing(settings: Settings) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "gradients":
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        run(make_job(), settings, stop)
    too_long = {"prompt": "a long text " * 90, "completion": " b"}
    with pytest.raises(InvalidInput, match=r"^queries\.3: "):
        run(make_job(queries=[*QUERIES, too_long]), settings, lambda _: None)
    assert not list((settings.indexes_dir / "facts" / "behaviours").glob("*"))
