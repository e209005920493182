"""Starts Redis servers for tests, on free ports, with TLS and with users of few rights."""

import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tests.worker.helpers import REPOSITORY, is_answering, wait_until
from worker.queue.redis_client import connect

_EPHEMERAL_PORTS_FROM = 32_768
ACL_RULE = (REPOSITORY / "docs" / "redis.acl").read_text().removeprefix("user ").strip()


def free_port() -> int:
    """Returns a port that is free, and that the system gives to no client's connection while its server is down."""
    while True:
        port = secrets.randbelow(_EPHEMERAL_PORTS_FROM - 10_000) + 10_000
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def running_server(command: list[str], directory: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yields the process of a server once it answers at `url`; the server is killed at the end."""
    directory.mkdir(exist_ok=True)
    with (
        (directory / "log").open("ab") as log,
        subprocess.Popen(command, cwd=directory, stdout=log, stderr=log) as server,
    ):
        try:
            wait_until(lambda: server.poll() is not None or is_answering(url))
            assert server.poll() is None, (directory / "log").read_text()
            yield server
        finally:
            server.kill()


def server_options(**values: object) -> list[str]:
    """Returns options as arguments of redis-server, which writes nothing to disk."""
    options = {"save": "", "bind": "127.0.0.1", **values}
    return [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", *str(value).split(" "))
    ]


def make_certificate(openssl: str, directory: Path) -> tuple[Path, Path]:
    """Returns the paths of a self-signed certificate for 127.0.0.1 and of its key."""
    certificate, key = directory / "redis.crt", directory / "redis.key"
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=redis"
    )
    command += f" -addext subjectAltName=IP:127.0.0.1 -out {certificate} -keyout {key}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


def restrict_user(url: str, password: str = "p@ss/word") -> str:
    """Returns the URL of the same server for a user who has only the rights that docs/redis.acl lists."""
    with connect(url) as admin:
        admin.execute_command("ACL", "SETUSER", *ACL_RULE.replace("PASSWORD", password).split())
    return url.replace("://", f"://bergson:{quote(password, safe='')}@")


def read_refusals(url: str) -> list[str]:
    """Returns the commands refused for lack of rights, except for one that redis-py tries and does not need."""
    with connect(url) as admin:
        return [entry["object"] for entry in admin.acl_log() if entry["object"] != "client|setinfo"]
