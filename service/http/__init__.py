"""What all routes share: middleware, strict JSON, problems, dependencies, metrics."""
