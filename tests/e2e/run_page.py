"""Runs the examples of a Markdown page in order, as a reader would: `python run_page.py PAGE`, in an empty directory.

The commands `bergson …` run in this process, since each start of it imports torch; all other commands run in a shell.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.cli import app


def main() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    page = Path(sys.argv[1]).read_text(encoding="utf-8")
    for language, code in re.findall(r"^```(python|sh)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(code, sys.argv[1], "exec"), namespace)
        else:
            run_commands(code)


def run_commands(code: str) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        if assignment := re.fullmatch(r"([A-Z_]+)=(\S+)", line):
            os.environ[assignment[1]] = os.path.expanduser(assignment[2])
        elif line.startswith("bergson "):
            words = [
                os.path.expanduser(os.path.expandvars(word)) for word in shlex.split(line, comments=True)
            ]
            print("$", line, flush=True)
            app(words[1:], standalone_mode=False)
        elif line.strip():
            subprocess.run(line, shell=True, check=True)


if __name__ == "__main__":
    main()
