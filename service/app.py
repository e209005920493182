"""The web application: `create_app` puts the parts together and owns what they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI

from service.auth.authorization import KeyAuthenticator, authorize, refuse_unknown_parameters
from service.auth.rate_limits import RateLimiter, redis_storage
from service.http.bodies.slow_bodies import SlowBodyMiddleware
from service.http.metrics import WebMetrics
from service.http.middleware import (
    BodyLimitMiddleware,
    HeadMiddleware,
    HostCheckMiddleware,
    KeyCheckMiddleware,
    RequestIdMiddleware,
)
from service.http.packaged_files import load_files
from service.http.problems import install_error_handlers
from service.http.proxy_prefix import ProxyPrefixMiddleware
from service.http.same_origin import SameOriginMiddleware
from service.http.whole_paths import require_whole_path
from service.indexes.answer_cache import AnswerCache
from service.openapi.metadata import openapi_document
from service.queue.broker import Broker
from service.routes import (
    attribute,
    behaviours,
    documents,
    health,
    index_changes,
    indexes,
    jobs,
    keys,
    links,
    pages,
    totals,
    unlearning,
    workers,
)
from service.settings import ServiceSettings


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.broker is not None:
        yield
        return
    async with Broker.connect(app.state.settings) as app.state.broker:
        app.state.rate_limiter = RateLimiter(
            redis_storage(app.state.broker.pool), app.state.settings.max_open_requests
        )
        yield


def create_app(settings: ServiceSettings, broker: Broker | None = None) -> FastAPI:
    """Creates the application.

    Args:
        settings: The settings of the web process.
        broker: The connection to the queue. By default the application connects to Redis when it starts.
    """
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        dependencies=[Depends(require_whole_path), Depends(authorize), Depends(refuse_unknown_parameters)],
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.broker = broker
    app.state.stopping = False
    app.state.rate_limiter = RateLimiter(max_open_calls=settings.max_open_requests)
    app.state.authenticator = KeyAuthenticator(settings)
    app.state.cache = AnswerCache(settings.cache_bytes)
    app.state.metrics = WebMetrics()
    app.openapi = partial(openapi_document, app)
    # The document lists the routes in this order, which is that of a user's work.
    for module in (
        indexes,
        documents,
        index_changes,
        behaviours,
        jobs,
        attribute,
        totals,
        unlearning,
        links,
        workers,
        keys,
        health,
        pages,
    ):
        app.include_router(module.router)
    app.mount("/static", load_files(), name="static")
    install_error_handlers(app)
    # Each middleware wraps those above it, so that a request passes the last one first.
    app.add_middleware(
        SlowBodyMiddleware, timeout_s=settings.client_timeout_s, limit_bytes=settings.max_body_bytes
    )
    app.add_middleware(BodyLimitMiddleware, limit_bytes=settings.max_body_bytes)
    app.add_middleware(KeyCheckMiddleware, authenticator=app.state.authenticator)
    app.add_middleware(SameOriginMiddleware, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(HostCheckMiddleware, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(
        ProxyPrefixMiddleware, root_path=settings.root_path, trusted_proxies=settings.trusted_proxies
    )
    app.add_middleware(RequestIdMiddleware, metrics=app.state.metrics)
    return app
