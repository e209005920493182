"""`Client`: the methods of `AsyncClient`, blocking instead of awaited.

`service.client.sessions` says why that needs neither an event loop nor a thread.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, get_args

from service.client.async_client import AsyncClient
from service.client.sessions import BlockingSession, iterate_without_event_loop, run_without_event_loop

P = ParamSpec("P")
T = TypeVar("T")


class _ClientWithoutEventLoop(AsyncClient):
    """An `AsyncClient` whose coroutines never suspend."""

    _session_class = BlockingSession


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[Client, P], T]":
    """Returns the method of `Client` that does what the coroutine `method` of `AsyncClient` does."""

    @wraps(method)
    def call(client: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        return run_without_event_loop(method(client._async_client, *args, **kwargs))

    return call


def _blocking_iterator(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    """Returns the method of `Client` that iterates over what `method` of `AsyncClient` yields."""

    @wraps(method)
    def call(client: "Client", *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return iterate_without_event_loop(method(client._async_client, *args, **kwargs))

    # `wraps` would have help() say that the method returns an AsyncIterator.
    signature = inspect.signature(method)
    item_type = get_args(signature.return_annotation)
    setattr(call, "__signature__", signature.replace(return_annotation=Iterator[item_type]))  # noqa: B010
    return call


class Client:
    """A client of the service.

    A request that the service refuses for now (429, 503) is repeated, no sooner than the service asks for. So is a
    request that got no answer, provided that it never arrived or that repeating it does no harm. An error that the
    service answers is raised as its class of `bergson_core.errors`; `Unavailable` is raised when the service does not
    answer at all, `DeadlineExceeded` when it does not answer in time.

    A client can be used as a context manager, and by several threads at once.

    Args:
        url: Address of the service. By default the environment variable `BERGSON_URL`, or port 8000 of this machine.
        api_key: API key, `bg_…`. By default the environment variable `BERGSON_API_KEY`; an empty text sends none.
        timeout_s: Seconds to wait for an answer; methods that take a `timeout_s` of their own wait 10 s longer than
            that.
        retry_s: Seconds for which a request is repeated, counted from its first failure; 0 repeats none.
        options: Further options of `httpx.Client`: `verify` for a certificate authority, `headers`, `proxy`, …

    Raises:
        InvalidInput: The address, or that of a proxy in the environment, cannot be read; or a SOCKS proxy needs a
            package that is missing.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_s: float = 60.0,
        **options: Any,
    ):
        self._async_client = _ClientWithoutEventLoop(
            url, api_key, timeout_s=timeout_s, retry_s=retry_s, **options
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    close = _blocking(AsyncClient.close)
    attribute = _blocking(AsyncClient.attribute)
    attribute_batch = _blocking(AsyncClient.attribute_batch)
    attribute_indexes = _blocking(AsyncClient.attribute_indexes)
    totals = _blocking(AsyncClient.totals)
    build = _blocking(AsyncClient.build)
    append = _blocking(AsyncClient.append)
    fit_profile = _blocking(AsyncClient.fit_profile)
    compact = _blocking(AsyncClient.compact)
    preview_unlearning = _blocking(AsyncClient.preview_unlearning)
    estimate = _blocking(AsyncClient.estimate)
    index = _blocking(AsyncClient.index)
    indexes = _blocking_iterator(AsyncClient.indexes)
    delete_index = _blocking(AsyncClient.delete_index)
    document = _blocking(AsyncClient.document)
    take_down = _blocking(AsyncClient.take_down)
    create_behaviour = _blocking(AsyncClient.create_behaviour)
    behaviours = _blocking(AsyncClient.behaviours)
    behaviour = _blocking(AsyncClient.behaviour)
    delete_behaviour = _blocking(AsyncClient.delete_behaviour)
    job = _blocking(AsyncClient.job)
    jobs = _blocking_iterator(AsyncClient.jobs)
    cancel = _blocking(AsyncClient.cancel)
    events = _blocking_iterator(AsyncClient.events)
    wait = _blocking(AsyncClient.wait)
    make_link = _blocking(AsyncClient.make_link)
    link = _blocking(AsyncClient.link)
    remove_link = _blocking(AsyncClient.remove_link)
    workers = _blocking(AsyncClient.workers)
    models = _blocking(AsyncClient.models)
    permissions = _blocking(AsyncClient.permissions)
    ready = _blocking(AsyncClient.ready)
