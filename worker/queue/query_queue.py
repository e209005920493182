"""The worker's side of the queue of queries: takes queries in turn, renews their leases, and sends the replies.

Interactive queries, for which a person waits, go before batch queries. Within each of these two priorities lanes take
turns: a query's turn comes after the previous query of its lane, so a caller who asks a lot delays only itself
(start-time fair queueing, Goyal, Vin and Cheng 1997, with the same cost for each query). Turns and leases are Lua
scripts of our own because task queues such as Celery, RQ and dramatiq serve a queue in the order of arrival.
`worker.queue.redis_keys` explains the keys.
"""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import redis
from pydantic import ValidationError

from bergson_core.errors import DeadlineExceeded, InvalidInput, QueueFull
from worker.messages import MAX_MESSAGE_BYTES, PRIORITIES, SCHEMA_VERSION, Query, Reply
from worker.problem import Problem
from worker.queue import lua_scripts
from worker.queue.redis_errors import UnexpectedReply, check_replies, require_list
from worker.queue.redis_keys import (
    QUERY_BELL,
    QUERY_LEASES,
    QUERY_PREFIX,
    REPLIES_PREFIX,
    query_key,
    waiting_keys,
)
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

MAX_REPLIES: Final = 4096
"""Largest number of unread replies to one web process, about; older replies are dropped."""
RETENTION_S: Final = 60
"""Seconds for which replies are kept, and queries after their deadline."""
MAX_QUERY_DELIVERIES: Final = 2
"""Number of workers that may take a query before it is refused as one that kills its workers."""


def ask_query_arguments(query: Query, lane: str, settings: Settings) -> dict[str, Any]:
    """Returns the keys and arguments of `lua_scripts.ASK_QUERY`, which the web process runs.

    Args:
        query: The query to add.
        lane: The lane in which it waits.
        settings: Limits of the queue.
    """
    ttl_s = max(1, round(query.deadline - time.time())) + RETENTION_S
    return {
        "keys": [
            *waiting_keys(query.priority),
            QUERY_LEASES,
            QUERY_BELL,
            query_key(query.query_id),
            QUERY_PREFIX,
        ],
        "args": [
            settings.max_queued_queries,
            round(1000 * settings.max_queue_wait_s),
            query.query_id,
            query.model_dump_json(),
            lane,
            ttl_s,
            REPLIES_PREFIX,
            MAX_REPLIES,
            RETENTION_S,
            QueueFull.code,
            f"{settings.max_queued_queries} queries wait already, and others have fewer among them: try again in a "
            "second, or start more workers",
        ],
    }


