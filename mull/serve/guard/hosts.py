"""Host and Origin: a page from elsewhere must not speak through its visitor's browser.

A name that an attacker points at 127.0.0.1 (DNS rebinding) shows in Host, a foreign page's request
in Origin or Sec-Fetch-Site. Programs send neither of the latter and are not concerned.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mull.serve.errors import ApiError, error_response
from mull.serve.settings import Settings

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostGuard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.names = {settings.host.lower(), *(name.lower() for name in settings.hosts)}
        self.names |= _LOOPBACK
        # An address cannot be rebound, so where others may call, any of the machine's will do.
        self.any_address = not settings.is_loopback
        if self.any_address:
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._host_refused(headers) or self._origin_refused(headers, scope["method"])
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            error = ApiError(403, refusal, code="forbidden_origin")
            await error_response(scope["path"], error)(scope, receive, send)

    def _host_refused(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is not None and (name in self.names or (self.any_address and _is_address(name))):
            return None
        return (
            f"this server is not called {(hosts or ['(no Host header)'])[0][:100]!r}: use its "
            "address, or add the name with --allow-host"
        )

    def _origin_refused(self, headers: Headers, method: str) -> str | None:
        origins = headers.getlist("origin")
        if origins and (len(origins) > 1 or not _is_same(origins[0], headers["host"])):
            return f"pages of {origins[0][:100]!r} may not use this server"
        site = headers.get("sec-fetch-site", "none")
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if site in ("none", "same-origin") or (
            is_link and headers.get("sec-fetch-dest") == "document"
        ):
            return None
        return "pages of other sites may not use this server"


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None for what cannot be one."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    is_plain = not (parts.path or parts.query or parts.fragment or "@" in host or "\\" in host)
    name = (parts.hostname or "").lower().rstrip(".")
    return name if is_plain and name else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str) -> bool:
    """Whether a page of this origin came from the server itself, or from a proxy of its name."""
    try:
        page = urlsplit(origin)
        served = urlsplit(f"//{host}")
        if page.scheme not in _DEFAULT_PORTS:
            return False
        port = _DEFAULT_PORTS[page.scheme]
        return (page.hostname, page.port or port) == (served.hostname, served.port or port)
    except ValueError:
        return False
