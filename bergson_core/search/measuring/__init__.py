"""What is measured of a search before its index is published: recall, and the threshold of the notice."""
