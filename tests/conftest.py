"""What all tests share. The environment is set before anything of ours, torch or Hugging Face is imported."""

import os
import shutil
from collections.abc import Callable

import pytest

from tests import shapes

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
# Tiny matrices gain nothing from a second thread, and workers that a test starts must not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A developer's own settings must not reach the tests, least of all their Redis.
for _name in [name for name in os.environ if name == "REDIS_URL" or name.startswith("BERGSON_")]:
    del os.environ[_name]

shapes.install()

os.fsync = lambda file: None  # it guards against power cuts, which no test makes, and waits for the disk


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as uvicorn does."""
    return "asyncio"


@pytest.fixture(scope="session")
def require() -> Callable[..., str]:
    """`require("redis-server")`: the path of a program, the first found of the names given.

    Where there is none the test is skipped; in CI it fails, so that no check is lost without a word.
    """

    def find(*names: str) -> str:
        for name in names:
            if path := shutil.which(name):
                return path
        missing = f"none of these programs is installed: {', '.join(names)} (`make test` installs them where it may)"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)

    return find
