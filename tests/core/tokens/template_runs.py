"""Runs chat templates without the process that the library starts for them."""

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

from jinja2 import TemplateError


def run_here(program: str, data: Any, limit_s: float) -> Any:
    """Does what `sandbox.run_sandboxed` does, without its limits.

    A process takes a tenth of a second to start. tests/core/security has the limits.
    """
    source, written = io.StringIO(json.dumps(data, default=str)), io.StringIO()
    with (
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.object(sys, "stdin", source),
        redirect_stdout(written),
    ):
        try:
            exec(program, {"__name__": "__main__"})
        except TemplateError as error:
            raise ValueError(f"{type(error).__name__}: {error}"[-200:]) from None
    return json.loads(written.getvalue())
