"""The Python client of the service: `Client`, and `AsyncClient` with the same methods as coroutines.

    with Client() as client:
        client.build("facts", model="EleutherAI/pythia-160m", dataset={"path": "NeelNanda/pile-10k"}, wait=True)
        answer = client.attribute("facts", "Ada Lovelace was born in", " London", top_k=3)

Requests and responses are the schemas of the service, and a problem that the service answers is raised as the
matching error of `bergson_core.errors`. The client imports nothing of the server; a test checks that.
"""

from service.client.async_client import AsyncClient
from service.client.blocking_client import Client

__all__ = ["AsyncClient", "Client"]
