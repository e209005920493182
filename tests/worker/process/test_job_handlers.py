import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from bergson_core.errors import Cancelled, IndexExists, InvalidInput, LeaseLost
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from tests.worker.fakes import FakeCore, publish, spec
from worker.messages import JOB_ADAPTER, BuildJob
from worker.process import job_handlers
from worker.process.index_cache import IndexCache
from worker.settings import Settings


def run(
    settings: Settings,
    of: BuildSpec,
    report: Callable[[Progress], None] = lambda progress: None,
    index: str = "facts",
) -> None:
    job = BuildJob(job_id="j-1", index=index, spec=of, request_id="r")
    job_handlers.run_build(job, settings, report, lambda: None)


def uploads(settings: Settings) -> list[Path]:
    return list(settings.uploads_dir.iterdir())


@pytest.fixture
def root(settings: Settings) -> Path:
    settings.data_dir.mkdir()
    return settings.data_dir


def test_inline_documents_are_read_from_a_file_that_is_gone_afterwards(core: FakeCore, settings: Settings):
    documents = ({"text": "é\nü", "n": 1}, {"text": "\ud800"})
    content = []
    core.during = lambda number: content.append(uploads(settings)[0].read_text())
    run(settings, spec(documents=documents))
    assert [json.loads(line) for line in content[0].splitlines()] == list(documents)
    built, directory = core.builds[0]
    assert directory == settings.data_dir / "indexes" / "facts"
    assert built.documents is None
    assert built.dataset is not None
    assert built.columns == spec().columns
    assert uploads(settings) == []


def test_the_same_documents_give_the_same_build(core: FakeCore, settings: Settings):
    run(settings, spec())
    (settings.indexes_dir / "facts" / "manifest.json").unlink()
    run(settings, spec())
    assert core.builds[0][0].fingerprint() == core.builds[1][0].fingerprint()


@pytest.mark.parametrize(
    ("error", "left"), [(InvalidInput("x"), 0), (Cancelled("x"), 0), (LeaseLost("x"), 1)]
)
def test_the_file_stays_only_where_another_worker_reads_it(
    core: FakeCore, settings: Settings, error: Exception, left: int
):
    def fail(number: int) -> None:
        raise error

    core.during = fail
    with pytest.raises(type(error)):
        run(settings, spec())
    assert len(uploads(settings)) == left


def test_the_setting_says_where_shards_are_made_and_searched(core: FakeCore, settings: Settings):
    on_ray = settings.model_copy(update={"executor": "ray"})
    run(on_ray, spec())
    IndexCache(on_ray.indexes_dir, 1, on_ray.executor).get("facts")
    run(settings, spec(), index="other")
    assert core.executors == ["ray", "ray", "local"]


def test_jobs_with_the_same_documents_do_not_share_a_file(core: FakeCore, settings: Settings):
    def nested(number: int) -> None:
        core.during = lambda number: None
        run(settings, spec(), index="other")
        assert len(uploads(settings)) == 1

    core.during = nested
    run(settings, spec())


def test_what_a_build_of_another_spec_left_is_replaced(core: FakeCore, settings: Settings):
    def stop(progress: Progress) -> None:
        raise Cancelled("x")

    with pytest.raises(Cancelled):
        run(settings, spec(), stop)
    run(settings, spec(model="another"))
    assert (settings.indexes_dir / "facts" / "manifest.json").exists()


def test_a_published_index_is_never_replaced(core: FakeCore, settings: Settings):
    directory = settings.indexes_dir / "facts"
    publish(directory)
    (directory / "building.json").write_text("of an older build")
    with pytest.raises(IndexExists):
        run(settings, spec(model="another"))
    assert not job_handlers.discard_unfinished(directory)
    assert (directory / "manifest.json").exists()


