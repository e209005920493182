"""A Ray cluster, which is started once for all tests that need one."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two machines of one CPU each; this process is on the first."""
    fast_checks = {
        "health_check_period_ms": 200,
        "health_check_timeout_ms": 1000,
        "health_check_initial_delay_ms": 0,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": fast_checks}
    started = Cluster(initialize_head=True, head_node_args=head)
    started.add_node(num_cpus=1)
    ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
    yield started
    ray.shutdown()
    started.shutdown()
