"""Whatever a job names as its model or dataset, nothing outside of the allowed directories is opened."""

import glob
import os
from pathlib import Path

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from bergson_core.data.dataset import load_dataset_spec
from bergson_core.data.files.paths import is_pattern
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import BuildSpec, DatasetSpec
from bergson_core.storage.locations import is_hub_id, is_local
from tests.faults.support.hostile_bodies import examples
from tests.faults.support.hostile_files import HOSTILE_PATHS, OpenedFiles, bounded_cost, outcome
from worker.process.path_checks import require_allowed_dataset, require_allowed_paths
from worker.settings import Settings

SEGMENTS = (
    *(
        "..",
        ".",
        "",
        "corpora",
        "link",
        "circle",
        "outside",
        "a.jsonl",
        "out.jsonl",
        "fifo.jsonl",
        "secret.jsonl",
    ),
    *(
        "*",
        "**",
        "?.jsonl",
        "[a-z]*",
        "[",
        "~",
        "~root",
        "\0",
        "\ud800",
        "x" * 300,
        "indexes",
        "facts",
        "keys.json",
    ),
    *("saved", "state.json", " ", "\n", "etc", "passwd", "dev", "zero"),
)
PREFIXES = (
    *(
        "",
        "",
        "/",
        "//",
        "~/",
        "./",
        "../",
        "file://",
        "hf://",
        "https://",
        "{root}/",
        "{root}/",
        "{root}/../",
    ),
    *("/proc/self/", "/proc/self/cwd/", "/proc/self/root", "/dev/fd/", "{root}//"),
)
PATHS = st.one_of(
    st.builds(
        lambda prefix, segments: prefix + "/".join(segments),
        st.sampled_from(PREFIXES),
        st.lists(st.sampled_from(SEGMENTS), max_size=5),
    ),
    st.sampled_from([*HOSTILE_PATHS, "/proc/self/environ", "a" * 5000, "a/b", "gpt2"]),
    st.text(max_size=20),
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An allowed directory with datasets, and with links to one beside it, which is not allowed."""
    root, outside = tmp_path / "data", tmp_path / "outside"
    for directory in (
        outside / "corpora",
        root / "corpora",
        root / "saved" / "train",
        root / "indexes" / "facts",
    ):
        directory.mkdir(parents=True)
    for path in (root / "corpora" / "a.jsonl", outside / "secret.jsonl", outside / "corpora" / "a.jsonl"):
        path.write_text('{"text": "a"}\n')
    for path in (root / "keys.json", root / "indexes" / "facts" / "a.jsonl", outside / "state.json"):
        path.write_text("{}")
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    (root / "out.jsonl").symlink_to(outside / "secret.jsonl")
    (root / "saved" / "state.json").write_text(
        '{"_data_files": [{"filename": "../../outside/secret.jsonl"}]}'
    )
    os.mkfifo(root / "corpora" / "fifo.jsonl")
    monkeypatch.chdir(outside)
    monkeypatch.setenv("HOME", str(outside))
    return root


def test_nothing_outside_of_the_allowed_directories_is_opened(root: Path, long_form: bool) -> None:
    settings = Settings(data_dir=root)
    watched = OpenedFiles(root.parent / "outside", root / "indexes")

    @seed(0)
    @examples(80, long_form)
    @given(PATHS.map(lambda path: path.replace("{root}", str(root))))
    def check(path: str) -> None:
        with bounded_cost(path):
            if passes_as_dataset(path, settings):
                require_inside(path, settings)
                if is_local(path):
                    attempt_to_load_dataset(path)
            if passes_as_model(path, settings):
                require_inside(path, settings, is_model=True)
                if is_local(path):
                    attempt_to_load_model(path)
        assert watched.names() == []

    try:
        check()
    finally:
        watched.close()


def passes_as_dataset(path: str, settings: Settings) -> bool:
    refusal = outcome(lambda: require_allowed_dataset(DatasetSpec(path=path), settings))
    assert refusal is None or isinstance(refusal, InvalidInput)
    assert refusal is None or "path" in str(refusal) or path in str(refusal), refusal
    return refusal is None


def passes_as_model(path: str, settings: Settings) -> bool:
    refusal = outcome(lambda: require_allowed_paths(model_spec(path), settings))
    assert refusal is None or (isinstance(refusal, InvalidInput) and "model" in str(refusal)), refusal
    optimizer = {"normalizer": "adam", "optimizer_state": path}
    outcome(lambda: require_allowed_paths(model_spec(str(settings.data_dir), gradients=optimizer), settings))
    return refusal is None


def model_spec(model: str, **fields: object) -> BuildSpec:
    return BuildSpec.model_validate({"model": model, "documents": [{"text": "a"}], **fields})


def require_inside(path: str, settings: Settings, is_model: bool = False) -> None:
    """Checks by other means that a path which is allowed is a hub id, or leads to an allowed place."""
    if is_hub_id(path) and not os.path.lexists(path):
        return
    expanded = os.path.expanduser(path)
    places = glob.glob(expanded, recursive=True) if is_pattern(path) and not is_model else [expanded]
    for place in places:
        real = os.path.realpath(place)
        assert os.path.commonpath([real, settings.data_dir.resolve()]) == str(settings.data_dir.resolve()), (
            path
        )
        assert not real.startswith((f"{settings.data_dir}/indexes", f"{settings.data_dir}/keys.json")), path


def attempt_to_load_dataset(path: str) -> None:
    outcome(lambda: load_dataset_spec(DatasetSpec(path=path), ("text",)))


def attempt_to_load_model(path: str) -> None:
    with pytest.raises(BergsonError):
        load_model(path)


def test_a_pattern_of_many_directories_at_any_depth_is_refused_at_once(root: Path) -> None:
    deep = root
    for _ in range(30):
        deep = deep / "d"
        (deep / "e").mkdir(parents=True)
    with bounded_cost("**"):
        assert not passes_as_dataset(f"{root}/d/**/**/none.jsonl", Settings(data_dir=root))
        for parts in (3, 10, 1000):
            with pytest.raises(InvalidInput, match=r"at most 2 parts \*\*"):
                DatasetSpec(path=f"{root}/d/" + "**/" * parts + "a.jsonl")
