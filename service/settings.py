"""Settings of the web process and of clients, which are read from environment variables such as BERGSON_PORT.

The docstrings of the fields are the table of docs/settings.md and the help of the command line.
"""

import difflib
import ipaddress
import os
import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bergson_core.errors import InvalidInput
from worker.settings import Settings, environment_variable

DEFAULT_URL = "http://127.0.0.1:8000"
_ALLOWED_HOST = re.compile(r"\*|\[[0-9a-f:.]+\]|[^\s/:@?#*\[\]]+", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_root_path(value: str) -> str:
    """Returns a prefix of paths, such as `/bergson`, or an empty text. Raises `ValueError` if it is not a path."""
    path = f"/{value.strip('/')}".rstrip("/")
    if not re.fullmatch(r"(/[\w~-][\w.~-]*)*", path, re.ASCII):
        raise ValueError(f"expected a path such as /bergson, got {value[:100]!r}")
    return path


class ServiceSettings(Settings):
    """Settings of the web processes, besides those that they share with the workers."""

    host: str = "127.0.0.1"
    """Address to listen on. If other machines can reach it, the service starts only if there is an API key
    (`bergson keys create`)."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; with 0 the system chooses a free one."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ("localhost", "127.0.0.1", "[::1]")
    """Hosts, without port and separated by commas, that the `Host` header of a request may name. `*` allows any.
    `/livez` and `/readyz` answer to every name. `bergson mcp --http` checks it too."""
    root_path: Annotated[str, AfterValidator(parse_root_path)] = ""
    """Prefix of all paths at the proxy in front of the service, such as `/bergson`. The proxy may strip it or not."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses or networks of proxies, separated by commas, whose header `X-Forwarded-Prefix` is taken as `root_path`.
    `*` trusts every caller; by default the header is ignored."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1)
    """Largest size of a request's body, in bytes."""
    max_open_requests: int = Field(default=1000, ge=1)
    """Largest number of requests, event streams among them, that a web process serves at once. Each API key may have as
    many as the others have left, so that a key that asks a lot leaves room for the rest."""
    client_timeout_s: float = Field(default=20.0, gt=0)
    """Seconds in which a client has to send the head of a request, the next 64 KiB of its body, and to read the next
    64 KiB of an answer. The connection of a slower one is closed."""
    default_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a query without a `timeout_s` waits for its answer."""
    max_timeout_s: float = Field(default=300.0, gt=0)
    """Largest `timeout_s` that a query may have, in seconds."""
    cache_bytes: int = Field(default=32 * 2**20, ge=0)
    """Memory in bytes for answers, which are returned again as long as their index has not changed; 0 keeps none."""
    keep_links_s: int = Field(default=30 * 24 * 3600, ge=1)
    """Seconds for which an answer is kept under its link (`POST /links`)."""
    links_bytes: int = Field(default=256 * 2**20, ge=0)
    """Disk space in bytes for all links together; 0 keeps none. Each API key may have as much as the others have
    left."""
    drain_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM during which `/readyz` fails but new requests are still answered, so that a load balancer
    has time to send them elsewhere."""
    shutdown_s: int = Field(default=5, ge=0)
    """Seconds that open requests and event streams have to finish when the server stops."""

    @field_validator("allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(host.strip() for host in value.split(",") if host.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _require_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _ALLOWED_HOST.fullmatch(host):
                raise ValueError(
                    "expected hosts without scheme, port and path, such as bergson.example.org, 10.0.0.5 or [::1], "
                    f"or * for any, got {host[:100]!r}"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _require_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            if proxy != "*":
                try:
                    ipaddress.ip_network(proxy)
                except ValueError as error:
                    raise ValueError(
                        f"expected addresses such as 10.0.0.5, networks such as 10.0.0.0/8, or *: {error}"
                    ) from None
        return value

    def resolve_timeout_s(self, timeout_s: float | None) -> float:
        """Returns the seconds that a query waits for its answer: its own `timeout_s`, or the default.

        Raises:
            InvalidInput: `timeout_s` is above the maximum.
        """
        if timeout_s is not None and timeout_s > self.max_timeout_s:
            raise InvalidInput(f"timeout_s: expected at most {self.max_timeout_s:g}, got {timeout_s:g}")
        return timeout_s or self.default_timeout_s


class ClientSettings(BaseSettings):
    """Settings of clients."""

    model_config = SettingsConfigDict(
        env_prefix="BERGSON_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    url: str = DEFAULT_URL
    """Address of the service, for clients that are given none."""
    api_key: SecretStr | None = None
    """API key of clients that are given none; `bergson demo` uses it as well."""


def describe_unknown_variables() -> str | None:
    """Returns a warning about variables of the environment that look like settings and are none; None without any."""
    known = {
        environment_variable(settings, name)
        for settings in (ServiceSettings, ClientSettings)
        for name in settings.model_fields
    }
    unknown = sorted(
        name for name in os.environ if name.upper().startswith("BERGSON_") and name.upper() not in known
    )
    if not unknown:
        return None
    known_parts, sentences = [name.removeprefix("BERGSON_") for name in known], []
    for name in unknown:
        similar = difflib.get_close_matches(name.upper().removeprefix("BERGSON_"), known_parts, 1)
        sentences.append(
            f"{name} is no setting" + (f": did you mean BERGSON_{similar[0]}?" if similar else "")
        )
    return "; ".join(sentences)
