"""Child processes that never outlive the thread that started them, and never import from the working directory."""

import os
import signal
import sys
from collections.abc import Sequence

# A launcher process asks the kernel to send it SIGTERM when its parent thread ends, and then becomes the command. The
# launcher is a process of its own because code that runs between fork and exec can deadlock in a process with threads.
# Its second line handles a parent that ended before the first line ran.
_LAUNCHER = """
import ctypes, os, signal, sys
sys.platform == "linux" and ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.getppid() == int(sys.argv[1]) or sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def command_tied_to_parent(command: Sequence[str]) -> list[str]:
    """Returns a command that runs `command` and ends it when the thread that starts it ends (on Linux).

    Args:
        command: The command; its first word is an absolute path.
    """
    return [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *command]


def python_module_command(module: str) -> list[str]:
    """Returns the command that runs a module, never a file of that name in the working directory.

    `python -m` alone puts the working directory first on the path of imports, where a user's own `worker.py` or
    `json.py` would take the place of the module that is meant.

    Args:
        module: Name of the module, for example "worker".
    """
    return [sys.executable, "-Pm", module]


def child_environment(**variables: str) -> dict[str, str]:
    """Returns this process's environment with `variables`, for a child and for the processes that the child starts.

    None of them imports from its working directory.
    """
    return {**os.environ, "PYTHONSAFEPATH": "1", **variables}


def describe_end(status: int) -> str:
    """Returns how a process ended, from its `returncode`: "ended with status 1", "was killed by SIGKILL"."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
