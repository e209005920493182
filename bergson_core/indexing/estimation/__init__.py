"""How long a build would take: one shard of it is built for real, with the steps that repeat run in part and timed."""
