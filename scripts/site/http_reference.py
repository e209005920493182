"""The reference of the HTTP API, as Markdown made from the OpenAPI document."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_METHODS: Final = ("get", "post", "put", "patch", "delete")
_SCHEMAS: Final = "#/components/schemas/"


def http_reference(document: Mapping[str, Any]) -> str:
    """Returns a page with every call of an OpenAPI 3.1 document, by tag, and with the fields of every body."""
    return "\n".join(_page(document)) + "\n"


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    yield "# HTTP API\n"
    yield document["info"]["description"]
    yield "\nThe same as a file for programs: [openapi.json](../openapi.json).\n"
    for tag in document["tags"]:
        yield f"## {tag['name']}\n\n{tag['description']}\n"
        for path, operations in document["paths"].items():
            for method in _METHODS:
                operation = operations.get(method)
                if operation and tag["name"] in operation["tags"]:
                    yield from _operation(f"{method.upper()} {path}", operation)
    yield "## Fields\n\nThe bodies of requests and responses.\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield from _schema(name, schema)


def _operation(call: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### `{call}`\n\n**{operation['summary']}**\n\n{operation.get('description', '')}\n"
    parameters = operation.get("parameters", [])
    if parameters:
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for parameter in parameters:
            name, where = f"`{parameter['name']}`", parameter["in"]
            yield _row(name, where, _type(parameter["schema"]), parameter.get("description", ""))
        yield ""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body, `{media_type}`: {_type(content['schema'])}\n"
        for example in content.get("examples", {}).values():
            body = json.dumps(example["value"], indent=2, ensure_ascii=False)
            yield f"{example['summary']}:\n\n```json\n{body}\n```\n"
    yield "| status | body | |\n|---|---|---|"
    for status, response in operation["responses"].items():
        bodies = {_type(content.get("schema", {})) for content in response.get("content", {}).values()}
        yield _row(status, ", ".join(sorted(bodies)), response["description"])
    yield ""


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name} {{#{_anchor(name)}}}\n\n{schema.get('description', '')}\n"
    properties = schema.get("properties")
    if not properties:
        yield f"{_type(schema)}\n"
        return
    required = schema.get("required", ())
    yield "| field | type | default | |\n|---|---|---|---|"
    for field, value in properties.items():
        default = json.dumps(value["default"], ensure_ascii=False) if "default" in value else ""
        default = "required" if field in required else f"`{default}`" if default else ""
        yield _row(f"`{field}`", _type(value), default, value.get("description", ""))
    yield ""


def _row(*cells: str) -> str:
    texts = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(texts)} |"


def _type(schema: Mapping[str, Any]) -> str:
    """Returns the type of a value in a few words, with links to the schemas that it is made of."""
    if reference := schema.get("$ref"):
        name = reference.removeprefix(_SCHEMAS)
        return f"[{name}](#{_anchor(name)})"
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[choice])))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    return " or ".join(kind) if isinstance(kind, list) else kind


def _anchor(name: str) -> str:
    return f"fields-{name.lower()}"
