"""Reads the heartbeats of the live workers."""

import logging
from typing import Any, Final, cast

from pydantic import ValidationError
from redis import RedisError
from redis.asyncio import Redis

from worker.messages import Heartbeat
from worker.queue import redis_keys

logger = logging.getLogger(__name__)

_CLOCK_TOLERANCE_S: Final = 600.0
"""A heartbeat that would live for so much longer than it should was sent before the clock of Redis stepped back. A live
worker sends the next one within seconds."""


async def read_heartbeats(redis: Redis, ttl_s: float) -> list[Heartbeat]:
    """Returns the latest heartbeats of the live workers, in the order of their ids, and forgets the dead workers.

    Args:
        redis: The connection to Redis.
        ttl_s: Seconds for which a heartbeat lives.

    Raises:
        RedisError: Redis does not answer.
    """
    worker_ids = sorted(await cast("Any", redis.smembers(redis_keys.WORKERS)))
    if not worker_ids:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for worker_id in worker_ids:
            pipe.get(redis_keys.worker_key(worker_id))
            pipe.pttl(redis_keys.worker_key(worker_id))
        replies = await pipe.execute(raise_on_error=False)
    for error in (reply for reply in replies if isinstance(reply, RedisError)):
        if not str(error).startswith(
            "WRONGTYPE"
        ):  # a key of another type is no heartbeat, and hides no other
            raise error
    messages = dict(zip(worker_ids, zip(replies[::2], replies[1::2], strict=True), strict=True))
    dead_ids = [worker_id for worker_id, (message, _) in messages.items() if message is None]
    if dead_ids:
        await cast("Any", redis.srem(redis_keys.WORKERS, *dead_ids))
    heartbeats = [
        _parse_heartbeat(message)
        for message, remaining_ms in messages.values()
        if isinstance(message, str) and remaining_ms <= 1000 * (ttl_s + _CLOCK_TOLERANCE_S)
    ]
    return [heartbeat for heartbeat in heartbeats if heartbeat is not None]


def _parse_heartbeat(message: str) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(message)
    except ValidationError as error:
        logger.warning("a heartbeat cannot be read: %s", error)
        return None
