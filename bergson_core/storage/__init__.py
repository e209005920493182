"""An index on disk, as any process reads it: manifest, checksums, documents by id, the log of takedowns."""
