"""An MCP server, by which assistants ask a running service: `bergson mcp`. It needs the extra `[mcp]`."""