def test_only_an_unfinished_build_that_nobody_works_on_is_discarded(tmp_path: Path):
    assert not job_handlers.discard_unfinished(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("mine")
    assert not job_handlers.discard_unfinished(tmp_path)
    (tmp_path / "building.json").write_text("{}")
    with FileLock(tmp_path / ".lock"):
        assert not job_handlers.discard_unfinished(tmp_path)
    assert job_handlers.discard_unfinished(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    "name", ["gpt2", "EleutherAI/pythia-160m", "roneneldan/TinyStories-1M", "a.b/c_d-1", "missing/data.jsonl"]
)
def test_hub_ids_pass(root: Path, name: str):
    job_handlers.require_allowed_paths(spec(model=name), Settings(data_dir=root))
    job_handlers.require_allowed_paths(spec(documents=None, dataset={"path": name}), Settings(data_dir=root))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "{root}/../outside",
        "{root}/link",
        "{root}/link/below",
        "{root}-beside",
        "../outside",
        "./outside",
        "~/outside",
        "~nobody-of-that-name/x",
        "https://example.org/data.jsonl",
        "hf://datasets/a/b",
        "file:///etc/passwd",
        "a/b/c",
        "nul\0byte",
        "",
    ],
)
def test_paths_outside_of_the_allowed_roots_are_refused(root: Path, name: str):
    (root.parent / "outside").mkdir()
    (root / "link").symlink_to(root.parent / "outside")
    name = name.format(root=root)
    one = BuildSpec.model_construct(model=name, dataset=None)
    with pytest.raises(InvalidInput, match=r"model: "):
        job_handlers.require_allowed_paths(one, Settings(data_dir=root))
    two = spec(documents=None, dataset={"path": name or "x/"})
    with pytest.raises(InvalidInput, match=r"dataset\.path: "):
        job_handlers.require_allowed_paths(two, Settings(data_dir=root))
    three = spec(gradients={"optimizer_state": name or "x/"})
    with pytest.raises(InvalidInput, match=r"gradients\.optimizer_state: "):
        job_handlers.require_allowed_paths(three, Settings(data_dir=root))


@pytest.mark.parametrize("place", ["{root}/../outside", "{root}/indexes/secret", "{root}/mine/file"])
@pytest.mark.parametrize("at", ["file", "train", "train/data-00000-of-00001.arrow"])
def test_a_directory_links_to_nothing_that_is_not_allowed(root: Path, place: str, at: str):
    link = root / "mine" / at
    link.parent.mkdir(parents=True)
    link.symlink_to(place.format(root=root))
    of_dataset = spec(documents=None, dataset={"path": str(root / "mine")})
    of_optimizer = spec(gradients={"optimizer_state": str(root / "mine")})
    for one in (spec(model=str(root / "mine")), of_dataset, of_optimizer):
        if place.endswith("file") and at != "file":
            job_handlers.require_allowed_paths(one, Settings(data_dir=root))
        else:
            with pytest.raises(InvalidInput, match=f"expected .*; got '{link}'"):
                job_handlers.require_allowed_paths(one, Settings(data_dir=root))


@pytest.mark.parametrize(
    "name",
    [
        "keys.json",
        "uploads/other.jsonl",
        "indexes/secret/takedowns.jsonl",
        "redis/appendonly.aof",
        "link/keys.json",
    ],
)
def test_what_the_service_keeps_is_no_dataset(root: Path, name: str):
    (root / "link").symlink_to(root)
    one = spec(documents=None, dataset={"path": str(root / name)})
    for settings in (Settings(data_dir=root), Settings(data_dir=root, allowed_roots=(root.parent,))):
        with pytest.raises(InvalidInput, match="outside of what the service itself keeps"):
            job_handlers.require_allowed_paths(one, settings)


@pytest.mark.parametrize(
    ("patterns", "name", "passes"),
    [
        ("EleutherAI/*,gpt2", "EleutherAI/pythia-160m", True),
        ("EleutherAI/*,gpt2", "gpt2", True),
        ("EleutherAI/*,gpt2", "evil/model", False),
        ("EleutherAI/*,gpt2", "eleutherai/pythia", False),
        ("", "gpt2", False),
    ],
)
def test_the_operator_says_which_hub_ids_pass(
    root: Path, monkeypatch: pytest.MonkeyPatch, patterns: str, name: str, passes: bool
):
    monkeypatch.setenv("BERGSON_ALLOWED_MODELS", patterns)
    monkeypatch.setenv("BERGSON_ALLOWED_DATASETS", patterns)
    settings = Settings(data_dir=root)
    for one in (spec(model=name), spec(model=str(root), documents=None, dataset={"path": name})):
        if passes:
            job_handlers.require_allowed_paths(one, settings)
        else:
            with pytest.raises(InvalidInput, match="BERGSON_ALLOWED_"):
                job_handlers.require_allowed_paths(one, settings)


