"""What can be tested of Ray without a cluster: who uses it, what is checked, how results are merged."""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from bergson_core import RayExecutor, append_documents, build_index
from bergson_core.errors import ClusterUnavailable, InvalidInput
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep
from bergson_core.integrations import ray_cluster, ray_shard_builder
from bergson_core.integrations.ray_searcher import merge_results, split_shards
from bergson_core.integrations.ray_shard_actor import ShardBuilderSpec, merge_steps
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.documents import Chunk
from bergson_core.schemas.results import ResultRow
from bergson_core.search.searcher import Hit, SearchRequest, SearchResult
from bergson_core.shards.codecs import CODECS
from bergson_core.shards.row_encoder import open_row_encoder
from bergson_core.shards.shard_writer import WrittenShard
from bergson_core.storage.manifest import ShardEntry, read_manifest
from service.cli import app

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster of other tests may still be there."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_without_ray_all_else_works_and_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from bergson_core import BuildSpec, RayExecutor, build_index\n"
        "from bergson_core.errors import ClusterUnavailable\n"
        "spec = BuildSpec(model='m', documents=[{'text': 'a'}])\n"
        "try: build_index(spec, 'nowhere', executor=RayExecutor())\n"
        "except ClusterUnavailable as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "pip install 'bergson-service[ray]'" in process.stdout
    assert not Path("nowhere").exists()


def test_a_cluster_that_does_not_answer_is_an_error_of_ours(monkeypatch):
    def init(**options):
        raise ConnectionError("nobody")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterUnavailable, match=r"10\.0\.0\.1:6379: nobody"):
        ray_cluster.connect()


