"""The whole system under faults: killed processes, failing Redis and disks, load, and hostile requests."""