class QueryQueue:
    """Takes queries, renews their leases, and sends the replies.

    All methods raise `redis.RedisError` if Redis does not answer; all but `take` may then be called again.
    """

    def __init__(self, client: redis.Redis, settings: Settings, metrics: WorkerMetrics):
        self._redis, self._settings, self._metrics = client, settings, metrics
        self._take_script = client.register_script(lua_scripts.TAKE_QUERIES)
        self._renew_script = client.register_script(lua_scripts.RENEW_QUERIES)
        self._keys = [
            QUERY_LEASES,
            QUERY_BELL,
            *(key for priority in PRIORITIES for key in waiting_keys(priority)),
        ]

    @check_replies()
    def take(self, block_s: float = 0) -> list[Query]:
        """Takes up to `query_batch` queries of one priority: those whose leases have ended, or else the next ones.

        A query whose deadline has passed is dropped. A query that cannot be read, or that has ended two workers
        already, is refused.

        Args:
            block_s: Seconds to wait for a query if there is none, at most 4.

        Returns:
            The queries, for `query_lease_s` seconds in this worker's hands.
        """
        entries = self._take_next()
        if not entries and block_s and self._redis.blpop([QUERY_BELL], timeout=block_s):
            entries = self._take_next()
        accepted = (self._accept(*entry) for entry in entries)
        return [query for query in accepted if query is not None]

    @check_replies()
    def renew(self, queries: Sequence[Query]) -> None:
        """Restarts the leases of the queries in this worker's hands."""
        if queries:
            query_ids = (query.query_id for query in queries)
            self._renew_script(keys=[QUERY_LEASES], args=[self._lease_ms, *query_ids])

    @check_replies()
    def send_replies(self, replies: Iterable[tuple[Query, Reply]]) -> None:
        """Sends replies and removes their queries from the queue, all or none."""
        with self._redis.pipeline() as pipe:
            for query, reply in replies:
                self._send(pipe, query.reply_to, reply)
                _drop(pipe, query.query_id)
            pipe.execute()

    @check_replies()
    def is_awaited(self, query: Query) -> bool:
        """Returns whether the caller still waits for the answer; a web process deletes a query when it is withdrawn."""
        return bool(self._redis.exists(query_key(query.query_id)))

    @property
    def _lease_ms(self) -> int:
        return round(1000 * self._settings.query_lease_s)

    def _take_next(self) -> list[tuple[str, str, int]]:
        """Returns (query_id, message, number of workers that have taken it, this one included) of each query."""
        arguments = [self._settings.query_batch, self._lease_ms, QUERY_PREFIX, MAX_MESSAGE_BYTES]
        flat = require_list(self._take_script(keys=self._keys, args=arguments))
        if len(flat) % 3 or not all(isinstance(deliveries, int) for deliveries in flat[2::3]):
            raise UnexpectedReply("expected ids, messages and numbers of queries, got another list")
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))

    def _accept(self, query_id: str, raw: str, deliveries: int) -> Query | None:
        try:
            query = Query.model_validate_json(raw)
        except ValidationError as error:
            problem = Problem(code=InvalidInput.code, detail=describe_unreadable(raw, error))
            self._refuse(query_id, raw, problem)
            return None
        if time.time() >= query.deadline:
            logger.info("query %s dropped: its deadline has passed", query_id)
            self._metrics.queries.labels(DeadlineExceeded.code).inc()
            _drop(self._redis, query_id)
        elif query.query_id != query_id or not query.reply_to.startswith(REPLIES_PREFIX):
            detail = f"expected query_id {query_id} and reply_to {REPLIES_PREFIX}..."
            self._refuse(query_id, raw, Problem(code=InvalidInput.code, detail=detail))
        elif deliveries > MAX_QUERY_DELIVERIES:
            self._metrics.given_up.labels("query").inc()
            detail = "the workers that took this query died"
            self._refuse(query_id, raw, Problem(code="internal", detail=detail))
        else:
            self._metrics.reclaimed.labels("query").inc(deliveries > 1)
            return query
        return None

    def _refuse(self, query_id: str, raw: str, problem: Problem) -> None:
        """Replies with a problem if the message names a stream of replies, and removes the query from the queue."""
        logger.warning("query %s refused: %s", query_id, problem.detail)
        self._metrics.queries.labels(problem.code).inc()
        reply_to = parse_fields(raw).get("reply_to")
        with self._redis.pipeline() as pipe:
            if isinstance(reply_to, str) and reply_to.startswith(REPLIES_PREFIX):
                self._send(pipe, reply_to, Reply(query_id=query_id, problem=problem))
            _drop(pipe, query_id)
            pipe.execute()

    @staticmethod
    def _send(pipe: Any, reply_to: str, reply: Reply) -> None:
        pipe.xadd(reply_to, {"reply": reply.model_dump_json()}, maxlen=MAX_REPLIES, approximate=True)
        pipe.expire(reply_to, RETENTION_S)


def _drop(client: Any, query_id: str) -> None:
    client.zrem(QUERY_LEASES, query_id)
    client.delete(query_key(query_id))


def parse_fields(raw: str) -> dict[str, Any]:
    """Returns the fields of a message from an untrusted source, or no fields if it is not a JSON object."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def describe_unreadable(raw: str, error: ValidationError) -> str:
    """Returns why this version of the worker cannot read a message, and what to do about it.

    Args:
        raw: The message.
        error: The error of its validation.
    """
    version = parse_fields(raw).get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        return f"message has schema version {version!r}; this worker reads {SCHEMA_VERSION}: upgrade the older side"
    first_error = error.errors(include_url=False, include_input=False)[0]
    location = ".".join(str(part) for part in first_error["loc"]) or "message"
    return f"message cannot be read: {location}: {first_error['msg']}"
