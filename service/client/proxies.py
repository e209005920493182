"""Decides whether a client reaches the service through a proxy, and says so in errors.

httpx takes proxies from the environment: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, except for the hosts in `NO_PROXY`.
It sets up all of them, also those that are for other addresses, and fails where one of them cannot be used. Here the
one proxy is found that is for the address of the service. As with curl, a loopback address is no exception.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib import request

import httpx

from bergson_core.errors import InvalidInput

_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class ProxyInUse:
    """The proxy between a client and the service.

    Attributes:
        address: Its address, without user and password.
        source: What names it: a variable of the environment, or the option `proxy`.
        host: Host of the service.
    """

    address: str
    source: str
    host: str

    @property
    def advice(self) -> str:
        """What to do about a proxy that does not work."""
        if self.source == "proxy":
            return "correct the option `proxy`, or leave it out"
        return f"correct or unset {self.source}, or add {self.host} to NO_PROXY to connect without a proxy"


def choose_proxy(options: Mapping[str, Any]) -> tuple[dict[str, Any], ProxyInUse | None]:
    """Returns options of `httpx.Client` that name the proxy to use, and that proxy; None for none.

    Options that say how to connect, such as `transport`, stay as they are.

    Args:
        options: Options of `httpx.Client`.

    Raises:
        InvalidInput: The proxy cannot be used: its address cannot be read, or it needs a package that is missing.
    """
    if options.get("transport") is not None or options.get("mounts"):
        return dict(options), None
    url, proxy, source = httpx.URL(options["base_url"]), options.get("proxy"), "proxy"
    if proxy is None:
        environment = request.getproxies() if options.get("trust_env", True) else {}
        if not any(environment.get(scheme) for scheme in ("http", "https", "all")):
            return dict(options), None
        source = _find_variable(environment, url)
        if source is None:
            # Whatever else httpx takes from the environment is stated here.
            return {"verify": httpx.create_ssl_context(), **options, "trust_env": False}, None
        address = environment[source.partition("_")[0].lower()]
        proxy = address if "://" in address else f"http://{address}"
    proxy = proxy if isinstance(proxy, httpx.Proxy) else _read_address(str(proxy), source, url.host)
    in_use = ProxyInUse(str(proxy.url), source, url.host)
    if proxy.url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise InvalidInput(
            f"the SOCKS proxy {in_use.address} of {source} cannot be used without the package socksio: run "
            f"`pip install 'httpx[socks]'`; or {in_use.advice}"
        )
    return {**options, "proxy": proxy}, in_use


def _find_variable(environment: Mapping[str, str], url: httpx.URL) -> str | None:
    """Returns the name of the variable whose proxy is for this address, or None.

    Args:
        environment: The proxies by scheme, as `urllib.request.getproxies` returns them.
        url: The address.
    """
    scheme = next((scheme for scheme in (url.scheme, "all") if environment.get(scheme)), None)
    if scheme is None or _is_exempt(url, environment.get("no", "")):
        return None
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    return next((name for name in names if os.environ.get(name)), names[1])


def _is_exempt(url: httpx.URL, no_proxy: str) -> bool:
    names = [name.strip() for name in no_proxy.split(",")]
    if "*" in names or request.proxy_bypass_environment(  # pyright: ignore[reportAttributeAccessIssue]
        url.netloc.decode(), {"no": no_proxy}
    ):
        return True
    with suppress(ValueError):  # the host is a name
        address = ipaddress.ip_address(url.host)
        for name in names:
            with suppress(ValueError):  # no address and no network
                if address in ipaddress.ip_network(name.strip("[]"), strict=False):
                    return True
    return False


def _read_address(address: str, source: str, host: str) -> httpx.Proxy:
    try:
        proxy = httpx.Proxy(address)
        if proxy.url.scheme in _SCHEMES and proxy.url.host:
            return proxy
    except (httpx.InvalidURL, ValueError):
        pass
    shown = re.sub(r"//[^/]*@", "//…@", address)
    advice = ProxyInUse(shown, source, host).advice
    raise InvalidInput(
        f"{source} is not the address of a proxy: expected an address such as http://host:port or "
        f"socks5://host:port, got {shown[:200]!r}; {advice}"
    )
