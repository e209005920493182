"""What users send and get back: specs of a build, a query and an evaluation, and the results; validated, without torch."""
