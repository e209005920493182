"""An index that was built on a CUDA device, and one of the same documents that was built on the CPU."""

from pathlib import Path

# First, because what is imported while jaxtyping's hook (tests/shapes.py) runs a module of ours is compiled anew.
import datasets  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers  # noqa: F401

from bergson_core import build_index
from bergson_core.models import loading
from bergson_core.schemas.build import BuildSpec
from tests import tiny
from tests.core.helpers import make_spec


@pytest.fixture(scope="session")
def gpu_spec(tmp_path_factory: pytest.TempPathFactory) -> BuildSpec:
    """The spec of an index of forty documents, with their model."""
    root = tmp_path_factory.mktemp("sources")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl")
    return make_spec(root)


@pytest.fixture(scope="session")
def cuda_index(gpu_spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an index that was built on the default device, which is the first GPU."""
    path = tmp_path_factory.mktemp("cuda") / "facts"
    build_index(gpu_spec, path, shard_rows=16)
    return path


@pytest.fixture(scope="session")
def cpu_index(gpu_spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an index that was built on the CPU."""
    path = tmp_path_factory.mktemp("cpu") / "facts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "default_device", lambda: "cpu")
        build_index(gpu_spec, path, shard_rows=16)
    return path
