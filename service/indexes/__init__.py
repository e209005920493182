"""What a web process knows of the indexes on disk: the catalog, cached answers, runs of the canary."""
