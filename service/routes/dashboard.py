"""The dashboard at /docs, which shows the live system and the OpenAPI page below it.

The page loads nothing from another host.
"""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.templating import Jinja2Templates

from service.openapi.metadata import __version__

router = APIRouter(include_in_schema=False)
_templates = Jinja2Templates(Path(__file__).parent.parent / "templates")

_HEADERS = {
    # Swagger UI sets inline styles and draws its icons from data URLs. Everything else comes from this service.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def root(request: Request) -> Response:
    """Redirects to the dashboard."""
    prefix = request.scope.get("root_path", "")
    return RedirectResponse(f"{prefix}/docs" if prefix else "docs")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Returns the dashboard."""
    return _templates.TemplateResponse(request, "docs.html", {"version": __version__}, headers=_HEADERS)
