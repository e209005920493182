"""A disk that is full, read-only or damaged: the answer is right, or an error says what is wrong; nothing is lost."""

import errno
import json
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from bergson_core import (
    AppendSpec,
    AttributionIndex,
    append_documents,
    build_index,
    compact_index,
    load_model,
    take_down_document,
)
from bergson_core.errors import (
    BergsonError,
    DiskFailed,
    DiskFull,
    DocumentNotFound,
    IndexCorrupt,
    IndexNotFound,
    InvalidInput,
    ReadOnly,
    Unavailable,
)
from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.deletion import delete_index
from bergson_core.storage.document_lookup import find_document
from bergson_core.storage.manifest import read_manifest
from bergson_core.storage.takedown_log import TakedownLog
from service.auth.api_keys import Caller, KeyFile
from service.indexes.canary_log import CanaryRun, append_run
from tests import tiny
from tests.core.helpers import document_ids, make_spec, query, result_ids
from tests.faults.support.disk_faults import DAMAGES, failing_call, flip_a_bit, kinds_of_files
from tests.faults.support.invariants import hash_index
from tests.faults.support.system import System, wait_for_end
from tests.processes import forkserver_context
from worker.settings import Settings

KINDS = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EROFS: ReadOnly,
    errno.EACCES: ReadOnly,
    errno.EIO: DiskFailed,
}
NEW = AppendSpec(
    documents=({"id": "new-1", "text": "Person 99 moved to Lima", "source": "wiki", "number": 1},)
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BuildSpec:
    root = tmp_path_factory.mktemp("sources")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl")
    return make_spec(root)


@pytest.fixture(scope="module")
def built(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three shards."""
    path = tmp_path_factory.mktemp("built") / "facts"
    build_index(spec, path, shard_rows=16)
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy of the index, in which two documents were taken down, and which was opened."""
    path = shutil.copytree(built, tmp_path / "facts")
    take_down_document(path, "doc-7")
    take_down_document(path, "doc-33")
    AttributionIndex.open(path)
    return path


@pytest.fixture(scope="module")
def open_index(spec: BuildSpec) -> Callable[[Path], AttributionIndex]:
    """Opens an index with a model that is loaded once."""
    model = load_model(spec.model)
    return lambda path: AttributionIndex.open(path, load_model=lambda *_, **__: model)


def read_all(path: Path, open_index: Callable[[Path], AttributionIndex]) -> Any:
    """Returns what the index says of two queries and of a document."""
    answers = open_index(path).attribute([query(top_k=40), query(top_k=5, direction="opponents")])
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    told = [
        [(row.id, row.score, row.prompt) for row in answer.results or answer.opponents or ()]
        for answer in answers
        if not isinstance(answer, Exception)
    ]
    return told, find_document(path, "doc-20")


def test_a_damaged_file_of_any_kind_is_named_or_changes_no_answer(
    index: Path,
    tmp_path: Path,
    open_index: Callable[[Path], AttributionIndex],
    seeded: random.Random,
    long_form: bool,
):
    expected = read_all(index, open_index)
    kinds = kinds_of_files(index)
    assert {"manifest.json", "takedowns.jsonl", "takedowns.head.json", "shards/N/rows.arrow"} <= kinds.keys()
    refused = set()
    for kind, paths in kinds.items():
        for damage in DAMAGES:
            for _ in range(10 if long_form and damage is not DAMAGES[-1] else 1):
                copy = shutil.copytree(index, tmp_path / "damaged")
                damage(copy / seeded.choice(paths).relative_to(index), seeded)
                try:
                    assert read_all(copy, open_index) == expected, (kind, damage)
                except (IndexCorrupt, IndexNotFound):
                    refused.add(kind)
                shutil.rmtree(copy)
    assert refused == kinds.keys() - {".checked.json", "shards/N/shard.json"} - {
        kind for kind in kinds if kind.endswith("second_moment.safetensors")
    }


def test_a_damaged_index_is_neither_compacted_nor_appended_to(
    index: Path, tmp_path: Path, seeded: random.Random, long_form: bool
):
    paths = [f"shards/00000/{name}" for name in ("gradients.bin", "rows.arrow")]
    paths += ["takedowns.jsonl", "takedowns.head.json", "statistics/normalizers.safetensors"]
    for name in paths if long_form else seeded.sample(paths, 2):
        for change in (compact_index, lambda path: append_documents(path, NEW)):
            copy = shutil.copytree(index, tmp_path / "damaged")
            before = read_manifest(copy)
            flip_a_bit(copy / name, seeded)
            with pytest.raises(IndexCorrupt):
                change(copy)
            assert read_manifest(copy) == before
            shutil.rmtree(copy)


@pytest.mark.parametrize("version", [0, 6, 8, 99, "8", None])
def test_a_manifest_of_another_version_is_refused_with_its_version(index: Path, version: Any):
    path = index / "manifest.json"
    path.write_text(
        path.read_text().replace('"format_version": 7', f'"format_version": {json.dumps(version)}')
    )
    with pytest.raises(IndexCorrupt, match=rf"format version {version!r}; this release reads version 7"):
        read_manifest(index)


def test_a_manifest_with_a_field_of_a_later_release_is_refused_with_its_name(index: Path):
    path = index / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(IndexCorrupt, match="that this release reads: colour"):
        read_manifest(index)


def kill_at(number: int, call: Callable[[], Any]) -> bool:
    """Calls a function in a process that ends, as by kill -9, before line `number` of the code that writes.

    Returns:
        Whether the process came so far.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    remaining = number

    def trace(frame: FrameType, event: str, _value: Any) -> Any:
        nonlocal remaining
        if not frame.f_code.co_filename.endswith(("takedown_log.py", "atomic_files.py")):
            return None
        if event == "line":
            remaining -= 1
            if remaining < 0:
                os._exit(9)
        return trace

    sys.settrace(trace)
    call()
    os._exit(0)


def read_ids(root: Path) -> list[str]:
    return [line["id"] for line in TakedownLog(root).read_new_lines()]


@pytest.mark.parametrize("is_old", [False, True])
def test_a_process_may_be_killed_at_any_line_of_a_takedown(
    index: Path, tmp_path: Path, seeded: random.Random, long_form: bool, is_old: bool
):
    if is_old:  # as release 0.1.0 has written it
        lines = [
            json.dumps({"id": name, "generation": 1, "at": "2026-01-01"}) for name in ("doc-7", "doc-33")
        ]
        (index / "takedowns.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (index / "takedowns.head.json").unlink()
        manifest = json.loads((index / "manifest.json").read_text())
        (index / "manifest.json").write_text(json.dumps(manifest | {"takedowns": None}))
    number = 0
    while True:
        copy = shutil.copytree(index, tmp_path / "killed")
        was_killed = kill_at(number, lambda copy=copy: take_down_document(copy, "doc-8"))
        ids = read_ids(copy)
        assert ids in (["doc-7", "doc-33"], ["doc-7", "doc-33", "doc-8"])
        assert was_killed or len(ids) == 3
        take_down_document(copy, "doc-9")
        assert read_ids(copy) == [*ids, "doc-9"]
        shutil.rmtree(copy)
        if not was_killed:
            break
        number += 1 if long_form else seeded.randrange(1, 60)


def changes_of(index: Path, data_dir: Path) -> dict[str, Callable[[], Any]]:
    """Returns calls that write, by name."""
    run = CanaryRun(
        index="facts",
        generation=1,
        at=0,
        queries=1,
        mrr=None,
        recall_at_10=None,
        latency_p50_s=1,
        latency_p95_s=1,
    )
    return {
        "takedown": lambda: take_down_document(index, "doc-8"),
        "keys": lambda: KeyFile(data_dir).create(Caller(name="ada")),
        "canary": lambda: append_run(Settings(data_dir=data_dir), run),
        "delete": lambda: delete_index(index),
        "compact": lambda: compact_index(index),
    }


@pytest.mark.parametrize("name", ["takedown", "keys", "canary", "delete", "compact"])
def test_a_write_that_fails_is_named_and_can_be_repeated(
    index: Path,
    tmp_path: Path,
    open_index: Callable[[Path], AttributionIndex],
    seeded: random.Random,
    long_form: bool,
    name: str,
):
    for code in KINDS if long_form else seeded.sample(list(KINDS), 1):
        root = tmp_path / str(code)
        copy = shutil.copytree(index, root / "facts")
        change, number, outcomes = changes_of(copy, root / "data")[name], 0, list[str]()
        while True:
            with failing_call(root, number, code) as calls:
                try:
                    change()
                    outcomes.append("done")
                except KINDS[code] as error:
                    outcomes.append(type(error).__name__)
                except (DocumentNotFound, IndexNotFound, InvalidInput):
                    outcomes.append("done")  # by the call before, which failed when it was done already
            if len(calls) <= number or outcomes[-1] == "done":
                break
            if copy.exists():
                found = result_ids(open_index(copy))
                assert found <= document_ids(7, 33)
                assert found >= document_ids(7, 8, 33)
            number += 1 if long_form else seeded.randrange(4, 12)
        assert outcomes[0] == KINDS[code].__name__
        # The last call of all flushes a directory: what it fails to flush was done already.
        with suppress(DocumentNotFound, IndexNotFound, InvalidInput):
            change()


def test_an_index_in_a_directory_that_may_not_be_written_answers(
    index: Path, open_index: Callable[[Path], AttributionIndex], caplog: pytest.LogCaptureFixture
):
    (index / ".checked.json").unlink()
    expected = read_all(shutil.copytree(index, index.with_name("other")), open_index)
    with failing_call(index, 0, errno.EROFS) as calls:
        assert read_all(index, open_index) == expected
        assert read_all(index, open_index) == expected
    assert calls
    assert caplog.text.count("so that each process reads all files of the index") == 1


def build_with_little_room(room: int, spec: BuildSpec, path: Path, outcome: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        build_index(spec, path, shard_rows=16)
        outcome.put("")
    except BergsonError as error:
        outcome.put(error.code)


def test_a_build_on_a_full_disk_is_resumed_to_the_same_bytes(
    spec: BuildSpec, built: Path, tmp_path: Path, seeded: random.Random, long_form: bool
):
    sizes = sorted({path.stat().st_size for path in built.rglob("*")})
    for room in (
        [0, *(size - 1 for size in sizes if size)] if long_form else [0, *seeded.sample(sizes[2:], 1)]
    ):
        path, context = tmp_path / "facts", forkserver_context()
        outcome = context.Queue()
        process = context.Process(target=build_with_little_room, args=(max(room, 0), spec, path, outcome))
        process.start()
        assert outcome.get(timeout=120) in (DiskFull.code, "")
        process.join()
        build_index(spec, path, shard_rows=16)
        assert hash_index(path) == hash_index(built)
        shutil.rmtree(path)


def test_damaged_keys_let_nobody_in_and_none_opens_more(
    tmp_path: Path, seeded: random.Random, long_form: bool
):
    keys = KeyFile(tmp_path)
    token = keys.create(Caller(name="ada", scope="read", indexes=("facts",), text=False))
    expected = KeyFile(tmp_path).find(token)
    content = keys.path.read_bytes()
    for damage in DAMAGES:
        for _ in range(1000 if long_form else 50):
            damage(keys.path, seeded)
            with suppress(Unavailable):
                found = KeyFile(tmp_path).find(token)
                assert found is None or (found == expected and damage is flip_a_bit)
            keys.path.write_bytes(content)
    keys.path.unlink()
    assert KeyFile(tmp_path).read() == ()  # keys are needed, and there are none
    token = KeyFile(tmp_path).create(Caller(name="eve"))
    assert KeyFile(tmp_path).find(token)


def test_a_service_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    start_system: Callable[..., System],
):
    system = start_system(heartbeat_s=2)
    worker, _url = system.start_worker(), system.start_web()
    client = system.client()
    assert wait_for_end(client, client.build("facts", **system.build_body())).state == "succeeded"
    processes = [psutil.Process(process.pid) for process in (worker, system.web_processes[0])]
    documents = [{"id": "a", "text": "Ada was born in London"}, {"id": "b", "text": "Bob was born in Paris"}]
    inline = system.build_body(documents=documents, columns={"id": "id"}, dataset=None)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    with pytest.raises(DiskFull) as caught:
        client.take_down("facts", "doc-7")
    assert caught.value.status == 507
    failed = {
        name: wait_for_end(client, job)
        for name, job in {
            "inline": client.build("inline", **inline),
            "build": client.build("other", **system.build_body()),
            "append": client.append(
                "facts", documents=[{"id": "x", "text": "Cy was born", "source": "wiki"}]
            ),
        }.items()
    }
    assert {record.error and record.error.code for record in failed.values()} == {"disk_full"}
    assert client.document("facts", "doc-7").id == "doc-7"
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    client.take_down("facts", "doc-7")
    assert wait_for_end(client, client.build("inline", **inline)).state == "succeeded"
    answer = client.attribute("facts", "Ada was born in", " London", top_k=100)
    assert {row.id for row in answer.results or ()} == document_ids(7)
