"""What a build of preference pairs asks a reference model, and where the answers are until it is published."""
