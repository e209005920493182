"""The Python client of the service: `Client`, and `AsyncClient` with the same methods as coroutines."""

from service.client.clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