def test_the_model_that_adapters_belong_to_must_be_allowed_too(root: Path):
    adapters = root / "adapters"
    adapters.mkdir()

    def of(base: str) -> None:
        config = {"peft_type": "LORA", "base_model_name_or_path": base}
        (adapters / "adapter_config.json").write_text(json.dumps(config))
        job_handlers.require_allowed_paths(spec(model=str(adapters)), Settings(data_dir=root))

    of(str(root / "model"))
    of("org/model")
    with pytest.raises(InvalidInput, match="the model of its adapters: expected a hub id or a path below"):
        of("/etc")


def test_an_optimizer_checkpoint_is_never_taken_from_the_hub(root: Path):
    with pytest.raises(InvalidInput, match="expected a path below"):
        job_handlers.require_allowed_paths(
            spec(gradients={"optimizer_state": "org/optimizer"}), Settings(data_dir=root)
        )
    job_handlers.require_allowed_paths(
        spec(gradients={"optimizer_state": str(root / "optimizer.pt")}), Settings(data_dir=root)
    )


def test_a_local_directory_with_the_name_of_a_hub_id_must_be_allowed_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    (root.parent / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(root.parent)
    with pytest.raises(InvalidInput, match="expected a hub id or a path below"):
        job_handlers.require_allowed_paths(spec(model="org/model"), Settings(data_dir=root))


def test_paths_below_an_allowed_root_pass(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "corpora").mkdir()
    (root / "link").symlink_to(root / "corpora")
    monkeypatch.chdir(root)
    for name in (str(root / "corpora" / "x.jsonl"), str(root / "link"), "./corpora", "corpora"):
        job_handlers.require_allowed_paths(spec(model=name), Settings(data_dir=root))


def test_a_root_that_is_a_link_allows_what_it_points_to(root: Path, tmp_path: Path):
    (tmp_path / "alias").symlink_to(root)
    settings = Settings(data_dir=root, allowed_roots=(tmp_path / "alias",))
    job_handlers.require_allowed_paths(spec(model=str(root / "model")), settings)


@pytest.mark.parametrize("kind", ["append", "profile"])
def test_a_change_with_a_forbidden_path_reads_nothing(settings: Settings, kind: str):
    publish(settings.indexes_dir / "facts")
    spec = {"dataset": {"path": "/etc/passwd"}} | ({"name": "law"} if kind == "profile" else {})
    job = JOB_ADAPTER.validate_python(
        {"kind": kind, "job_id": "j-1", "index": "facts", "request_id": "r", "spec": spec}
    )
    with pytest.raises(InvalidInput, match=r"dataset\.path: expected"):
        job_handlers.run_job(job, settings, lambda progress: None, lambda: None)


def test_what_a_stopped_change_left_in_a_published_index_is_removed_and_nothing_else(tmp_path: Path):
    publish(tmp_path)
    (tmp_path / "shards" / "00007").mkdir(parents=True)
    (tmp_path / "shards" / "00007" / "rows.arrow").write_text("half")
    (tmp_path / "takedowns.jsonl").write_text("")
    assert not job_handlers.discard_unfinished(tmp_path)
    assert not (tmp_path / "shards" / "00007").exists()
    assert {path.name for path in tmp_path.iterdir()} >= {"manifest.json", "takedowns.jsonl"}


def test_a_job_with_a_forbidden_path_builds_nothing(core: FakeCore, settings: Settings):
    with pytest.raises(InvalidInput):
        run(settings, spec(model="/etc"))
    assert core.builds == []
