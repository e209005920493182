"""Which indexes and models a worker has in memory, over a fake core."""

from pathlib import Path

import pytest

from bergson_core.errors import IndexCorrupt, IndexNotFound
from tests.worker.fakes import FakeCore, FakeIndex, make_spec, publish_index
from worker.process.index_cache import IndexCache


def get(cache: IndexCache, name: str) -> FakeIndex:
    index = cache.get(name)
    assert isinstance(index, FakeIndex)
    return index


def test_an_index_is_opened_once(core: FakeCore, tmp_path: Path):
    publish_index(tmp_path / "facts")
    cache = IndexCache(tmp_path, 2)
    assert cache.get("facts") is cache.get("facts")
    assert core.opened == ["facts"]


def test_a_new_generation_is_opened(core: FakeCore, tmp_path: Path):
    publish_index(tmp_path / "facts", generation=1)
    cache = IndexCache(tmp_path, 2)
    assert get(cache, "facts").manifest.generation == 1
    publish_index(tmp_path / "facts", generation=2)
    assert get(cache, "facts").manifest.generation == 2
    assert cache.names == ["facts"]


def test_a_deleted_index_is_closed(core: FakeCore, tmp_path: Path):
    publish_index(tmp_path / "facts")
    cache = IndexCache(tmp_path, 2)
    cache.get("facts")
    (tmp_path / "facts" / "manifest.json").unlink()
    with pytest.raises(IndexNotFound, match="facts"):
        cache.get("facts")
    assert cache.names == []


def test_models_in_memory_are_listed_with_the_indexes_that_use_them(core: FakeCore, tmp_path: Path):
    cache = IndexCache(tmp_path, 2)
    assert cache.models == []
    for name in ("a", "b"):
        publish_index(tmp_path / name)
        cache.get(name)
    (model,) = cache.models
    assert (model.model, model.dtype, model.parameters, model.indexes) == (
        "tiny",
        "float32",
        1000,
        ["a", "b"],
    )


def test_the_least_recently_used_index_makes_room(core: FakeCore, tmp_path: Path):
    for name in ("a", "b", "c"):
        publish_index(tmp_path / name)
    cache = IndexCache(tmp_path, 2)
    for name in ("a", "b", "a", "c"):
        cache.get(name)
    assert cache.names == ["a", "c"]


def test_two_indexes_of_the_same_model_share_it(core: FakeCore, tmp_path: Path):
    for name in ("a", "b"):
        publish_index(tmp_path / name)
    publish_index(tmp_path / "bf16", make_spec(dtype="bfloat16"))
    cache = IndexCache(tmp_path, 3)
    assert get(cache, "a").model is get(cache, "b").model
    assert get(cache, "bf16").model != get(cache, "a").model
    assert core.loaded == [("tiny", None, "float32"), ("tiny", None, "bfloat16")]


def test_a_model_is_freed_with_the_last_index_that_uses_it(core: FakeCore, tmp_path: Path):
    publish_index(tmp_path / "a")
    publish_index(tmp_path / "other", make_spec(model="another"))
    cache = IndexCache(tmp_path, 1)
    for name in ("a", "other", "a"):
        cache.get(name)
    assert [name for name, _, _ in core.loaded] == ["tiny", "another", "tiny"]


def test_a_model_that_changed_under_its_name_is_another_model(core: FakeCore, tmp_path: Path):
    publish_index(tmp_path / "old", model="a" * 64)
    publish_index(tmp_path / "new", model="b" * 64)
    cache = IndexCache(tmp_path, 2)
    assert get(cache, "old").model != get(cache, "new").model


def test_an_index_that_cannot_be_opened_takes_no_place(core: FakeCore, tmp_path: Path):
    publish_index(tmp_path / "good")
    publish_index(tmp_path / "bad")
    (tmp_path / "bad" / "manifest.json").write_text("{}")
    cache = IndexCache(tmp_path, 2)
    cache.get("good")
    with pytest.raises(IndexCorrupt):
        cache.get("bad")
    assert cache.names == ["good"]
    assert core.loaded == [("tiny", None, "float32")]
