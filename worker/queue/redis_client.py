"""Makes Redis clients from a URL, which names a server over TCP, TLS or a Unix socket, or a service behind Sentinel.

    redis://user:password@host:6379/0
    rediss://user:password@host:6379/0?ssl_ca_certs=/etc/bergson/ca.pem
    unix:///run/redis/redis.sock?db=0
    redis+sentinel://user:password@host1:26379,host2:26379/service/0?sentinel_password=...
    rediss+sentinel://...                                              TLS to the sentinels and to the master

Parameters after `?` are options of redis-py's connections. A client never sends a command twice but fails at once: only
the caller knows which commands may be repeated. No error message from here contains a password.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio
from redis import sentinel
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from bergson_core.errors import InvalidInput

_CLIENT_OPTIONS: dict[str, Any] = {"protocol": 2, "decode_responses": True, "encoding_errors": "replace"}
_SENTINEL_TIMEOUT_S = 1.5  # then the next sentinel is asked: two that hang leave a request time for the third
_DEFAULT_SENTINEL_PORT = 26379
_POOL_TIMEOUT_S = 5.0

_EXPECTED_URL = (
    "REDIS_URL cannot be read: expected redis://user:password@host:port/db, rediss://, unix:///path, or "
    "redis+sentinel://user:password@host:port,host:port/service/db; in a password, write / as %2F, @ as %40, "
    "% as %25"
)


@dataclass(frozen=True)
class _RedisAddress:
    """A parsed URL; `sentinels` is empty if the URL names the server itself."""

    options: dict[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    service: str = ""


def connect(url: str) -> redis.Redis:
    """Returns a blocking client. The server need not answer yet.

    Raises:
        InvalidInput: The URL cannot be read.
    """
    address = _parse_url(url, parse_url)
    options = {**address.options, **_CLIENT_OPTIONS, "retry": Retry(NoBackoff(), 0)}
    if not address.sentinels:
        return redis.Redis.from_pool(_require_known_options(redis.ConnectionPool(**options)))
    sentinel_options = {**address.sentinel_options, "retry": Retry(NoBackoff(), 0)}
    manager = sentinel.Sentinel(address.sentinels, sentinel_kwargs=sentinel_options)
    pool = sentinel.SentinelConnectionPool(address.service, manager, **options)
    return redis.Redis.from_pool(_require_known_options(pool))


def connect_async(url: str, connections: int) -> redis.asyncio.Redis:
    """Returns an asynchronous client. The server need not answer yet.

    Args:
        url: The URL.
        connections: Largest number of connections; a command that finds all of them in use waits up to 5 s for one.

    Raises:
        InvalidInput: The URL cannot be read.
    """
    address = _parse_url(url, parse_async_url)
    limits = {"max_connections": connections, "timeout": _POOL_TIMEOUT_S}
    options = {**address.options, **_CLIENT_OPTIONS, **limits, "retry": AsyncRetry(NoBackoff(), 0)}
    if not address.sentinels:
        pool = redis.asyncio.BlockingConnectionPool(**options)
    else:
        sentinel_options = {**address.sentinel_options, "retry": AsyncRetry(NoBackoff(), 0)}
        manager = async_sentinel.Sentinel(address.sentinels, sentinel_kwargs=sentinel_options)
        pool = _BlockingSentinelPool(address.service, manager, **options)
    return redis.asyncio.Redis.from_pool(_require_known_options(pool))


class _BlockingSentinelPool(async_sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """A pool with a bound that asks Sentinel for the address of the master whenever it opens a connection."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # the client is being closed; otherwise the master has changed
            for client in self.sentinel_manager.sentinels:
                await client.aclose()


def _parse_url(url: str, parse: Callable[[str], Any]) -> _RedisAddress:
    """Parses a URL; `parse` is redis-py's function for blocking or for asynchronous connections."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme not in ("redis+sentinel", "rediss+sentinel"):
            return _RedisAddress(dict(parse(url)))
        authority, _, path = rest.partition("/")
        user, at, hosts = authority.rpartition("@")
        service, _, tail = path.partition("/")
        service, mark, query = service.partition("?")
        if not service:
            raise ValueError
        options = dict(parse(f"redis://{user}{at}master/{tail}{mark}{query}"))
        sentinels = tuple(_parse_host(host) for host in hosts.split(","))
    except ValueError:  # the message of this error may contain a part of the password
        raise InvalidInput(_EXPECTED_URL) from None
    del options["host"]
    timeouts = ("socket_timeout", "socket_connect_timeout")
    sentinel_options: dict[str, Any] = {"protocol": 2, **dict.fromkeys(timeouts, _SENTINEL_TIMEOUT_S)}
    for name in ("username", "password"):
        sentinel_options[name] = options.pop(f"sentinel_{name}", None)
    if scheme == "rediss+sentinel":
        options["ssl"] = True
        sentinel_options |= {name: value for name, value in options.items() if name.startswith("ssl")}
    return _RedisAddress(options, sentinels, sentinel_options, service)


def _parse_host(host: str) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    return (name.strip("[]"), int(port)) if colon else (host, _DEFAULT_SENTINEL_PORT)


def _require_known_options(pool: Any) -> Any:
    """Returns the pool. Raises `InvalidInput` for an unknown option, which redis-py reports at the first connection."""
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:
        raise InvalidInput(f"REDIS_URL has an option that redis-py does not know: {error}") from None
    return pool
