"""The version of the distribution `bergson-service`, which pyproject.toml and the OpenAPI document read from here."""

from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal

__version__ = "0.2.0.dev0"


def with_extra(extra: Literal["mcp", "otel"]) -> str:
    """Returns what pip is told to install for an extra that both distributions have, with and without torch."""
    try:
        distribution("bergson-service-web")
    except PackageNotFoundError:
        return f"'bergson-service[{extra}]'"
    return f"'bergson-service-web[{extra}]'"
