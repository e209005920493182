"""The MCP server itself: its tools, and that it refuses arguments that no tool has."""

from typing import Any, Final

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, InputRequiredResult
from pydantic import ValidationError

from bergson_core.schemas.base import describe_validation_error
from bergson_core.version import __version__
from service.mcp.results import UNTRUSTED
from service.mcp.service_access import ServiceAccess
from service.mcp.tools import Tools

INSTRUCTIONS: Final = (
    "Finds out which training documents made a language model say something. Call list_indexes first; then ask with a "
    "prompt and what the model said after it, sum_influence to find which source drives an answer, and "
    "look_at_document to read a document as a whole. Mind the space that a completion usually begins with. "
    f"{UNTRUSTED}"
)


class StrictServer(MCPServer[Any]):
    """An MCP server that refuses arguments which a tool does not have, so that a misspelled one is noticed.

    Its errors about arguments have the words that the service has for fields.
    """

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        for tool in await self.list_tools():
            known = tool.input_schema.get("properties", {})
            if tool.name == name and (unknown := sorted(arguments.keys() - known.keys())):
                expected = ", ".join(known) or "none"
                raise ToolError(f"unknown argument {unknown[0][:100]!r}: expected {expected}")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            # The SDK has pydantic's words, with the address of a page of pydantic's.
            raise ToolError(
                f"invalid_input: {describe_validation_error(error.__cause__, name)}"
            ) from error.__cause__


def make_server(access: ServiceAccess, *, allow_takedown: bool = False) -> StrictServer:
    """Returns a server whose tools ask a service.

    Args:
        access: How the service is called.
        allow_takedown: Whether there is a tool that takes documents down, which also needs a key of scope `write`.
    """
    tools = Tools(access)
    return StrictServer(
        "bergson",
        title="Bergson Service",
        description="Which training documents made a language model say that?",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=[*tools.read_only(), *(tools.writing() if allow_takedown else ())],
        log_level="WARNING",
    )
