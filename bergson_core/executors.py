"""Opens executors by the names that settings and the command line give them."""

from bergson_core.indexing.executor import Executor, LocalExecutor
from bergson_core.integrations.ray_executor import RayExecutor
from bergson_core.schemas.build import ExecutorName


def open_executor(name: ExecutorName) -> Executor:
    """Returns the executor of this name."""
    return RayExecutor() if name == "ray" else LocalExecutor()
