"""The OpenAPI document: texts, responses, examples."""