def test_rays_processes_do_not_import_from_the_working_directory(monkeypatch, tmp_path):
    directories = []
    monkeypatch.setattr(ray, "init", lambda **_: directories.append(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    ray_cluster.connect()  # Ray has its processes import from what is the working directory meanwhile.
    assert directories == [REPOSITORY]
    assert Path.cwd() == tmp_path


def test_connecting_leaves_the_handler_of_sigterm_alone(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", lambda **options: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    ray_cluster.connect()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("resources", "device", "expected"),
    [({"CPU": 8}, "cpu", 8), ({"CPU": 8, "GPU": 2}, "cuda", 2), ({"CPU": 8}, "cuda", 0), ({}, "cpu", 0)],
)
def test_a_slot_is_a_gpu_or_the_cpus_that_a_process_uses_here(monkeypatch, resources, device, expected):
    gone = {"Alive": False, "NodeID": "b", "Resources": {"CPU": 4, "GPU": 4}}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": "a", "Resources": resources}, gone])
    monkeypatch.setattr(ray_cluster.torch, "get_num_threads", lambda: 1)
    assert ray_cluster.slots_by_node(device) == {"a": expected}


@pytest.mark.parametrize(
    ("resources", "device", "match"),
    [
        ({"CPU": 8, "GPU": 8}, "cpu", "this process has none"),
        ({"CPU": 8}, "cuda", "nothing to run on"),
        ({}, "cpu", "nothing to run on"),
    ],
)
def test_a_cluster_of_another_kind_than_this_process_is_refused(monkeypatch, resources, device, match):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": "a", "Resources": resources}])
    with pytest.raises(ClusterUnavailable, match=match):
        ray_shard_builder._require_slots(device)


@pytest.fixture
def built_here(monkeypatch) -> list[str]:
    """The names of the shards that would have been built on a cluster, and are built in this process."""
    names = []

    def build(builder, documents, tasks):
        names.extend(task.name for task in tasks)
        for task in tasks:
            yield from builder.build(task, documents.read(task.numbers))

    monkeypatch.setattr(ray_shard_builder, "build_shards_on_cluster", build)
    monkeypatch.setattr(ray_cluster, "connect", lambda: None)
    return names


def test_builds_and_appends_run_on_the_executor_that_is_named(built_here, spec, tmp_path):
    build_index(spec, tmp_path / "facts", shard_rows=20, executor=RayExecutor())
    assert built_here == ["00000", "00001"]
    more = AppendSpec(documents=({"id": "new", "text": "Person 3", "source": "x", "number": 1},))
    append_documents(tmp_path / "facts", more, executor=RayExecutor())
    assert built_here == ["00000", "00001", "00002"]
    assert read_manifest(tmp_path / "facts").rows == 41


def test_the_command_line_takes_an_executor(built_here, sources, tmp_path):
    paths = ("--model", str(sources / "model"), "--dataset", str(sources / "documents.jsonl"))
    options = ("--projection_dim", "4", "--executor", "ray")
    result = CliRunner().invoke(app, ["build", str(tmp_path / "facts"), *paths, *options])
    assert result.exit_code == 0, result.output
    append = ["append", str(tmp_path / "facts"), "--dataset", str(sources / "documents.jsonl")]
    result = CliRunner().invoke(app, [*append, "--executor", "ray"])
    assert result.exit_code == 0, result.output
    assert built_here == ["00000", "00001"]


@pytest.fixture
def builder_spec(spec, index) -> ShardBuilderSpec:
    model = load_model(spec.model)
    return ShardBuilderSpec.of(
        ShardBuilder(index, spec, model, open_row_encoder(spec, index, model), 4096, False)
    )


def test_a_machine_that_sees_the_same_files_makes_the_same_rows(builder_spec, index):
    spec = builder_spec.spec
    expected = open_row_encoder(spec, index, load_model(spec.model))
    assert builder_spec.open().encoder.shape == expected.shape


def test_a_machine_that_sees_another_directory_is_an_error(builder_spec, tmp_path):
    with pytest.raises(InvalidInput, match="all machines of the cluster share"):
        replace(builder_spec, output=tmp_path).open()
    with pytest.raises(InvalidInput, match="all machines of the cluster share"):
        replace(builder_spec, statistics_stamp=b"of another build").open()


def test_a_machine_that_sees_another_model_is_an_error(builder_spec):
    with pytest.raises(InvalidInput, match="the files of the model"):
        replace(builder_spec, model_sha256="0" * 64).open()


def test_the_steps_of_a_shard_are_added_up_but_for_the_last_one(index):
    last = ShardStep(written=WrittenShard(read_manifest(index).shards[0], index), skipped_ids=("a",))
    assert list(merge_steps([ShardStep(2, 20), ShardStep(3, 30), last])) == [ShardStep(5, 50), last]


def shard(name: str, first_row: int, rows: int) -> ShardEntry:
    return ShardEntry(name=name, first_row=first_row, rows=rows, tokens=1, skipped=0, source="", files=())


def test_shards_are_split_into_runs_of_about_as_many_rows():
    shards = [shard("a", 0, 10), shard("b", 10, 10), shard("c", 20, 20), shard("d", 40, 40)]
    assert split_shards(shards, 1) == [["a", "b", "c", "d"]]
    assert split_shards(shards, 2) == [["a", "b", "c"], ["d"]]
    assert split_shards(shards, 4) == [["a", "b"], ["c"], ["d"]]
    assert split_shards(shards, 100) == [["a"], ["b"], ["c"], ["d"]]


def test_the_guide_states_the_bytes_of_a_row():
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    table = re.findall(r"^\| [0-9]+ [MB] \| ([\d,]+) \| [\d,]+ \| ([\d,]+) \|$", text, re.MULTILINE)
    expected = [
        (f"{CODECS['float16'].row_bytes(modules, 16**2):,}", f"{CODECS['sign'].row_bytes(modules, 32**2):,}")
        for modules in (48, 112, 224)
    ]
    assert table == expected


def hit(name: str, score: float) -> Hit:
    return Hit(ResultRow(rank=1, id=name, score=score, loss=None))


def test_the_best_of_all_runs_are_kept_and_of_equal_scores_the_earlier():
    request = SearchRequest(top_k=3, direction="both", include=(), profile="default", filter=None)
    results = [
        SearchResult(
            [hit("a", 0.5), hit("b", 0.1)], [hit("b", 0.1), hit("a", 0.5)], np.array([0.5], np.float32)
        ),
        SearchResult(
            [hit("c", 0.9), hit("d", 0.5)], [hit("d", 0.5), hit("c", 0.9)], np.array([0.2], np.float32)
        ),
    ]
    best = merge_results(results, request)
    assert [(hit.row.rank, hit.row.id) for hit in best.proponents] == [(1, "c"), (2, "a"), (3, "d")]
    assert [hit.row.id for hit in best.opponents] == ["b", "a", "d"]
    assert best.background_scores.tolist() == pytest.approx([0.5, 0.2])
    assert merge_results(results, replace(request, direction="opponents")).proponents is None


def test_merged_results_have_each_document_once_where_they_are_grouped():
    def chunk(number: int, document: str, score: float) -> Hit:
        part = Chunk(document=document, start=0, end=1, count=9)
        return Hit(ResultRow(rank=1, id=f"{document}#{number}", score=score, loss=1, chunk=part))

    nothing = np.empty(0, np.float32)
    results = [
        SearchResult([chunk(1, "a", 0.9), chunk(1, "b", 0.3)], None, nothing),
        SearchResult([chunk(2, "a", 0.8), chunk(2, "b", 0.4)], None, nothing),
    ]
    request = SearchRequest(5, "proponents", (), "default", None, group_by="document")
    best = merge_results(results, request).proponents
    assert best is not None
    assert [(hit.row.rank, hit.row.id) for hit in best] == [(1, "a#1"), (2, "b#2")]
