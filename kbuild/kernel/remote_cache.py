"""Use a remote cache of ccache(1): Redis or HTTP."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from kbuild.core import fs, sandbox
from kbuild.core.errors import UserError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind
from kbuild.core.secrets import redact_url
from kbuild.kernel.help import Help, is_host, resolver

logger = logging.getLogger(__name__)

# Paths in the root.
_SOCKET = "/mnt/cache-server/socket"
REDIS_PORT, HTTP_PORT = 6379, 80
# ccache reads its configuration here and writes its statistics here.
CONFIG, STATISTICS = "ccache.conf", "/mnt/statistics"
_SCHEMES = {"redis": REDIS_PORT, "http": HTTP_PORT}
_ANSWER_TIMEOUT_S = 5.0
# ccache's names for its backends in "ccache --version", by the scheme of a URL.
_FEATURES = {"redis": "redis-storage", "redis+unix": "redis+unix-storage", "http": "http-storage"}


@dataclass(frozen=True)
class CacheServer:
    """A ccache storage backend; ``attributes`` are ccache's own, such as read-only."""

    scheme: str
    address: str | tuple[str, int]  # a socket's path, or host and port
    url: str = field(repr=False)  # for ccache in the root
    password: str | None = field(default=None, repr=False)
    attributes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def option(self) -> str:
        """Return the value of ccache's option remote_storage."""
        return "|".join((self.url, *self.attributes))


@dataclass(frozen=True)
class Statistics:
    """ccache's counts of one build."""

    hits: int
    misses: int
    counters: Mapping[str, int]  # ccache's own names
    missed: tuple[str, ...]  # source files as named to ccache, each once

    @property
    def from_remote(self) -> int:
        """Return the number of results that the remote cache delivered."""
        return self.counters.get("remote_storage_hit", 0)


def parse_cache(url: str) -> CacheServer:
    """Parse the URL of a remote cache; raises UserError for one that ccache cannot use.

    redis://[[user]:password@]host[:port][/database], redis+unix:///socket[?db=N] or
    http://host[:port]/path, and ccache's attributes after a "|".
    """
    bare, *attributes = url.split("|")
    if " " in url or not url.isprintable():
        raise _bad_cache(url, "a space or an unprintable character: give one URL")
    try:
        parts = urlsplit(bare)
        port = parts.port
    except ValueError:
        # The exception's own text may quote the password.
        raise _bad_cache(url, "no host with a port from 1 to 65535") from None
    if parts.scheme == "redis+unix":
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/") or path == "/" or "\0" in path:
            raise _bad_cache(url, "no absolute path of a socket (three slashes)")
        inner = f"redis+unix://{_SOCKET}" + (f"?{parts.query}" if parts.query else "")
        return CacheServer("redis+unix", path, inner, None, tuple(attributes))
    if parts.scheme not in _SCHEMES:
        raise _bad_cache(url, f"the scheme {parts.scheme or 'none'!r}")
    if not parts.hostname or not is_host(parts.hostname):
        raise _bad_cache(url, "no host name")
    if port == 0:
        raise _bad_cache(url, "no port from 1 to 65535")
    address = (parts.hostname, port or _SCHEMES[parts.scheme])
    return CacheServer(parts.scheme, address, bare, _password(parts), tuple(attributes))


def _password(parts: SplitResult) -> str | None:
    return None if parts.password is None else unquote(parts.password)


def _bad_cache(url: str, found: str) -> UserError:
    return UserError(
        f"--cache {redact_url(url)} is not a cache server that ccache can use",
        expected="redis://host[:port], redis+unix:///path/of/socket or http://host[:port]/path",
        found=found,
        hint="in a password, write / as %2F and @ as %40" if "@" in url else None,
    )


def answers(server: CacheServer) -> str | None:
    """Return why a cache server cannot be used now, or None if it answers."""
    try:
        with _connect(server.address) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            if server.scheme == "http":
                assert isinstance(server.address, tuple)
                host = f"{server.address[0]}:{server.address[1]}"
                path = urlsplit(server.url).path or "/"
                connection.sendall(f"HEAD {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                said = connection.recv(64)
                return None if said.startswith(b"HTTP/") else f"it does not speak HTTP: {said!r}"
            connection.sendall(b"PING\r\n")
            said = connection.recv(64)
            # Without its password Redis answers NOAUTH; ccache gets the password in the URL.
            if said.startswith(b"+PONG") or (said.startswith(b"-NOAUTH") and server.password):
                return None
            return f"it is not a Redis that we may use: {said.decode(errors='replace').strip()!r}"
    except OSError as error:
        return error.strerror or str(error)


def _connect(address: str | tuple[str, int]) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=_ANSWER_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def cache_help(root: Root, server: CacheServer, place: Path) -> Help | None:
    """Return ccache's help for a server; if it is of no use, log a warning and return None.

    The root shows ``place`` as /mnt/statistics.
    """
    said = sandbox.enter(root, ["ccache", "--version"], timeout_s=60).stdout
    if _FEATURES[server.scheme] not in said.split():
        logger.warning(
            "the remote cache is not used: %s of %s cannot use %s",
            said.splitlines()[0].replace(" version", ""),
            root.suite,
            server.scheme,
        )
        return None
    why = answers(server)
    if why is not None:
        logger.warning("the remote cache is not used: %s: %s", redact_url(server.url), why)
        return None
    # In a file, because command lines are visible to every user and kept in logs.
    fs.write_atomic(place / CONFIG, f"remote_storage = {server.option}\n", mode=0o600)
    env = {"CCACHE_CONFIGPATH": f"{STATISTICS}/{CONFIG}"}
    if isinstance(server.address, str):
        # A socket is a file, so the root needs no network.
        return Help(env, (Bind(Path(server.address), _SOCKET, writable=True),))
    return Help(env, resolver(root), network=True)


def read_statistics(path: Path) -> Statistics | None:
    """Read ccache's CCACHE_STATSLOG; return None if ccache wrote nothing.

    Each call writes a comment with the source file, and a line for each counter that it raised.
    """
    if not path.is_file():
        return None
    counters: Counter[str] = Counter()
    missed: dict[str, None] = {}
    file = ""
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("# "):
            file = line[2:]
        elif line:
            counters[line] += 1
            if line == "cache_miss":
                missed[file] = None
    hits = counters["direct_cache_hit"] + counters["preprocessed_cache_hit"]
    return Statistics(hits, counters["cache_miss"], dict(counters), tuple(missed))


def describe(found: Statistics, what: str = "objects") -> str:
    """Describe in one line how often ccache had a result for ``what``."""
    calls = found.hits + found.misses
    share = f"{100 * found.hits / calls:.1f} %" if calls else "none"
    remote = f", {found.from_remote} lookups answered by the remote cache"
    return (
        f"ccache: {found.hits} of {calls} {what} ({share}) from the cache"
        f"{remote if found.from_remote else ''}"
    )
