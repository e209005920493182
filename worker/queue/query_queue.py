"""Queries on their way through Redis: in turn, in leases, and gone once they are answered. No torch here.

Of those that wait, what a person waits for goes before what came in batches; within each of the two, callers take
turns, each query of a caller after the one before, so that who asks much waits for himself (start-time fair queueing,
Goyal, Vin and Cheng 1997, at the same cost for each query). What is in Redis is listed in `worker.queue.job_queue`.
"""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import redis
from pydantic import ValidationError

from bergson_core.errors import DeadlineExceeded, InvalidInput
from worker.messages import MAX_MESSAGE_BYTES, PRIORITIES, SCHEMA_VERSION, Priority, Problem, Query, Reply
from worker.queue import lua_scripts
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

REPLIES_PREFIX: Final = "bergson:replies:"
QUERY_LEASES: Final = "bergson:queries:taken"
QUERY_BELL: Final = "bergson:queries:bell"
MAX_REPLIES: Final = 4096
RETENTION_S: Final = 60
"""Seconds for which replies, and queries after their deadline, are kept."""
MAX_QUERY_DELIVERIES: Final = 2
QUERY_PREFIX: Final = "bergson:query:"


def query_key(query_id: str) -> str:
    return QUERY_PREFIX + query_id


def waiting_keys(priority: Priority) -> tuple[str, str, str]:
    """(queries by their turn, queries by the time they came, turns) of those that wait."""
    return tuple(f"bergson:queries:{priority}:{what}" for what in ("waiting", "since", "turns"))  # type: ignore[return-value]


def ask_query_arguments(query: Query, lane: str, settings: Settings) -> dict[str, Any]:
    """Arguments of `scripts.ASK`, for the web process; `lane` says whose turn it is."""
    ttl_s = max(1, round(query.deadline - time.time())) + RETENTION_S
    return {
        "keys": [*waiting_keys(query.priority), QUERY_LEASES, QUERY_BELL, query_key(query.query_id)],
        "args": [
            *(settings.max_queued_queries, round(1000 * settings.max_queue_wait_s)),
            *(query.query_id, query.model_dump_json(), lane, ttl_s),
        ],
    }


class QueryQueue:
    """Takes queries, keeps their leases, and sends what came of them.

    All methods raise `redis.RedisError` where Redis does not answer; all but `take` may then be called again.
    """

    def __init__(self, client: redis.Redis, settings: Settings, metrics: WorkerMetrics):
        self._redis, self._settings, self._metrics = client, settings, metrics
        self._take = client.register_script(lua_scripts.TAKE_QUERIES)
        self._hold = client.register_script(lua_scripts.RENEW_QUERIES)
        self._keys = [QUERY_LEASES, QUERY_BELL, *(key for one in PRIORITIES for key in waiting_keys(one))]

    def take(self, block_s: float = 0) -> list[Query]:
        """What waits, up to `query_batch` of one priority: what a dead worker left, or else what is next.

        Waits up to `block_s` seconds (at most 4) where there is nothing. What nobody waits for any more is dropped;
        what cannot be read, or has ended two workers already, is refused.
        """
        found = self._next()
        if not found and block_s and self._redis.blpop([QUERY_BELL], timeout=block_s):
            found = self._next()
        accepted = (self._accept(*one) for one in found)
        return [query for query in accepted if query is not None]

    def renew(self, taken: Sequence[Query]) -> None:
        """Starts the leases of queries in this worker's hands anew."""
        if taken:
            self._hold(keys=[QUERY_LEASES], args=[self._lease_ms, *(one.query_id for one in taken)])

    def send_replies(self, replies: Iterable[tuple[Query, Reply]]) -> None:
        """Sends the replies and takes their queries off the queue, all or none."""
        with self._redis.pipeline() as pipe:
            for query, reply in replies:
                self._send(pipe, query.reply_to, reply)
                _drop(pipe, query.query_id)
            pipe.execute()

    def is_awaited(self, query: Query) -> bool:
        """Whether somebody still waits for the answer: who does not any more has removed the query."""
        return bool(self._redis.exists(query_key(query.query_id)))

    @property
    def _lease_ms(self) -> int:
        return round(1000 * self._settings.query_lease_s)

    def _next(self) -> list[tuple[str, str, int]]:
        """(id, message, workers that took it until now, this one included) of each query that was taken."""
        arguments = [self._settings.query_batch, self._lease_ms, QUERY_PREFIX, MAX_MESSAGE_BYTES]
        found = cast("list[Any]", self._take(keys=self._keys, args=arguments))
        return list(zip(found[::3], found[1::3], map(int, found[2::3]), strict=True))

    def _accept(self, query_id: str, raw: str, deliveries: int) -> Query | None:
        try:
            query = Query.model_validate_json(raw)
        except ValidationError as error:
            self._refuse(query_id, raw, Problem(code=InvalidInput.code, detail=describe_unreadable(raw, error)))
            return None
        if time.time() >= query.deadline:
            logger.info("query %s dropped: its deadline has passed", query_id)
            self._metrics.queries.labels(DeadlineExceeded.code).inc()
            _drop(self._redis, query_id)
        elif query.query_id != query_id or not query.reply_to.startswith(REPLIES_PREFIX):
            detail = f"expected query_id {query_id} and reply_to {REPLIES_PREFIX}..."
            problem = Problem(code=InvalidInput.code, detail=detail)
            self._refuse(query_id, raw, problem)
        elif deliveries > MAX_QUERY_DELIVERIES:
            self._metrics.given_up.labels("query").inc()
            problem = Problem(code="internal", detail="the workers that took this query died")
            self._refuse(query_id, raw, problem)
        else:
            self._metrics.reclaimed.labels("query").inc(deliveries > 1)
            return query
        return None

    def _refuse(self, query_id: str, raw: str, problem: Problem) -> None:
        """Answers with a problem, where it can be told whom to answer, and takes the query off the queue."""
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


def _drop(redis: Any, query_id: str) -> None:
    redis.zrem(QUERY_LEASES, query_id)
    redis.delete(query_key(query_id))


def parse_fields(raw: str) -> dict[str, Any]:
    """The fields of a message that may be anything."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def describe_unreadable(raw: str, error: ValidationError) -> str:
    """What is said of a message that this version does not read."""
    version = parse_fields(raw).get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        return f"message has schema version {version!r}; this worker reads {SCHEMA_VERSION}: upgrade the older side"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "message"
    return f"message cannot be read: {where}: {first['msg']}"
