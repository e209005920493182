"""An index of forty documents, built once."""

from pathlib import Path

# First, because what is imported while jaxtyping's hook (tests/shapes.py) runs a module of ours is compiled anew.
import datasets  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers  # noqa: F401

from bergson_core import build_index
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, GradientSpec
from tests import tiny


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


def make_spec(sources: Path, **changes: object) -> BuildSpec:
    settings = {
        "model": str(sources / "model"),
        "dataset": DatasetSpec(path=str(sources / "documents.jsonl")),
        "columns": ColumnsSpec(id="id", metadata=("source", "number")),
        "gradients": GradientSpec(projection_dim=4),
    }
    return BuildSpec.model_validate(settings | changes)


@pytest.fixture(scope="session")
def index(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published index of three shards."""
    path = tmp_path_factory.mktemp("indexes") / "facts"
    build_index(spec, path, shard_rows=16)
    return path
