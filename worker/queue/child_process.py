"""Child processes that never outlive the thread that started them. No torch here."""

import os
import sys
from collections.abc import Sequence

# The kernel sends SIGTERM to the child when the thread that started it ends. Set by a process of its own, because
# code between fork and exec can deadlock in a process with threads; the line after it sees a parent that died
# before.
_LAUNCHER = """
import ctypes, os, signal, sys
sys.platform == "linux" and ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.getppid() == int(sys.argv[1]) or sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def command_tied_to_parent(command: Sequence[str]) -> list[str]:
    """`command`, whose first word is an absolute path, so that it is told to end when its parent thread does."""
    return [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *command]
