"""Hooks of MkDocs for the site of docs/: `mkdocs.yml` names this file, and `make docs` runs it.

The home page is README.md, and the other pages that lie beside it are on the site as well. The reference pages are made
from the code, so that they are as new as it is.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from scripts.site.command_reference import command_reference
from scripts.site.http_reference import http_reference
from scripts.site.library_reference import client_reference, library_reference

ROOT: Final = Path(__file__).parents[2]
ROOT_PAGES: Final[Mapping[str, str]] = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages beside docs/, and where they are on the site."""


def _http_reference() -> str:
    return http_reference(json.loads((ROOT / "docs" / "openapi.json").read_text("utf-8")))


GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "reference/http.md": _http_reference,
    "reference/command-line.md": command_reference,
    "reference/library.md": library_reference,
    "reference/client.md": client_reference,
}


def root_page(name: str) -> str:
    """Returns a page that lies beside docs/, with its links as they are on the site."""
    text = (ROOT / name).read_text("utf-8")
    for page, place in ROOT_PAGES.items():
        text = re.sub(rf"\]\({re.escape(page)}(?=[)#])", f"]({place}", text)
    text = re.sub(r"\]\(LICENSE\)", "](license.md)", text)
    return re.sub(r'(\]\(|src=")docs/', r"\1", text)


def on_config(config: Any) -> Any:
    """Puts every decision into the navigation, in order."""
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    (inside,) = (section["Inside"] for section in config.nav if "Inside" in section)
    (decisions,) = (entry["Decisions"] for entry in inside if "Decisions" in entry)
    decisions += [f"decisions/{page}" for page in pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that do not lie in docs/."""
    from mkdocs.structure.files import File

    pages = {place: root_page(name) for name, place in ROOT_PAGES.items()}
    pages |= {place: make() for place, make in GENERATED.items()}
    pages["license.md"] = f"# License\n\n```text\n{(ROOT / 'LICENSE').read_text('utf-8')}```\n"
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turns links from docs/ to pages beside it into links to their places on the site."""
    for name, place in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\(\.\./{re.escape(name)}(?=[)#])", f"]({place}", markdown)
    return markdown
