"""The two pages: the explorer at /, and the dashboard at /docs with the OpenAPI page below it.

Both load nothing from another host.
"""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.templating import Jinja2Templates

from service.http.packaged_files import STATIC, load_files
from service.openapi.metadata import __version__

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(Path(__file__).parent.parent / "templates")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {style}; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY.format(style="'self'"),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
# Swagger UI sets inline styles and draws its icons from data URLs.
_DOCS_HEADERS = _HEADERS | {"Content-Security-Policy": _POLICY.format(style="'self' 'unsafe-inline'")}


@cache
def _find_scripts(*folders: str) -> list[str]:
    """Returns the paths of the scripts in these folders, below `static`."""
    paths = [path for folder in folders for path in (STATIC / folder).rglob("*.js")]
    return sorted(path.relative_to(STATIC).as_posix() for path in paths)


def _render(request: Request, name: str, headers: dict[str, str], **context: object) -> Response:
    """Renders a page. Its addresses begin with the prefix of a proxy if it is known, and are relative otherwise.

    A proxy may leave out the slash behind its prefix, and relative addresses would lead past it then.
    """
    prefix = request.scope.get("root_path", "")
    base = f"{prefix}/" if prefix else ""
    context |= {"version": __version__, "base": base, "static": f"{base}static/{load_files().digest}"}
    return _templates.TemplateResponse(request, name, context, headers=headers)


@router.get("/")
async def explorer(request: Request) -> Response:
    """Returns the explorer. All scripts in its folders are modules, except the one that starts them."""
    paths = _find_scripts("vendor", "shared", "answer", "behaviours", "follow_up", "explorer")
    modules = [path for path in paths if path != "explorer/start.js"]
    return _render(request, "explorer.html", _HEADERS, modules=modules)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Returns the dashboard."""
    return _render(request, "docs.html", _DOCS_HEADERS)
