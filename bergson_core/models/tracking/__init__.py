"""Which modules of a model are tracked: by default, by a set, an expression or name, and split into heads."""
