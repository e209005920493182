"""One worker: its loop, the jobs and queries that it runs, its open indexes, its heartbeat."""
