"""Per-sample gradients to rows: collector, projection, normalizers, preconditioner, the processor that bundles them."""
