"""On a Ray cluster of two nodes, builds are byte-identical whatever dies, and searches answer as this process does."""

import copy
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from bergson_core import AttributionIndex, RayExecutor, build_index, take_down_document
from bergson_core.errors import Cancelled, ClusterUnavailable, IndexCorrupt, InvalidInput
from bergson_core.indexing.shard_building import build_shards
from bergson_core.integrations import ray_shard_builder
from tests.core.helpers import file_hashes, query

ROWS = 2
QUERIES = [
    query(partial=True, **fields)
    for fields in (
        {},
        {"direction": "opponents"},
        {"direction": "both", "top_k": 100},
        {"filter": {"source": "wiki"}},
        {"filter": {"number": {"gte": 38}}},
        {"filter": {"number": {"gte": 20, "not_in": [21, 25]}, "source": {"ne": "web"}}},
        {"top_k": 2, "direction": "both", "include": ["tokens", "modules"]},
        {"top_k": 5, "group_by": "near_duplicates", "direction": "both"},
        {"group_by": "source", "include": ["words"]},
        {"top_k": 5, "order": "words", "filter": {"source": "wiki"}},
        {"top_k": 5, "direction": "both", "order": "fused", "include": ["tokens", "words"]},
    )
]


@pytest.fixture(scope="module")
def local(spec, tmp_path_factory) -> Path:
    """The index of twenty shards that this process builds."""
    path = tmp_path_factory.mktemp("local") / "facts"
    build_index(spec, path, shard_rows=ROWS)
    return path


def kill_the_second_node(cluster: Cluster) -> None:
    """Kills the node and waits until its workers have ended, since they might finish the whole build before that."""
    (node,) = cluster.worker_nodes
    workers = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    psutil.wait_procs(workers)


def test_a_build_that_loses_a_node_in_the_middle_is_byte_identical(
    cluster, spec, local, tmp_path, monkeypatch, caplog
):
    seen = []

    class BothActors(ray_shard_builder._ActorPool):
        """Begins once both actors are ready: one alone might build all of these small shards before."""

        def _start_actors(self):
            super()._start_actors()
            while not seen and len(self._idle) < 2:
                for reference in ray.wait(list(self._running))[0]:
                    self._take_step(reference)

    def report(progress):
        if progress.stage == "gradients" and progress.done:
            seen.append(progress.done)
            if cluster.worker_nodes:
                kill_the_second_node(cluster)

    monkeypatch.setattr(ray_shard_builder, "_ActorPool", BothActors)
    try:
        build_index(spec, tmp_path / "facts", shard_rows=ROWS, executor=RayExecutor(), report=report)
        assert not cluster.worker_nodes
    finally:
        cluster.add_node(num_cpus=1)
    assert file_hashes(tmp_path / "facts") == file_hashes(local)
    assert "an actor was lost (shard " in caplog.text
    assert seen[-1] == 40
    assert list((tmp_path / "facts").rglob("*.tmp")) == []


# The following tests replace the actors by small ones, since those that load a model take seconds to start


def build_with(actor_class: type, monkeypatch, tmp_path, shards: int = 2, report=lambda progress: None):
    """Builds shards in actors of this class, which need not know this library."""
    spec = SimpleNamespace(device="cpu", directory=tmp_path)
    monkeypatch.setattr(ray_shard_builder, "ShardActor", actor_class)
    monkeypatch.setattr(ray_shard_builder.ShardBuilderSpec, "of", lambda builder: spec)
    tasks = [SimpleNamespace(name=f"{k:05d}", numbers=range(1), position=None) for k in range(shards)]
    documents = SimpleNamespace(read=list)
    return build_shards(
        SimpleNamespace(output=tmp_path), documents, tasks, report, lambda: None, RayExecutor()
    )


def test_an_error_of_an_actor_comes_out_as_itself(cluster, monkeypatch, tmp_path):
    class FailingActor:
        def __init__(self, spec):
            pass

        def open(self):
            raise InvalidInput("no such thing")

    with pytest.raises(InvalidInput, match=r"^no such thing$"):
        build_with(FailingActor, monkeypatch, tmp_path)


