"""The documents that are made from the code are committed as the code makes them."""

from pathlib import Path

import pytest

from scripts.architecture_map import PACKAGES, ROOT, architecture_svg, folder_tables
from scripts.generate_docs import DOCUMENTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_committed_document_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == DOCUMENTS[path](), "run `make docs`"


def test_the_map_and_the_tables_name_every_folder_and_file_of_the_packages() -> None:
    tables, picture = folder_tables(), architecture_svg()
    for package in PACKAGES:
        for path in (ROOT / package).iterdir():
            if (path / "__init__.py").is_file():
                assert f"| `{path.name}/` |" in tables
                assert f">{path.name}/</text>" in picture
            elif path.suffix == ".py" and path.stem != "__init__":
                assert f"| `{path.name}` |" in tables
                assert path.name in picture
