"""Runs regular expressions and chat templates from untrusted sources in a subprocess with time and memory limits.

Python cannot interrupt an expression or a template that runs for ever, and it would hold the interpreter's lock: the
worker's lease would lapse, and the next worker would hang in its place.
"""

import json
import math
import subprocess
import sys
from typing import Any, Final

_LIMITS: Final = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
resource.setrlimit(resource.RLIMIT_CPU, ({cpu_s}, {cpu_s}))
"""
# The limit of processor time ends the program if this process is killed, which would have ended it in time.


def run_sandboxed(program: str, data: Any, limit_s: float) -> Any:
    """Runs a Python program in a subprocess with 4 GiB of memory.

    Args:
        program: Source text. It reads its input as JSON from standard input, and writes its result as JSON to standard
            output.
        data: The input.
        limit_s: Time limit in seconds.

    Returns:
        The result.

    Raises:
        TimeoutError: The program took longer than `limit_s`.
        ValueError: The program failed. The message is the end of what it wrote to standard error.
    """
    command = [sys.executable, "-I", "-c", _LIMITS.format(cpu_s=math.ceil(limit_s) + 1) + program]
    try:
        process = subprocess.run(
            command, input=json.dumps(data, default=str), capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    if process.returncode:
        raise ValueError(process.stderr.strip()[-200:] or f"it ended with {process.returncode}")
    return json.loads(process.stdout)
