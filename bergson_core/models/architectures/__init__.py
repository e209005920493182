"""What differs between architectures: fused experts, and which modules are an MLP or attention."""
