"""The web application: `create_app(settings)` puts the parts together and owns what they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles

from service.auth.authorization import KeyAuthenticator, authorize, refuse_unknown_parameters
from service.auth.rate_limits import RateLimiter, redis_storage
from service.http import problems
from service.http.metrics import WebMetrics
from service.http.middleware import BodyLimitMiddleware, HostCheckMiddleware, KeyCheckMiddleware, RequestIdMiddleware
from service.indexes.answer_cache import AnswerCache
from service.openapi import metadata
from service.queue.broker import Broker
from service.routes import attribute, dashboard, documents, health, index_changes, indexes, jobs, workers
from service.settings import ServiceSettings


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.broker is not None:
        yield
        return
    async with Broker.connect(app.state.settings) as app.state.broker:
        app.state.limits = RateLimiter(redis_storage(app.state.broker.pool))
        yield


def create_app(settings: ServiceSettings, broker: Broker | None = None) -> FastAPI:
    """The application. It connects to Redis when it starts, unless it is given a `broker`."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        dependencies=[Depends(authorize), Depends(refuse_unknown_parameters)],
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.broker = broker
    app.state.stopping = False
    app.state.limits = RateLimiter()
    app.state.keys = KeyAuthenticator(settings)
    app.state.cache = AnswerCache(settings.cache_bytes)
    app.state.metrics = WebMetrics()
    app.openapi = partial(metadata.openapi_document, app)
    for part in (indexes, documents, index_changes, jobs, attribute, workers, health, dashboard):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(packages=[("service", "static")]), name="static")
    problems.install_error_handlers(app)
    app.add_middleware(BodyLimitMiddleware, limit_bytes=settings.max_body_bytes)
    app.add_middleware(KeyCheckMiddleware, keys=app.state.keys)
    app.add_middleware(HostCheckMiddleware, allowed=settings.allowed_hosts)
    app.add_middleware(RequestIdMiddleware, metrics=app.state.metrics)
    return app
