"""The page live: one machine's database, read only, for the browsers of that machine.

It answers GET and HEAD, to its own name only: a page of another site that makes its name mean this machine ("DNS
rebinding") is refused. There is no console, no debug mode, no upload. The page asks for the database's revision every
few seconds and fetches its parts again when that has changed; it is rendered at most once for each revision, and not
all the time.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import uvicorn
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kftune.dashboard.page import Sources, policy, read_sources, render_live_page, render_main, without_collecting
from kftune.errors import StorageError, UsageError
from kftune.storage.repository import Repository

__all__ = ["Address", "bind", "is_local", "make_app", "serve"]

_HTTP = 80
_LOCAL = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""No other site can have one of these names. The port may be another one's, e.g. of a tunnel that leads here."""
_REST = 2.0
"""Seconds of rest for each second of rendering, so that a page left open does not slow the study it shows."""
_KEEP_ALIVE = 75
"""Seconds that an unused connection stays open: longer than a page's pause, or it would close as the page asks."""


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    @property
    def names(self) -> frozenset[str]:
        """Values of the Host header that mean this server, besides this machine's name for itself on any port."""
        hosts = {self.host}
        if self.host in ("0.0.0.0", "::"):
            hosts |= _own_names()
        shown = {f"[{host}]" if ":" in host else host for host in hosts}
        with_port = {f"{host}:{self.port}".lower() for host in shown}
        return frozenset(with_port | ({host.lower() for host in shown} if self.port == _HTTP else set()))


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own_names() -> set[str]:
    """What this machine is called by itself and in its network."""
    names = {socket.gethostname(), socket.getfqdn()}
    try:
        names |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except socket.gaierror:
        return names  # it does not know its own address; its names remain
    return names


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address.
        port: 0 for any that is free.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}; choose another with --port or --host") from error
    return listening


class _Pages:
    """The page of the database's newest revision, rendered when it is asked for and by one thread at a time."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._lock = threading.Lock()
        self._shown = ""
        self._main = Markup()
        self._page = ""
        self._rests_until = 0.0

    def revision(self) -> str:
        """Of the database or, while the last rendering was too recent, of what was rendered."""
        if self._shown and time.monotonic() < self._rests_until:
            return self._shown
        return self._stored()

    def _stored(self) -> str:
        revisions = []
        for url in self._sources:
            with Repository.open(url, read_only=True) as repository:
                revisions.append(repository.revision())
        return "-".join(revisions)

    def main(self) -> str:
        """The ``main`` element alone."""
        with self._lock:
            self._renew()
            return self._main

    def page(self) -> str:
        """The whole page."""
        with self._lock:
            self._renew()
            return self._page

    def _renew(self) -> None:
        revision = self.revision()
        if revision == self._shown:
            return
        begun = time.monotonic()
        with without_collecting():
            # Read before the results: what comes between is then shown twice, not never.
            revision = self._stored()
            files, database = read_sources(self._sources)
            self._main = render_main(files, database=database, revision=revision)
            self._page = render_live_page(files, self._main)
        self._shown = revision
        self._rests_until = time.monotonic() + _REST * (time.monotonic() - begun)


def make_app(sources: Sources, *, names: frozenset[str]) -> ASGIApp:
    """The application.

    Args:
        sources: what is shown.
        names: values of the Host header that are answered, besides this machine's name for itself.
    """
    pages = _Pages(sources)

    def answering(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await run_in_threadpool(make)
            except (StorageError, UsageError) as error:
                return PlainTextResponse(f"{error}\n", status_code=503)

        return answer

    def text(content: str) -> Response:
        return Response(content, media_type="text/html; charset=utf-8")

    routes = [
        Route("/", answering(lambda: text(pages.page())), methods=["GET"]),
        Route("/main", answering(lambda: text(pages.main())), methods=["GET"]),
        Route("/revision", answering(lambda: JSONResponse({"revision": pages.revision()})), methods=["GET"]),
    ]
    return Starlette(debug=False, routes=routes, middleware=[Middleware(_Guard, names=names)])


class _Guard:
    """Refuses what is not a GET or HEAD to this server's own name, and says so in every answer's headers."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str]) -> None:
        self._app = app
        self._names = names
        self._headers = [
            (b"content-security-policy", f"{policy(connect=True)}; frame-ancestors 'none'".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if scope["method"] not in ("GET", "HEAD"):
            refusal: ASGIApp = PlainTextResponse("only GET\n", status_code=405, headers={"allow": "GET, HEAD"})
        elif len(hosts) != 1 or not self._is_own(hosts[0]):
            refusal = PlainTextResponse("this server does not go by that name\n", status_code=421)
        else:
            refusal = self._app
        await refusal(scope, receive, guarded)

    def _is_own(self, host: bytes) -> bool:
        return _LOCAL.fullmatch(host) is not None or host.decode("latin-1").lower() in self._names


def serve(listening: socket.socket, sources: Sources, *, host: str) -> None:
    """Serve until interrupted.

    Args:
        listening: from :func:`bind`; closed at the end.
        sources: what is shown.
        host: the name or address that :func:`bind` was given; it is answered like the address it stands for.
    """
    address, port = listening.getsockname()[:2]
    app = make_app(sources, names=Address(address, port).names | Address(host, port).names)
    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=_KEEP_ALIVE,
        log_config=None,
    )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
