"""The files for contributors say what is true of the repository."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bergson_core.version import __version__

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("", "bergson_core", "worker", "service")


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|lua))`", page.read_text()))
    missing = {name for name in named if not any((ROOT / package / name).is_file() for package in PACKAGES)}
    own_files = {"worker.py"}  # what users may have in their working directory
    assert not missing - own_files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_to_a_file_of_the_repository_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_workflow_runs_ci_on_every_supported_python(workflow: dict[str, Any]) -> None:
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert any(step.get("run") == ".ci/run" for step in job["steps"])


def test_the_linters_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    programs = set(re.findall(r"\$\(VENV\)/bin/([\w-]+)", recipe))
    assert {hook["entry"].split()[0].rpartition("/")[2] for hook in hooks} == programs


def test_the_changelog_has_a_section_for_each_version_and_one_for_what_is_coming() -> None:
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert __version__.partition(".dev")[0] in sections or ".dev" in __version__


def test_every_decision_is_listed_and_says_its_context_and_its_consequences() -> None:
    directory = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (directory / "README.md").read_text()))
    pages = {page.name for page in directory.glob("[0-9]*.md")}
    assert listed == pages
    for page in pages:
        text = (directory / page).read_text()
        assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_folders_hold_few_enough_files_to_find_one_at_a_glance() -> None:
    folders = [path.parent for package in PACKAGES[1:] for path in (ROOT / package).rglob("__init__.py")]
    crowded = {str(folder.relative_to(ROOT)) for folder in folders if len(list(folder.glob("*.py"))) > 14}
    assert not crowded


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "bergson_core/version.py"
