"""What strangers wrote and Python cannot stop, in a process of its own: bounded in time and in memory.

An expression or a template that runs for ever would hold the lock of the interpreter: the worker's lease would lapse,
and the next worker would hang in its place.
"""

import json
import subprocess
import sys
from typing import Any, Final

_MEMORY: Final = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))\n"


def run_sandboxed(program: str, given: Any, limit_s: float) -> Any:
    """What the Python of `program` writes as JSON, with `given` as JSON to read; it has 4 GiB.

    Raises TimeoutError after `limit_s` seconds, and ValueError with the end of what it says where it fails.
    """
    command = [sys.executable, "-I", "-c", _MEMORY + program]
    try:
        done = subprocess.run(
            command, input=json.dumps(given, default=str), capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    if done.returncode:
        raise ValueError(done.stderr.strip()[-200:] or f"it ended with {done.returncode}")
    return json.loads(done.stdout)
