"""Writes the documents that are made from the code: `python -m scripts.generate_docs`, or `make docs`.

A test compares the committed files with `DOCUMENTS`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from bergson_core.storage.manifest import FORMAT_VERSION, Manifest
from scripts.architecture_map import architecture_svg, folder_tables
from service.app import create_app
from service.openapi.metadata import openapi_document
from service.settings import ClientSettings, ServiceSettings
from worker.settings import Settings, environment_variable

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"
_FOLDERS_BEGIN: Final = (
    "<!-- folders: written by `make docs` from the first line of each folder's __init__.py -->\n"
)
_FOLDERS_END: Final = "<!-- end of folders -->"

_SETTINGS_HEAD: Final = """# Settings

Every setting is an environment variable. An option of `bergson up`, `serve` or `worker` with the same name overrides
it. If a value is wrong, the process does not start, and the error names the setting. An unknown variable `BERGSON_…`
gives a warning. `make docs` writes this page from the classes that read the settings.

`HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are Hugging Face's, `RAY_ADDRESS` and `RAY_AUTH_MODE` are Ray's
([scaling.md](scaling.md)).
"""
_SETTINGS_SECTIONS: Final[tuple[tuple[str, type[BaseSettings], type[BaseSettings] | None], ...]] = (
    ("Web processes and workers, the same for all of a system", Settings, None),
    ("Web processes", ServiceSettings, Settings),
    ("Clients", ClientSettings, None),
)


def openapi_json() -> str:
    """Returns the OpenAPI document of the service with default settings."""
    return json.dumps(openapi_document(create_app(ServiceSettings())), indent=2, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    """Returns the JSON schema of an index's manifest."""
    schema = Manifest.model_json_schema()
    del schema["$defs"]["BuildSpec"]["properties"]["preset"]  # a manifest has its values
    schema["properties"]["format_version"]["const"] = FORMAT_VERSION
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | schema, indent=1, ensure_ascii=False) + "\n"


def settings_page() -> str:
    """Returns the page that lists every setting with its default and its meaning."""
    sections = (
        "\n".join((f"\n## {title}\n", *_settings_table(settings, base)))
        for title, settings, base in _SETTINGS_SECTIONS
    )
    return _SETTINGS_HEAD + "\n".join(sections) + "\n"


def contributing_page() -> str:
    """Returns CONTRIBUTING.md as it is, with the tables of folders made anew."""
    before, _, rest = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition(_FOLDERS_BEGIN)
    _, end, after = rest.partition(_FOLDERS_END)
    return f"{before}{_FOLDERS_BEGIN}\n{folder_tables()}\n{end}{after}"


def _settings_table(settings: type[BaseSettings], base: type[BaseSettings] | None) -> Iterator[str]:
    """Yields the lines of a table of the fields that `settings` has and `base` has not."""
    yield "| variable | default | |"
    yield "|---|---|---|"
    for name, field in settings.model_fields.items():
        if base is None or name not in base.model_fields:
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            yield f"| `{environment_variable(settings, name)}` | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = ",".join(value)
    return "" if value in (None, "") else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


DOCUMENTS: Final[Mapping[Path, Callable[[], str]]] = {
    DOCS / "openapi.json": openapi_json,
    DOCS / "manifest.schema.json": manifest_schema,
    DOCS / "settings.md": settings_page,
    DOCS / "architecture.svg": architecture_svg,
    ROOT / "CONTRIBUTING.md": contributing_page,
}


def main() -> None:
    """Writes every generated document."""
    for path, text in DOCUMENTS.items():
        path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
