"""A run of three checkpoints, and an index over them."""

from pathlib import Path

import pytest

from bergson_core import build_index
from bergson_core.schemas.build import BuildSpec
from tests import tiny
from tests.core.helpers import make_spec


@pytest.fixture(scope="session")
def run(sources: Path) -> list[str]:
    """The directories of three models of one shape and with one tokenizer."""
    return [str(tiny.save_model(sources / f"checkpoint-{seed}", seed)) for seed in (3, 4, 5)]


@pytest.fixture(scope="session")
def checkpoint_spec(sources: Path, run: list[str]) -> BuildSpec:
    """The build of `checkpoint_index`."""
    return make_spec(sources, model=run[-1], models=run)


@pytest.fixture(scope="session")
def checkpoint_index(checkpoint_spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published index over the three checkpoints, in three shards."""
    path = tmp_path_factory.mktemp("indexes") / "run"
    build_index(checkpoint_spec, path, shard_rows=16)
    return path
