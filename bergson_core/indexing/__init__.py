"""An index is built, extended, compacted, estimated and published."""
