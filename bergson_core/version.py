"""The version of the distribution `bergson-service`, which pyproject.toml and the OpenAPI document read from here."""

__version__ = "0.2.0.dev0"
