"""Redis servers that a test starts, on ports of their own."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from tests.worker.helpers import REPOSITORY, answers, until
from worker.queue.redis_client import connect

(RULE,) = re.findall(r"^ACL SETUSER (.*)$", (REPOSITORY / "docs" / "service.md").read_text(), re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def running(command: list[str], directory: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server once it answers at `url`; it is killed at the end."""
    directory.mkdir(exist_ok=True)
    with (
        (directory / "log").open("ab") as log,
        subprocess.Popen(command, cwd=directory, stdout=log, stderr=log) as server,
    ):
        try:
            until(lambda: server.poll() is not None or answers(url))
            assert server.poll() is None, (directory / "log").read_text()
            yield server
        finally:
            server.kill()


def options(**values: object) -> list[str]:
    """As arguments of redis-server; nothing is written to disk."""
    given = {"save": "", "bind": "127.0.0.1", **values}
    return [
        word
        for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", *str(value).split(" "))
    ]


def certify(openssl: str, directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    certificate, key = directory / "redis.crt", directory / "redis.key"
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=redis"
    )
    command += f" -addext subjectAltName=IP:127.0.0.1 -out {certificate} -keyout {key}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


def restricted(url: str, password: str = "p@ss/word") -> str:
    """The same server as a user who has only the rights that docs/service.md lists."""
    with connect(url) as admin:
        admin.execute_command("ACL", "SETUSER", *RULE.replace("PASSWORD", password).split())
    return url.replace("://", f"://bergson:{quote(password, safe='')}@")


def refusals(url: str) -> list[str]:
    """What the server has refused that user for lack of rights; redis-py tries one thing that it can do without."""
    with connect(url) as admin:
        return [entry["object"] for entry in admin.acl_log() if entry["object"] != "client|setinfo"]
