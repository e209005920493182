"""A proxy of the environment that cannot be used is an error of ours, which names it and says what to do."""

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from bergson_core.errors import BergsonError, InvalidInput, Unavailable
from service.client import AsyncClient, Client
from tests.service.helpers import serve_app

REFUSING = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serve_app(app) as url:
        yield url


async def ask_both(url: str, **options: Any) -> list[Exception | int]:
    """Returns what the blocking and the asynchronous client answer to `ready`: workers, or the error."""
    outcomes: list[Exception | int] = []
    try:
        with Client(url, retry_s=0, **options) as client:
            outcomes.append(client.ready().workers)
    except BergsonError as error:
        outcomes.append(error)
    try:
        async with AsyncClient(url, retry_s=0, **options) as client:
            outcomes.append((await client.ready()).workers)
    except BergsonError as error:
        outcomes.append(error)
    return outcomes


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP_PROXY", f"http://{REFUSING}"),
        ("http_proxy", f"http://{REFUSING}"),
        ("ALL_PROXY", REFUSING),
        ("all_proxy", f"http://user:secret@{REFUSING}"),
        ("HTTP_PROXY", f"https://{REFUSING}"),
    ],
)
async def test_a_proxy_that_refuses_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, url: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for error in await ask_both(url):
        assert isinstance(error, Unavailable)
        assert f"through the proxy http{'s' * ('https' in value)}://{REFUSING} of {variable}" in str(error)
        assert f"correct or unset {variable}, or add 127.0.0.1 to NO_PROXY" in str(error)
        assert "secret" not in str(error)


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:9", "socks5h://user:secret@127.0.0.1:9"])
async def test_a_socks_proxy_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, value: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setattr("service.client.proxies.find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", value)
    for error in await ask_both(url):
        assert isinstance(error, InvalidInput)
        assert "the SOCKS proxy socks5" in str(error) and "127.0.0.1:9 of ALL_PROXY" in str(error)
        assert "pip install 'httpx[socks]'" in str(error) and "NO_PROXY" in str(error)
        assert "secret" not in str(error)


@pytest.mark.parametrize(
    "value",
    [
        "socks4://127.0.0.1:9",
        "nonsense://x",
        "http://",
        "http://user:secret@host:port",
    ],
)
async def test_an_address_that_is_no_proxy_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, value: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    for error in await ask_both(url):
        assert isinstance(error, InvalidInput)
        assert "HTTP_PROXY is not the address of a proxy" in str(error)
        assert "secret" not in str(error)
    for error in await ask_both("http://127.0.0.1:9", proxy=value):
        assert "correct the option `proxy`, or leave it out" in str(error)


@pytest.mark.parametrize(
    "no_proxy", ["127.0.0.1", "localhost,127.0.0.1", "*", "other,*", "127.0.0.0/8", " 127.0.0.1 ,x", "0.0.1"]
)
@pytest.mark.parametrize("proxy", [f"http://{REFUSING}", "socks5://127.0.0.1:9", "nonsense://x"])
async def test_a_host_of_no_proxy_is_reached_without_one(
    monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert await ask_both(url) == [1, 1]


@pytest.mark.parametrize(
    ("address", "no_proxy", "exempt"),
    [
        ("http://localhost:9", "localhost", True),
        ("http://localhost:9", "127.0.0.1", False),
        ("http://[::1]:9", "::1", True),
        ("http://[::1]:9", "[::1]", True),
        ("http://[::1]:9", "::/64", True),
        ("http://a.example:9", ".example", True),
        ("http://a.example:9", "example", True),
        ("http://a.example:9", "a.example:9", True),
        ("http://a.example:9", "a.example:8", False),
        ("http://aexample:9", "example", False),
        ("http://10.1.2.3:9", "10.0.0.0/8", True),
        ("http://11.1.2.3:9", "10.0.0.0/8", False),
        ("http://a.example:9", "", False),
    ],
)
def test_hosts_are_exempt_as_in_curl(
    monkeypatch: pytest.MonkeyPatch, address: str, no_proxy: str, exempt: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://x")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    if exempt:
        Client(address).close()
    else:
        with pytest.raises(InvalidInput, match="ALL_PROXY"):
            Client(address)


async def test_a_proxy_for_other_addresses_and_one_that_is_not_asked_for_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    assert await ask_both(url) == [1, 1]
    monkeypatch.setenv("ALL_PROXY", "nonsense://x")
    assert await ask_both(url, trust_env=False) == [1, 1]
    Client("http://there", transport=httpx.MockTransport(lambda request: httpx.Response(200))).close()


class ForwardProxy:
    """A proxy that answers every request itself, or lets it through to where it is meant to go."""

    def __init__(self, answer: Response | None) -> None:
        self._answer, self.hosts = answer, []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        self.hosts.append(request.headers["host"])
        reply = self._answer
        if reply is None:
            async with httpx.AsyncClient(trust_env=False) as client:
                target = f"http://{request.headers['host']}/{request.url.path.rpartition('/')[2]}"
                response = await client.get(target)
            reply = Response(response.content, response.status_code)
        await reply(scope, receive, send)


async def test_a_proxy_that_works_is_used(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    proxy = ForwardProxy(None)
    with serve_app(proxy) as address:
        monkeypatch.setenv("HTTP_PROXY", address)
        assert await ask_both(url) == [1, 1]
    assert proxy.hosts == [url.removeprefix("http://")] * 2


@pytest.mark.parametrize("status", [403, 407, 502, 503])
async def test_an_answer_of_the_proxy_itself_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, url: str, status: int
) -> None:
    with serve_app(ForwardProxy(PlainTextResponse("no way", status))) as address:
        monkeypatch.setenv("HTTP_PROXY", address)
        for error in await ask_both(url):
            assert isinstance(error, BergsonError)
            assert f"got status {status} from {url}/readyz through the proxy {address} of HTTP_PROXY" in str(
                error
            )
            assert "no way" in str(error) and "NO_PROXY" in str(error)


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x", "http://", "", 5])
def test_an_address_of_no_service_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    if not address:
        monkeypatch.setenv("BERGSON_URL", "nonsense")
    with pytest.raises(InvalidInput, match="expected the address of the service"):
        Client(address or None)
