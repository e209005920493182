"""The site of docs/ is whole: no broken link, every page in the navigation, nothing loaded from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from bergson_core import __all__ as library_names
from service.cli import app
from service.http.problems import PROBLEM_KINDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the site, built as `make docs` builds it, where any warning is an error."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return directory


def test_every_page_of_docs_is_on_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        place = place.parent if place.name == "README" else place
        assert (site / place / "index.html").is_file()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?(?:https?:)?//[^>]*>')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert {page.name: found for page in pages if (found := loads.findall(page.read_text()))} == {}


def test_the_reference_has_every_command_and_every_public_name(site: Path) -> None:
    commands = (site / "reference" / "command-line" / "index.html").read_text()
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"bergson {name}" in commands
    library = (site / "reference" / "library" / "index.html").read_text()
    for name in set(library_names) - {"errors", "__version__"}:
        assert re.search(rf'id="bergson_core\.[\w.]*\b{name}"', library), name


def test_troubleshooting_explains_every_error_code_with_its_status() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = "\n".join(re.findall(r"^### (.+)$", page, re.MULTILINE))
    explained = {
        code: heading for heading in headings.splitlines() for code in re.findall(r"`(\w+)`", heading)
    }
    assert explained.keys() == PROBLEM_KINDS.keys()
    for code, kind in PROBLEM_KINDS.items():
        assert f"({kind.status})" in explained[code], code
