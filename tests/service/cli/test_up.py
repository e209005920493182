"""`bergson up` says that it is ready only of its own service, and lets requests read only what exists."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bergson_core.errors import Unavailable
from service.cli import app


class _AlwaysReady(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def other_service() -> Iterator[int]:
    """The port of a program that answers 200 to every path, as another Bergson Service does to `/readyz`."""
    with HTTPServer(("127.0.0.1", 0), _AlwaysReady) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_up_is_not_ready_where_another_service_answers(
    other_service: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERGSON_PORT", str(other_service))
    monkeypatch.setenv("BERGSON_DATA_DIR", str(tmp_path / "data"))
    result = CliRunner().invoke(app, ["up"])
    assert result.stdout == ""
    assert isinstance(result.exception, Unavailable)
    assert f"port {other_service}: another program listens there" in str(result.exception)
    assert not (tmp_path / "data").exists()
