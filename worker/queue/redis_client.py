"""Clients of Redis, from a URL: by TCP, TLS or a Unix socket, or of the master that Sentinel names.

    redis://user:password@host:6379/0
    rediss://user:password@host:6379/0?ssl_ca_certs=/etc/bergson/ca.pem
    unix:///run/redis/redis.sock?db=0
    redis+sentinel://user:password@host1:26379,host2:26379/service/0?sentinel_password=...
    rediss+sentinel://...                                              TLS to the sentinels and to the master

What stands after `?` are options of redis-py's connections. A client fails at once instead of sending a command twice:
the caller knows what may be repeated. A password is in no message from here. No torch here.
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

_OURS: dict[str, Any] = {"protocol": 2, "decode_responses": True, "encoding_errors": "replace"}
_SENTINEL_WAIT_S = 2.0  # for one that does not answer, before the next is asked
_SENTINEL_PORT = 26379
_POOL_WAIT_S = 5.0

_EXPECTED = (
    "REDIS_URL cannot be read: expected redis://user:password@host:port/db, rediss://, unix:///path, or "
    "redis+sentinel://user:password@host:port,host:port/service/db; in a password, write / as %2F, @ as %40, "
    "% as %25"
)


@dataclass(frozen=True)
class _RedisAddress:
    """What a URL says; `sentinels` is empty where it names the server itself."""

    options: dict[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    service: str = ""


def connect(url: str) -> redis.Redis:
    """A client that blocks. It need not be reachable. Raises `InvalidInput` where the URL makes no sense."""
    place = _read(url, parse_url)
    options = {**place.options, **_OURS, "retry": Retry(NoBackoff(), 0)}
    if not place.sentinels:
        return redis.Redis.from_pool(_checked(redis.ConnectionPool(**options)))
    asked = {**place.sentinel_options, "retry": Retry(NoBackoff(), 0)}
    manager = sentinel.Sentinel(place.sentinels, sentinel_kwargs=asked)
    pool = sentinel.SentinelConnectionPool(place.service, manager, **options)
    return redis.Redis.from_pool(_checked(pool))


def connect_async(url: str, connections: int) -> redis.asyncio.Redis:
    """The same to be awaited: who needs a connection while all `connections` are in use waits for one."""
    place = _read(url, parse_async_url)
    limits = {"max_connections": connections, "timeout": _POOL_WAIT_S}
    options = {**place.options, **_OURS, **limits, "retry": AsyncRetry(NoBackoff(), 0)}
    if not place.sentinels:
        return redis.asyncio.Redis.from_pool(_checked(redis.asyncio.BlockingConnectionPool(**options)))
    asked = {**place.sentinel_options, "retry": AsyncRetry(NoBackoff(), 0)}
    manager = async_sentinel.Sentinel(place.sentinels, sentinel_kwargs=asked)
    return redis.asyncio.Redis.from_pool(_checked(_SentinelPool(place.service, manager, **options)))


class _SentinelPool(async_sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Waits for a connection, and asks Sentinel whereto each time that one is opened."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # the client is closed; otherwise the master has changed
            for one in self.sentinel_manager.sentinels:
                await one.aclose()


def _read(url: str, parse: Callable[[str], Any]) -> _RedisAddress:
    """`parse` is redis-py's, which names its class of connections: one that blocks, or one to be awaited."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme not in ("redis+sentinel", "rediss+sentinel"):
            return _RedisAddress(dict(parse(url)))
        where, _, path = rest.partition("/")
        user, at, hosts = where.rpartition("@")
        service, _, tail = path.partition("/")
        service, mark, query = service.partition("?")
        if not service:
            raise ValueError
        options = dict(parse(f"redis://{user}{at}master/{tail}{mark}{query}"))
        sentinels = tuple(_address(host) for host in hosts.split(","))
    except ValueError:  # its text may quote a part of the password
        raise InvalidInput(_EXPECTED) from None
    del options["host"]
    asked = {"protocol": 2, "socket_timeout": _SENTINEL_WAIT_S, "socket_connect_timeout": _SENTINEL_WAIT_S}
    for name in ("username", "password"):
        asked[name] = options.pop(f"sentinel_{name}", None)
    if scheme == "rediss+sentinel":
        options["ssl"] = True
        asked |= {name: value for name, value in options.items() if name.startswith("ssl")}
    return _RedisAddress(options, sentinels, asked, service)


def _address(host: str) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    return (name.strip("[]"), int(port)) if colon else (host, _SENTINEL_PORT)


def _checked(pool: Any) -> Any:
    """The pool, if it knows the options of its connections: else it would say so only when it opens the first."""
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:
        raise InvalidInput(f"REDIS_URL has an option that redis-py does not know: {error}") from None
    return pool
