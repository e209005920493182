"""The examples of the guides in docs/ run in order, with a tiny model in place of the demo's."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_examples_of_a_guide_run_in_order(guide: Path, home: Path, run) -> None:
    output = run(sys.executable, str(Path(__file__).with_name("run_page.py")), str(guide))
    assert "Traceback" not in output
