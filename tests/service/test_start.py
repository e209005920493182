"""The start of the process: what it must not import, and what keeps it from starting."""

import asyncio
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.auth.api_keys import KeyFile
from service.http.server_socket import open_server_socket
from service.settings import ServiceSettings
from tests.service.helpers import (
    PROCESS_TIMEOUT_S,
    REPOSITORY,
    make_environment,
    make_key_header,
    start_service,
)

HEAVY = ("torch", "transformers", "faiss", "datasets", "pandas", "ray")
BODY = {"name": "news", "model": "tiny", "documents": [{"text": "a"}]}


def run_refused_service(data_dir: Path, **changes: str) -> str:
    """Runs a service that cannot start, and returns its message, which is one line without a traceback."""
    run = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=REPOSITORY,
        env=make_environment(data_dir, **changes),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    return run.stderr


def test_the_web_process_imports_none_of_the_heavy_libraries() -> None:
    code = (
        f"import service.app, service.__main__, sys; sys.exit(str([m for m in {HEAVY} if m in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert run.stderr.strip() == "[]"


async def test_answers_are_not_delayed_by_nagles_algorithm(tmp_path: Path) -> None:
    no_delay = asyncio.get_running_loop().create_future()

    def check_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        no_delay.set_result(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = open_server_socket(ServiceSettings(data_dir=tmp_path, port=0))
    async with await asyncio.start_server(check_connection, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname())
        assert await no_delay
        writer.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_service_does_not_listen_without_a_key_where_others_can_reach_it(
    tmp_path: Path, host: str
) -> None:
    message = run_refused_service(tmp_path, BERGSON_HOST=host)
    assert host in message and "bergson keys create" in message


def test_an_invalid_setting_is_named(tmp_path: Path) -> None:
    assert run_refused_service(tmp_path, BERGSON_PORT="many").startswith("error: BERGSON_PORT: ")


def test_a_taken_port_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = run_refused_service(tmp_path, BERGSON_PORT=port)
    assert port in message and "BERGSON_PORT" in message


def test_a_redis_that_does_not_answer_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        url = f"redis://127.0.0.1:{closing.getsockname()[1]}/0"
    assert "REDIS_URL" in run_refused_service(tmp_path, REDIS_URL=url)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_the_service_cleanly_although_a_stream_is_open(
    tmp_path: Path, number: signal.Signals
) -> None:
    with start_service(tmp_path) as (process, address):
        location = httpx.post(f"{address}/index", json=BODY).headers["location"]
        with httpx.stream("GET", f"{address}{location}/events") as stream:
            assert next(stream.iter_lines()) == "event: state"
            process.send_signal(number)
            assert process.wait(PROCESS_TIMEOUT_S) == 0
    assert not (tmp_path / "redis" / "redis.sock").exists(), "the embedded Redis has ended too"


@pytest.mark.e2e
def test_with_a_key_the_service_listens_everywhere_and_answers_callers_who_have_one(tmp_path: Path) -> None:
    headers = make_key_header(tmp_path, scope="write", rate="2/minute")
    with start_service(tmp_path, BERGSON_HOST="0.0.0.0", BERGSON_ALLOWED_HOSTS="*") as (_, address):
        assert httpx.get(f"{address}/livez").status_code == 200
        assert httpx.post(f"{address}/index", json=BODY).status_code == 401
        assert httpx.post(f"{address}/index", json=BODY, headers=headers).status_code == 202
        assert httpx.get(f"{address}/jobs", headers=headers).json()["items"][0]["index"] == "news"
        assert httpx.get(f"{address}/jobs", headers=headers).status_code == 429
        KeyFile(tmp_path).revoke("ada")
        assert httpx.get(f"{address}/jobs", headers=headers).status_code == 401


@pytest.mark.e2e
def test_the_data_directory_is_created_for_its_owner_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "srv" / "data"
    with start_service(tmp_path, BERGSON_DATA_DIR=str(data_dir)):
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
