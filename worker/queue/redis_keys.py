"""Every key that the service keeps in Redis: its name, its type, what it holds and how long it lives.

Queries

    bergson:query:{query_id}            hash    message: the `Query`; deliveries: how many workers have taken it.
                                                Deleted when it is answered or withdrawn; expires a minute after its
                                                deadline.
    bergson:queries:{priority}:waiting  zset    ids of waiting queries, by turn: the lowest is taken next
    bergson:queries:{priority}:since    zset    the same ids, by the time in ms at which the query arrived
    bergson:queries:{priority}:turns    hash    lane:{key id}: turn of the latest query of that lane; started: turn of
                                                the query that was taken last. Deleted once nothing waits.
    bergson:queries:taken               zset    ids of queries that a worker has, by the time in ms at which its lease
                                                ends
    bergson:queries:bell                list    an entry for each new query; idle workers block on it
    bergson:replies:{web_id}            stream  reply: a `Reply` for one web process, which deletes what it has read.
                                                Expires a minute after the latest reply.

Jobs

    bergson:job:{job_id}                hash    message: the `Job` with its inline documents, until the job has ended;
                                                record: its `JobRecord`; token: its fencing token; lane: its lane;
                                                cancel: 1 once somebody has asked to cancel it; idempotency: the key of
                                                its idempotency key. Expires `keep_jobs_s` after the job has ended, or
                                                goes when `keep_jobs` others have ended after it.
    bergson:job:{job_id}:events         stream  record: the `JobRecord` after each change, about the latest 256 of them.
                                                Expires together with the job.
    bergson:jobs:lanes                  list    lanes with waiting jobs; the first lane has the next turn
    bergson:jobs:lane:{key id}          list    ids of the waiting jobs of a lane, in the order of their arrival
    bergson:jobs:taken                  zset    ids of jobs that a worker has, by the time in ms at which its lease ends
    bergson:jobs:created                zset    ids of all jobs, by the time of submission; ids of expired jobs are
                                                removed when jobs are listed
    bergson:jobs:ended                  list    ids of the latest jobs that have ended, `keep_jobs` at most, in the
                                                order in which they ended; some have expired
    bergson:building                    hash    index name: id of the job that builds or changes the index, from its
                                                submission until it has ended
    bergson:idempotency:{sha256}        hash    job_id; body: sha256 of what was submitted under an idempotency key. The
                                                sha256 is that of the key, the lane, the kind of job and its index
                                                (`service.queue.jobs`). Expires together with the job.

Workers and rate limits

    bergson:workers                     set     ids of workers; ids of dead workers are removed when workers are listed
    bergson:worker:{worker_id}          string  the latest `Heartbeat`. Expires when the worker counts as dead.
    bergson:rate:{…}                    string  number of calls of an API key with a rate limit, one key for the current
                                                time window and one for the window before it
                                                (`service.auth.rate_limits`). Expires after two windows.

A lane is the line in which the queries or jobs of one API key wait; its name is the id of that key, or empty where no
API key is needed. Lanes take turns, so a caller who submits a lot only delays itself.

A lease is the time for which a worker has a query or a job. The worker renews it now and then; when it ends without
renewal, another worker takes the query or job, before those that wait.

Clocks

    Redis' own       leases, arrivals of queries (`since`), the expiry of keys, ids of streams. After a step back, a
                     lease that ends later than one that starts now starts anew (`take_job.lua`, `take_queries.lua`); a
                     heartbeat or a rate that would live on for longer than it can is not counted; replies are read from
                     the beginning of their stream; events start over for an id after the latest one. After a step
                     forward, leases end early, which fencing tokens make safe, and heartbeats are missing until the
                     next one.
    web processes'   `created_at` and the order of jobs, `sent_at` and the deadline of a query. They measure their own
                     waiting with a monotonic clock.
    workers'         `started_at`, `finished_at`, and whether a query's deadline has passed. A worker measures the lease
                     that it holds with a monotonic clock.

Everything works with the commands of Redis 6.2.
"""

from typing import Final

from worker.messages import Priority

QUERY_PREFIX: Final = "bergson:query:"
QUERY_LEASES: Final = "bergson:queries:taken"
QUERY_BELL: Final = "bergson:queries:bell"
REPLIES_PREFIX: Final = "bergson:replies:"

JOB_LANES: Final = "bergson:jobs:lanes"
JOB_LANE_PREFIX: Final = "bergson:jobs:lane:"
JOB_LEASES: Final = "bergson:jobs:taken"
JOB_PREFIX: Final = "bergson:job:"
EVENTS_SUFFIX: Final = ":events"
JOBS_BY_CREATION: Final = "bergson:jobs:created"
ENDED_JOBS: Final = "bergson:jobs:ended"
BUILDING: Final = "bergson:building"
IDEMPOTENCY_PREFIX: Final = "bergson:idempotency:"

WORKERS: Final = "bergson:workers"
RATE_PREFIX: Final = "bergson:rate"


def query_key(query_id: str) -> str:
    """Returns the key of a query."""
    return QUERY_PREFIX + query_id


def waiting_keys(priority: Priority) -> tuple[str, str, str]:
    """Returns the three keys of the waiting queries of a priority: by turn, by arrival, and the turns of the lanes."""
    prefix = f"bergson:queries:{priority}"
    return f"{prefix}:waiting", f"{prefix}:since", f"{prefix}:turns"


def job_key(job_id: str) -> str:
    """Returns the key of a job."""
    return JOB_PREFIX + job_id


def events_key(job_id: str) -> str:
    """Returns the key of a job's events."""
    return job_key(job_id) + EVENTS_SUFFIX


def worker_key(worker_id: str) -> str:
    """Returns the key of a worker's heartbeat."""
    return f"bergson:worker:{worker_id}"
