"""Renders chats with chat templates, in a sandbox: imports nothing but jinja2 and the standard library."""
