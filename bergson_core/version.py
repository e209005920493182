"""The version of the distribution `bergson-service`. pyproject.toml and the OpenAPI document read it here."""

__version__ = "0.1.0"
