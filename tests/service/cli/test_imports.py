"""Commands import only what they use, so that they start fast: what takes long to import is loaded for work alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from bergson_core.schemas.build import BuildSpec
from service.cli import _COMMANDS
from tests.service.fake_broker import publish_manifest
from tests.service.helpers import REPOSITORY, serve_app

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "faiss",
    "pyarrow",
    "numpy",
    "ray",
    "fastapi",
    "uvicorn",
    "redis",
)
"""Packages that take a tenth of a second or more to import."""
SCHEMAS = ("bergson_core.schemas", "pydantic")
MESSAGES = ("bergson_core.schemas.query", "service.schemas", "service.settings", "worker.messages", "httpx")
"""Modules that define many schemas, or the client."""
PROGRAM = """
import sys
sys.argv = ["bergson", *sys.argv[1:]]
from service.cli import main
try: main()
finally: print(*sys.modules, sep="\\n", file=sys.stderr)
"""


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve_app(app) as url:
        yield url


def imported_by(*words: object) -> tuple[int, set[str]]:
    """Runs the command line with these words, and returns its status and the names of all modules it has imported."""
    command = [sys.executable, "-Pc", PROGRAM, *map(str, words)]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return process.returncode, set(process.stderr.split())


@pytest.mark.parametrize("line", ["--help", "--version", "qurey", "build"])
def test_help_and_mistakes_import_no_schemas(line: str) -> None:
    _, modules = imported_by(*line.split())
    assert "service.cli" in modules
    forbidden = HEAVY if line == "build" else (*HEAVY, *SCHEMAS, *MESSAGES)
    assert not modules & set(forbidden)


@pytest.mark.parametrize(
    "line", ["list {root}", "list {root} --format csv", "info {root}/facts", "info {root}/no"]
)
def test_listing_indexes_imports_only_the_schemas_of_indexes(
    line: str, tmp_path: Path, spec: BuildSpec
) -> None:
    publish_manifest(tmp_path, "facts", spec)
    status, modules = imported_by(*line.format(root=tmp_path).split())
    assert status == ("no" in line)
    assert not modules & {*HEAVY, *MESSAGES}


@pytest.mark.parametrize("output", [[], ["--json"], ["--format", "csv"]], ids=["table", "json", "csv"])
def test_a_query_to_a_service_imports_no_library_of_models(url: str, output: list[str]) -> None:
    words = (
        "query",
        "facts",
        "--url",
        url,
        "--prompt",
        "Ada was born in",
        "--completion",
        " London",
        *output,
    )
    status, modules = imported_by(*words)
    assert status == 0, modules
    assert "service.client" in modules
    # CSV is written from an Arrow table.
    of_tables = {"pyarrow", "numpy", "pandas"} if "csv" in output else set()
    assert not modules & (set(HEAVY) - of_tables)


def test_defining_the_commands_imports_no_library_of_models() -> None:
    names = ", ".join(sorted({f"service.cli.{source.module}" for source in _COMMANDS.values()}))
    program = f"import sys, {names}; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-Pc", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not set(process.stdout.split()) & {"torch", "transformers", "datasets", "faiss", "ray"}
