"""An index of forty documents, built once."""

from pathlib import Path

# First, because what is imported while jaxtyping's hook (tests/shapes.py) runs a module of ours is compiled anew.
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
    """A directory with a model and documents.jsonl."""
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
