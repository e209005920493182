"""Normalizers: how they are fitted from second moments, read from optimizer checkpoints, and applied to gradients."""
