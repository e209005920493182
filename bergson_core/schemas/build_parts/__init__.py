"""Parts of the spec of a build that have rules of their own."""
