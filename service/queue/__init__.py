"""The queue in Redis, as the web process sees it: jobs and queries go in, replies and progress come out."""
