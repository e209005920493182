"""What the API key of a call may do, so that a page offers nothing that would be refused."""

from fastapi import APIRouter

from service.auth.api_keys import ApiKey
from service.http.dependencies import CallerDep
from service.openapi import examples
from service.openapi.metadata import success_response
from service.schemas import KeyPermissions

router = APIRouter(tags=["Keys"])


@router.get(
    "/key",
    summary="Get the permissions of your key",
    responses=success_response(200, "What the key may do.", examples.KEY_PERMISSIONS),
)
async def get_key(caller: CallerDep) -> KeyPermissions:
    """Returns what the API key of this call may do. A service that needs no key allows everything."""
    return KeyPermissions(
        name=caller.name,
        scope=caller.scope,
        indexes=list(caller.indexes),
        text=caller.text,
        rate=caller.rate,
        concurrent=caller.concurrent,
        expires_at=caller.expires_at if isinstance(caller, ApiKey) else None,
    )
