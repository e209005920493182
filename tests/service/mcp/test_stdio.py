"""`bergson mcp` as a process of its own, driven by the SDK's client over its standard input and output."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from mcp import Client, StdioServerParameters

from tests.e2e.helpers import BERGSON, run_bergson
from tests.service.helpers import make_key_header, serve_app
from tests.service.mcp.conftest import TEXTS

QUESTION = {"index": "news", "prompt": "Ada was born in", "completion": " London"}


def parameters(url: str, *arguments: str, **environment: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=BERGSON, args=["mcp", *arguments], env={"BERGSON_URL": url, **environment}
    )


def key_of(data_dir: Path, **fields: Any) -> str:
    return make_key_header(data_dir, **fields)["Authorization"].removeprefix("Bearer ")


async def test_an_assistant_asks_over_standard_input_and_output(url: str, tmp_path: Path) -> None:
    key = key_of(tmp_path)
    async with Client(parameters(url, BERGSON_API_KEY=key)) as client:
        assert client.server_info is not None and client.server_info.name == "bergson"
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "ask" in names and "take_down" not in names
        result = await client.call_tool("ask", QUESTION)
        assert result.structured_content is not None
        assert result.structured_content["proponents"][0]["untrusted_text"] == TEXTS[0]


async def test_the_key_of_the_environment_decides_what_is_allowed(url: str, tmp_path: Path) -> None:
    hidden = key_of(tmp_path, name="hidden", text=False)
    async with Client(parameters(url, "--allow_takedown", BERGSON_API_KEY=hidden)) as client:
        answer = (await client.call_tool("ask", QUESTION)).structured_content
        assert answer is not None
        assert [row["untrusted_text"] for row in answer["proponents"]] == [None, None]
        refused = await client.call_tool("take_down", {"index": "news", "document_id": "doc-0"})
        assert refused.is_error and "scope write" in str(refused.content)
    async with Client(parameters(url)) as client:
        assert "unauthorized" in str((await client.call_tool("list_indexes", {})).content)


def test_a_wrong_address_is_told_before_an_assistant_waits() -> None:
    run = run_bergson("mcp", BERGSON_URL="nowhere")
    assert run.returncode == 1
    assert "expected the address of the service" in run.stderr and not run.stdout


@pytest.fixture
def served(app: FastAPI) -> Iterator[str]:
    with serve_app(app) as url:
        yield url


def test_the_process_ends_when_its_input_does(served: str) -> None:
    run = subprocess.run(
        [BERGSON, "mcp", "--url", served], input=b"", capture_output=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout) == (0, b"")


def test_the_server_loads_no_torch() -> None:
    code = "import sys, service.mcp.transports; sys.exit(str([m for m in ('torch', 'datasets') if m in sys.modules]))"
    run = subprocess.run(
        [str(Path(BERGSON).with_name("python")), "-c", code], capture_output=True, text=True, check=False
    )
    assert run.stderr.strip() == "[]"


@pytest.mark.parametrize("distribution", ["bergson-service", "bergson-service-web"])
def test_a_missing_sdk_is_told_with_what_to_install(tmp_path: Path, distribution: str) -> None:
    metadata = tmp_path / f"{distribution.replace('-', '_')}-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: {distribution}\nVersion: 0\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['mcp'] = None; sys.argv[1:] = ['mcp']; "
        "from service.cli import main; main()"
    )
    run = subprocess.run(
        [str(Path(BERGSON).with_name("python")), "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1 and f"pip install '{distribution}[mcp]'" in run.stderr
