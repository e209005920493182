"""Child processes that never outlive the thread that started them."""

import os
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
