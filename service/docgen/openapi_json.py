"""Write the OpenAPI document: `python -m service.docgen.openapi_json > docs/openapi.json`."""

import json
import sys

from service.app import create_app
from service.openapi.metadata import document
from service.settings import ServiceSettings


def text() -> str:
    """The document as it is committed."""
    return json.dumps(document(create_app(ServiceSettings())), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
