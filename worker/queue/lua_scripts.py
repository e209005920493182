"""The Lua scripts that run inside Redis, for steps that have to happen together or not at all.

Each script is a file in the folder `lua` and begins with a description of its keys, its arguments and its result.

Every change of a job is guarded by a fencing token, which grows each time the job changes hands: a worker that holds an
older token than the job's changes nothing.
"""

from importlib.resources import files
from typing import Final


def _read(name: str) -> str:
    return (files("worker.queue") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


SUBMIT_JOB: Final = _read("submit_job")
TAKE_JOB: Final = _read("take_job")
RENEW_JOB: Final = _read("renew_job")
SAVE_JOB: Final = _read("save_job")
ASK_QUERY: Final = _read("ask_query")
TAKE_QUERIES: Final = _read("take_queries")
RENEW_QUERIES: Final = _read("renew_queries")