def test_a_shard_that_kills_its_actors_is_given_up(cluster, monkeypatch, tmp_path):
    seen = []

    class DyingActor:
        def __init__(self, spec):
            self.directory = spec.directory

        def open(self):
            pass

        def build(self, task, records):
            yield SimpleNamespace(documents=1, tokens=7, written=None)
            while not (self.directory / "seen").exists():
                time.sleep(0.01)
            os._exit(1)

    def report(progress):
        seen.append(progress.done)
        if progress.done:
            (tmp_path / "seen").touch()

    with pytest.raises(ClusterUnavailable, match="3 actors were lost, shard 00000"):
        build_with(DyingActor, monkeypatch, tmp_path, shards=1, report=report)
    first = seen.index(1)
    assert 0 in seen[first:], "what was lost is taken back"
    assert set(seen) == {0, 1}


def test_a_report_that_stops_the_build_ends_the_actors(cluster, monkeypatch, tmp_path):
    class EndlessActor:
        def __init__(self, spec):
            (spec.directory / f"{os.getpid()}.pid").touch()

        def open(self):
            pass

        def build(self, task, records):
            while True:
                time.sleep(0.05)
                yield SimpleNamespace(documents=0, tokens=0, written=None)

    def report(progress):
        if len(list(tmp_path.glob("*.pid"))) == 2:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        build_with(EndlessActor, monkeypatch, tmp_path, report=report)
    for path in tmp_path.glob("*.pid"):
        wait_for_the_end_of(int(path.stem))


def wait_for_the_end_of(process_id: int) -> None:
    while True:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


# Search


@pytest.fixture(scope="module")
def facts(local, tmp_path_factory) -> Path:
    """A copy of the index that may be changed, with a damaged shard."""
    path = shutil.copytree(local, tmp_path_factory.mktemp("searched") / "facts")
    (path / "shards" / "00003" / "gradients.bin").unlink()
    return path


@pytest.fixture(scope="module")
def on_ray(cluster, facts) -> AttributionIndex:
    return AttributionIndex.open(facts, executor=RayExecutor(), partial=True)


def assert_same_answers(one: AttributionIndex, other: AttributionIndex) -> None:
    for answer, expected in zip(one.attribute(QUERIES), other.attribute(QUERIES), strict=True):
        assert (answer.results, answer.opponents) == (expected.results, expected.opponents)


def test_actors_on_both_nodes_answer_as_this_process_does(on_ray, facts):
    assert [len(group.names) for group in on_ray.searcher._groups] == [10, 10]
    assert_same_answers(on_ray, AttributionIndex.open(facts, partial=True))


def test_a_filter_of_another_type_than_its_column_is_refused(on_ray, facts):
    old_manifest = on_ray.manifest.model_copy(
        update={"shards": [s.model_copy(update={"metadata_types": None}) for s in on_ray.manifest.shards]}
    )
    searcher = copy.copy(on_ray.searcher)
    searcher._manifest = old_manifest
    for metadata in (on_ray.searcher.metadata, searcher.metadata):
        with pytest.raises(InvalidInput, match="'number' holds integers"):
            metadata.require_valid({"number": "38"})


def test_damaged_shards_are_left_out_where_that_is_allowed(on_ray):
    assert list(on_ray.searcher.damaged) == ["00003"]
    refused, answer = on_ray.attribute([query(), query(partial=True, top_k=100)])
    assert isinstance(refused, IndexCorrupt)
    assert (answer.partial, len(answer.results)) == (True, 38)


def test_what_is_taken_down_is_hidden_at_once(on_ray, facts):
    taken_down = on_ray.attribute([query(partial=True)])[0].results[0].id
    take_down_document(facts, taken_down)
    assert taken_down not in {row.id for row in on_ray.attribute([query(partial=True, top_k=100)])[0].results}
    assert_same_answers(on_ray, AttributionIndex.open(facts, partial=True))


def test_an_actor_that_died_is_replaced(on_ray, facts):
    ray.kill(on_ray.searcher._groups[1].actor)
    assert_same_answers(on_ray, AttributionIndex.open(facts, partial=True))


def test_rows_can_be_read_where_actors_hold_them(on_ray, facts):
    assert [shard.entry.name for shard in on_ray.shards] == [f"{k:05d}" for k in range(20) if k != 3]
    assert sum(int(mask.sum()) if mask is not None else ROWS for mask in on_ray.visible()) < 40
