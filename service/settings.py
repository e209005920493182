"""Settings of the web process, beside those that it shares with the workers (`worker.settings`), and of clients."""

import ipaddress
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bergson_core.errors import InvalidInput
from worker.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class ServiceSettings(Settings):
    """How the service listens and what it accepts."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach asks for an API key (`bergson keys create`)."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ("localhost", "127.0.0.1", "[::1]")
    """Values of the Host header that are answered, without port, separated by commas; * answers any."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    """Longest body of a request in bytes."""
    default_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a query waits for its answer where it does not say."""
    max_timeout_s: float = Field(default=300.0, gt=0)
    """Longest `timeout_s` that a query may ask for."""
    cache_bytes: int = Field(default=32 * 2**20, ge=0)
    """Bytes of answers that are kept to be given again, as long as their index does not change; 0 keeps none."""
    drain_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM for which requests are still taken while `/readyz` fails, so that a load balancer looks
    away first."""
    shutdown_s: int = Field(default=5, ge=0)
    """Seconds that open requests and event streams get to end when the server stops."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(host.strip() for host in value.split(",") if host.strip())
        return value

    def resolve_timeout_s(self, asked_s: float | None) -> float:
        """Seconds to wait for an answer. Raises `InvalidInput` above the maximum."""
        if asked_s is not None and asked_s > self.max_timeout_s:
            raise InvalidInput(f"timeout_s: expected at most {self.max_timeout_s:g}, got {asked_s:g}")
        return asked_s or self.default_timeout_s


class ClientSettings(BaseSettings):
    """Where a client finds the service, and who it is there."""

    model_config = SettingsConfigDict(
        env_prefix="BERGSON_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    url: str = "http://127.0.0.1:8000"
    """Address of the service, for `service.client` where it is given none."""
    api_key: SecretStr | None = None
    """API key, for `service.client` where it is given none, and for `bergson demo`."""
