"""Health check of a worker's container: status 0 if a worker of this host has sent a heartbeat that still counts."""

import json
import os
import socket
import sys

from worker.queue.redis_client import connect
from worker.queue.redis_keys import WORKERS, worker_key


def main() -> None:
    """Look for this host among the live workers."""
    client = connect(os.environ["REDIS_URL"])
    keys = [worker_key(worker_id) for worker_id in client.smembers(WORKERS)]
    beats = [json.loads(beat) for beat in client.mget(keys) if beat] if keys else []
    if not any(beat["host"] == socket.gethostname() for beat in beats):
        sys.exit(f"no live worker on {socket.gethostname()}")


if __name__ == "__main__":
    main()
