"""The queue in Redis, as workers see it: jobs with leases, queries in turns, the scripts that run inside Redis."""
