"""What users send and get back: validated specs of builds, queries and evaluations, and their results."""
