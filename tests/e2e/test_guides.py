"""The examples of the guides in docs/ run in order, with a tiny model in place of the demo's."""

from pathlib import Path

import pytest

from tests.processes import run_script

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_examples_of_a_guide_run_in_order(guide: Path, home: Path) -> None:
    output = run_script(Path(__file__).with_name("run_page.py"), str(guide), home=home)
    assert "Traceback" not in output
