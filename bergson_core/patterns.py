"""Regular expressions of strangers, in a process of their own: `(a+)+$` takes time exponential in a name's length.

Python's `re` cannot be stopped, and holds the lock of the interpreter meanwhile: the worker's lease would lapse, and
the next worker would hang in its place.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from bergson_core.errors import InvalidInput

LIMIT_S: Final = 10
_SEARCH: Final = """
import json, re, sys
pattern, names = json.load(sys.stdin)
json.dump([name for name in names if re.search(pattern, name)], sys.stdout)
"""


def matching(pattern: str, names: Sequence[str]) -> set[str]:
    """The names in which `pattern` is found. Raises `InvalidInput` where that takes more than `LIMIT_S` seconds."""
    command = [sys.executable, "-I", "-c", _SEARCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([pattern, names]), capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput(
            f"modules: {pattern!r} takes more than {LIMIT_S} s on {len(names)} names; expected an expression without "
            "repeats within repeats"
        ) from None
    if done.returncode:
        raise InvalidInput(f"modules: {pattern!r} cannot be searched for: {done.stderr.strip()[-200:]}")
    return set(json.loads(done.stdout))
