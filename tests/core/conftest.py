"""Fixtures of the core's tests: a model, forty documents, and an index of them that is built once."""

import shutil
from pathlib import Path

# These come first: a library that is imported while a module of bergson_core runs under jaxtyping's import hook
# (tests/shapes.py) would be compiled anew.
import datasets  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers  # noqa: F401
from datasets import Dataset

from bergson_core import build_index
from bergson_core.schemas.build import BuildSpec
from tests import tiny
from tests.core.helpers import QUERIES, make_spec


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model in `model` and forty documents in `documents.jsonl`."""
    root = tmp_path_factory.mktemp("sources")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl")
    return root


@pytest.fixture(scope="session")
def spec(sources: Path) -> BuildSpec:
    return make_spec(sources)


@pytest.fixture(scope="session")
def index(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published index of three shards."""
    path = tmp_path_factory.mktemp("indexes") / "facts"
    build_index(spec, path, shard_rows=16)
    return path


@pytest.fixture(scope="session")
def sample() -> Dataset:
    prompts, completions = zip(*QUERIES, strict=True)
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


@pytest.fixture
def index_copy(index: Path, tmp_path: Path) -> Path:
    """A copy of the index that may be changed."""
    return shutil.copytree(index, tmp_path / "facts")
