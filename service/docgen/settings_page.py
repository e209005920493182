"""Write the table of all settings: `python -m service.docgen.settings_page > docs/settings.md`."""

import sys
from collections.abc import Iterator

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from service.settings import ClientSettings, ServiceSettings
from worker.settings import Settings

_HEAD = """# Settings

Every setting is an environment variable; options of `bergson up`, `serve` and `worker` of the same name win over it.
What cannot be right keeps a process from starting, and is named. This page is written by `make openapi` from the
classes that read the settings.

`HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are Hugging Face's, `RAY_ADDRESS` and `RAY_AUTH_MODE` are Ray's
([scaling.md](scaling.md)).
"""
_SECTIONS: tuple[tuple[str, type[BaseSettings], type[BaseSettings] | None], ...] = (
    ("Web processes and workers, the same for all of a system", Settings, None),
    ("Web processes", ServiceSettings, Settings),
    ("Clients", ClientSettings, None),
)


def variable(settings: type[BaseSettings], name: str) -> str:
    """The environment variable that a field is read from."""
    alias = settings.model_fields[name].validation_alias
    return str(alias) if alias else f"{settings.model_config.get('env_prefix', '')}{name}".upper()


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = ",".join(value)
    return "" if value in (None, "") else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _rows(settings: type[BaseSettings], base: type[BaseSettings] | None) -> Iterator[str]:
    yield "| variable | default | |"
    yield "|---|---|---|"
    for name, field in settings.model_fields.items():
        if base is None or name not in base.model_fields:
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            yield f"| `{variable(settings, name)}` | {_default(field)} | {meaning} |"


def text() -> str:
    """The page as it is committed."""
    sections = ("\n".join((f"\n## {title}\n", *_rows(own, base))) for title, own, base in _SECTIONS)
    return _HEAD + "\n".join(sections) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
