"""The fingerprint of a model changes with every file that decides its weights or tokens, and with no other."""

import hashlib
import importlib
import inspect
import pkgutil
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from bergson_core import AppendSpec, AttributionIndex, append_documents, load_model, read_manifest
from bergson_core.errors import IndexCorrupt
from bergson_core.models import loading
from bergson_core.models.files.fingerprint import MODEL_FILE_PATTERNS, ModelFiles
from bergson_core.storage.manifest import MANIFEST_FILE
from tests import tiny

DECIDING_FILES = [
    *("config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
    *("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "encoder_vocab.json", "tekken.json", "tokenizer.4.0.0.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "qwen.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja"),
]
OTHER_FILES = [
    *("README.md", "LICENSE", "LICENSE.txt", "requirements.txt", "notes.txt", "train.log", "modeling_own.py"),
    *("trainer_state.json", "all_results.json", "train_results.json", "training_args.bin", "optimizer.pt"),
    *(
        "optimizer.bin",
        "scheduler.pt",
        "rng_state.pth",
        "pytorch_model.bin",
        "runs/events.out",
        ".gitattributes",
    ),
]


@pytest.fixture
def own_index(index: Path, tmp_path: Path) -> Path:
    """A copy of the index that a test may change."""
    return Path(shutil.copytree(index, tmp_path / "facts"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with all these files, each with its own name as its content."""
    for name in (*DECIDING_FILES, *OTHER_FILES):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "files"


def fingerprint(directory: Path, adapters: Path | None = None) -> str:
    return ModelFiles.read(directory, adapters or directory).sha256


@pytest.mark.parametrize("name", DECIDING_FILES)
@pytest.mark.parametrize("change", ["edited", "removed", "renamed"])
def test_a_change_of_a_file_that_decides_weights_or_tokens_changes_the_fingerprint(directory, name, change):
    before, path = ModelFiles.read(directory, directory), directory / name
    if change == "edited":
        path.write_text(f"{path.read_text()} ")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(path.with_name(f"{path.name}.bak"))
    after = ModelFiles.read(directory, directory)
    assert after.sha256 != before.sha256
    assert after.find_changed(before.sha256_by_name) == [name]


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_change_of_any_other_file_does_not(directory, name):
    before = fingerprint(directory)
    (directory / name).write_text("another text")
    assert fingerprint(directory) == before
    (directory / name).unlink()
    assert fingerprint(directory) == before


def test_the_content_of_one_file_cannot_be_moved_into_another(tmp_path):
    for name, first, second in (("a", "1", "23"), ("b", "12", "3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "merges.txt").write_text(first)
        (tmp_path / name / "vocab.txt").write_text(second)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_files_of_adapters_count_and_are_told_apart_from_those_of_their_model(tmp_path):
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    for directory in (base, adapters):
        directory.mkdir()
        (directory / "tokenizer.json").write_text(directory.name)
    files = ModelFiles.read(base, adapters)
    assert sorted(files.sha256_by_name) == ["adapters/tokenizer.json", "tokenizer.json"]
    (adapters / "tokenizer.json").write_text("base")
    (base / "tokenizer.json").write_text("adapters")
    assert fingerprint(base, adapters) != files.sha256


def test_every_file_that_a_tokenizer_of_transformers_reads_matches_a_pattern():
    names = {"added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja"}
    for module_info in pkgutil.iter_modules(transformers.models.__path__):
        package = f"transformers.models.{module_info.name}"
        for path in (Path(transformers.models.__path__[0]) / module_info.name).glob("tokenization_*.py"):
            try:
                module = importlib.import_module(f"{package}.{path.stem}")
            except (ImportError, NameError):  # it needs a library that is not installed
                continue
            for _, tokenizer in inspect.getmembers(module, inspect.isclass):
                if issubclass(tokenizer, PreTrainedTokenizerBase):
                    names |= set(tokenizer.vocab_files_names.values())
    assert len(names) > 20
    assert [
        name for name in names if not any(fnmatch(name, pattern) for pattern in MODEL_FILE_PATTERNS)
    ] == []


def test_what_is_fetched_from_the_hub_is_what_counts(monkeypatch, tmp_path):
    tiny.save_model(tmp_path / "model")
    fetched = {}

    def snapshot_download(*_args: object, **options: object) -> str:
        fetched.update(options)
        return str(tmp_path / "model")

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    load_model("org/model")
    assert set(fetched["allow_patterns"]) == set(MODEL_FILE_PATTERNS)
    for name in DECIDING_FILES:
        assert any(fnmatch(name, pattern) for pattern in fetched["allow_patterns"]), name


def test_the_merges_of_a_slow_tokenizer_count(tmp_path):
    path = tiny.save_model(tmp_path / "model")
    (path / "merges.txt").write_text("#version: 0.2\na b\n")
    before = load_model(str(path)).sha256
    (path / "merges.txt").write_text("#version: 0.2\n")
    assert load_model(str(path)).sha256 != before


CHANGES = {
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/rag.jinja": "{{ messages }}",
    "merges.txt": "#version: 0.2\n",
    "added_tokens.json": "{}",
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_is_neither_queried_nor_extended_after_such_a_file_has_changed(index, sources, name):
    path = sources / "model" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(CHANGES[name])
    try:
        with pytest.raises(IndexCorrupt, match=f"{name} has changed"):
            AttributionIndex.open(index)
        with pytest.raises(IndexCorrupt, match=f"{name} has changed"):
            append_documents(
                index, AppendSpec(documents=[{"id": "new", "text": "Person 1 lives in city 1."}])
            )
    finally:
        path.unlink()
    AttributionIndex.open(index)


def as_of_first_release(index: Path) -> None:
    """Makes the manifest of an index what release 0.1.0 would have written: a hash of JSON and safetensors only."""
    manifest = read_manifest(index)
    digest = hashlib.sha256()
    model = Path(manifest.spec.model)
    for path in sorted({*model.glob("*.json"), *model.glob("*.safetensors")}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    old = manifest.model_copy(update={"model_sha256": digest.hexdigest()})
    (index / MANIFEST_FILE).write_text(old.model_dump_json(exclude={"model_files"}))


def test_an_index_of_the_first_release_is_queried_and_extended_as_long_as_its_files_are_the_same(
    own_index, sources
):
    as_of_first_release(own_index)
    before = read_manifest(own_index)
    assert before.model_files == {}
    AttributionIndex.open(own_index)
    new = AppendSpec(
        documents=[{"id": "new", "text": "Person 1 lives in city 1.", "source": "web", "number": 1}]
    )
    after = append_documents(own_index, new)
    assert (after.rows, after.model_sha256) == (before.rows + 1, before.model_sha256)
    AttributionIndex.open(own_index)
    config = sources / "model" / "config.json"
    original = config.read_text()
    try:
        config.write_text(original + " ")
        with pytest.raises(IndexCorrupt, match="its files have changed"):
            AttributionIndex.open(own_index)
    finally:
        config.write_text(original)


def test_the_hash_of_the_first_release_does_not_open_an_index_of_this_one(own_index):
    as_of_first_release(own_index)
    old = read_manifest(own_index)
    (own_index / MANIFEST_FILE).write_text(
        old.model_copy(update={"model_files": {"config.json": "0"}}).model_dump_json()
    )
    with pytest.raises(IndexCorrupt, match="changed"):
        AttributionIndex.open(own_index)
