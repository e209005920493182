"""The virtual environment that EleutherAI's bergson is installed into, apart from ours: its command has our name.

Its torch is ours (constraints.txt), so that times and numbers can be compared. It requires torchvision and torchaudio
but imports neither. They are removed after the install, because transformers imports a torchvision that is there, and
the one of PyPI was built with CUDA and fails beside a torch for CPUs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bergson_core.errors import InvalidInput

VERSION: Final = "2.5.1"
_CONSTRAINTS: Final = Path(__file__).parents[2] / "constraints.txt"
_COMMAND_LINE: Final = Path(__file__).with_name("command_line.py")
_UNUSED: Final = ("torchvision", "torchaudio")
_LISTED: Final = ("bergson", "torch", "transformers", "datasets", "peft", "numpy")
_LIST_VERSIONS: Final = f"""
import bergson, json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version()}} | {{name: version(name) for name in {_LISTED}}}))
"""
_QUOTED_CHARACTERS: Final = 2000


@dataclass(frozen=True)
class Upstream:
    """An installed bergson.

    Attributes:
        command: Starts its command line.
        versions: Versions of it and of what it runs on.
    """

    command: Sequence[str]
    versions: Mapping[str, str]


def install_upstream(cache: Path) -> Upstream:
    """Returns bergson in an environment below `cache`, which is made unless it is there.

    As in the Makefile, the environment variable TORCH_INDEX names the index that torch comes from.

    Raises:
        InvalidInput: The install fails.
    """
    directory = cache.expanduser().absolute() / f"bergson-{VERSION}"
    python, installed = directory / "bin" / "python", directory / ".installed"
    constraints = _CONSTRAINTS.read_text("utf-8")
    if not installed.is_file() or json.loads(installed.read_text("utf-8"))["constraints"] != constraints:
        _run([sys.executable, "-m", "venv", "--clear", str(directory)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        install = [*pip, "install", "--constraint", str(_CONSTRAINTS)]
        if index := os.environ.get("TORCH_INDEX"):
            _run([*install, "--no-deps", "--index-url", index, "torch"])
        _run([*install, f"bergson=={VERSION}"])
        _run([*pip, "uninstall", "--yes", *_UNUSED])
        # What it prints before, such as warnings of bitsandbytes, is no part of the answer.
        versions = json.loads(_run([str(python), "-c", _LIST_VERSIONS]).splitlines()[-1])
        installed.write_text(json.dumps({"constraints": constraints, "versions": versions}), "utf-8")
    versions = json.loads(installed.read_text("utf-8"))["versions"]
    return Upstream((str(python), "-P", str(_COMMAND_LINE)), versions)


def _run(command: Sequence[str]) -> str:
    """Returns what a command prints.

    Raises:
        InvalidInput: It fails; the message quotes the end of its output.
    """
    process = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if process.returncode != 0:
        message = (process.stderr or process.stdout).strip()[-_QUOTED_CHARACTERS:]
        raise InvalidInput(f"bergson {VERSION} cannot be installed, {' '.join(command)} failed: {message}")
    return process.stdout
