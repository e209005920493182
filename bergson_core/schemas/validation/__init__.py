"""What is reported of a value that is wrong: few errors, in terms of JSON."""
