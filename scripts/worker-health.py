"""Health check of a worker's container: exits with 0 if a worker of this host has a heartbeat that has not expired."""

import json
import os
import socket
import sys

from worker.queue.redis_client import connect
from worker.queue.redis_keys import WORKERS, worker_key


def main() -> None:
    """Exits with an error if no live worker is on this host."""
    client = connect(os.environ["REDIS_URL"])
    keys = [worker_key(str(worker_id)) for worker_id in client.smembers(WORKERS)]
    heartbeats = [json.loads(raw) for raw in client.mget(keys) if raw] if keys else []
    if not any(heartbeat["host"] == socket.gethostname() for heartbeat in heartbeats):
        sys.exit(f"no live worker on {socket.gethostname()}")


if __name__ == "__main__":
    main()
