"""Parts of answers that only some queries ask for, such as the verification of results."""
