"""What helps this machine compile: a remote compiler cache, and icecream's workers.

Both only save time.  What is compiled does not depend on them, so no manifest knows of
them, and a server that does not answer is a warning: the build goes on without it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from kbuild import fs, roots, run, stamp, suites
from kbuild.errors import BuildError, InfrastructureError, KbuildError, UserError
from kbuild.model import Root, Settings
from kbuild.roots import Bind
from kbuild.secrets import redact_url

logger = logging.getLogger(__name__)

# Places in the root.
_SOCKET = "/mnt/cache-server/socket"
_STATISTICS = "/mnt/statistics"
_ICECREAM = "/mnt/icecream"
_CONFIG = "ccache.conf"
# What ccache writes of the calls for objects, and of those for symbol versions, which
# in_root/symbol-versions makes.
OBJECTS_LOG, VERSIONS_LOG = "ccache.log", "symbol-versions.log"

REDIS_PORT, HTTP_PORT, SCHEDULER_PORT = 6379, 80, 8765
_SCHEMES = {"redis": REDIS_PORT, "http": HTTP_PORT}
_ANSWER_TIMEOUT_S = 5.0
_DAEMON_TIMEOUT_S = 20.0
# What ccache calls its backends in "ccache --version", by the scheme of a URL.
_FEATURES = {"redis": "redis-storage", "redis+unix": "redis+unix-storage", "http": "http-storage"}
_HOST_LENGTH = 253  # RFC 1035
_USER = "icecc"  # that Debian's package makes, for the daemon
# What iceccd says when its scheduler has taken it.
_CONNECTED = "Connected to scheduler"
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Help:
    """What the compilers of one build get beside what every program in the root has."""

    env: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    network: bool = False  # whether they may use the host's


@dataclass(frozen=True)
class CacheServer:
    """A ccache storage backend; ``attributes`` are ccache's own, as read-only."""

    scheme: str
    address: str | tuple[str, int]  # a socket's path, or host and port
    url: str = field(repr=False)  # as ccache in the root is given it
    password: str | None = field(default=None, repr=False)
    attributes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def option(self) -> str:
        """The value of ccache's option remote_storage."""
        return "|".join((self.url, *self.attributes))


@dataclass(frozen=True)
class Statistics:
    """What ccache did in one build."""

    hits: int
    misses: int
    counters: Mapping[str, int]  # ccache's own names
    missed: tuple[str, ...]  # source files, as ccache was given them; each once

    @property
    def from_remote(self) -> int:
        """Results that the remote cache delivered."""
        return self.counters.get("remote_storage_hit", 0)


# The remote cache.


def check(settings: Settings) -> None:
    """Raise UserError when an address in the settings makes no sense; nobody is asked."""
    if settings.remote_cache:
        parse_cache(settings.remote_cache)
    if settings.scheduler:
        parse_scheduler(settings.scheduler)


def parse_cache(url: str) -> CacheServer:
    """Read the URL of a remote cache; raises UserError for one that ccache could not use.

    redis://[[user]:password@]host[:port][/database], redis+unix:///socket[?db=N] or
    http://host[:port]/path, and ccache's attributes after a "|".
    """
    bare, *attributes = url.split("|")
    if " " in url or not url.isprintable():
        raise _bad_cache(url, "a space, or a character that is none: one server at a time")
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
    if not parts.hostname or not _is_host(parts.hostname):
        raise _bad_cache(url, "no host name")
    if port == 0:
        raise _bad_cache(url, "no port from 1 to 65535")
    address = (parts.hostname, port or _SCHEMES[parts.scheme])
    return CacheServer(parts.scheme, address, bare, _password(parts), tuple(attributes))


def _password(parts: SplitResult) -> str | None:
    return None if parts.password is None else unquote(parts.password)


def _bad_cache(url: str, found: str) -> UserError:
    return UserError(
        f"--cache {redact_url(url)} is no cache server that ccache can use",
        expected="redis://host[:port], redis+unix:///path/of/socket or http://host[:port]/path",
        found=found,
        hint="in a password, write / as %2F and @ as %40" if "@" in url else None,
    )


def _is_host(name: str) -> bool:
    """Say whether a name could be looked up: no part of it is empty or too long."""
    try:
        return len(name.encode("idna")) <= _HOST_LENGTH
    except UnicodeError:
        return False


def answers(server: CacheServer) -> str | None:
    """Return why a cache server cannot be used now, or None when it answers."""
    try:
        with _connect(server.address) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            if server.scheme == "http":
                assert isinstance(server.address, tuple)
                host = f"{server.address[0]}:{server.address[1]}"
                path = urlsplit(server.url).path or "/"
                connection.sendall(f"HEAD {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                said = connection.recv(64)
                return None if said.startswith(b"HTTP/") else f"it speaks no HTTP: {said!r}"
            connection.sendall(b"PING\r\n")
            said = connection.recv(64)
            # Without its password a Redis says so; ccache has the one in the URL.
            if said.startswith(b"+PONG") or (said.startswith(b"-NOAUTH") and server.password):
                return None
            return f"it is no Redis that we may use: {said.decode(errors='replace').strip()!r}"
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


def _cache_help(root: Root, server: CacheServer, place: Path) -> Help | None:
    """Return what ccache needs for a server, or None, with a warning, when it is of no use.

    ``place`` is what the root shows as /mnt/statistics.
    """
    said = roots.enter(root, ["ccache", "--version"], timeout_s=60).stdout
    if _FEATURES[server.scheme] not in said.split():
        logger.warning(
            "the remote cache is left out: %s of %s cannot use %s",
            said.splitlines()[0].replace(" version", ""),
            root.suite,
            server.scheme,
        )
        return None
    why = answers(server)
    if why is not None:
        logger.warning("the remote cache is left out: %s: %s", redact_url(server.url), why)
        return None
    # In a file: command lines are seen by every user of the machine, and kept in logs.
    fs.write_atomic(place / _CONFIG, f"remote_storage = {server.option}\n", mode=0o600)
    env = {"CCACHE_CONFIGPATH": f"{_STATISTICS}/{_CONFIG}"}
    if isinstance(server.address, str):
        # A socket is a file: the root needs no network for it.
        return Help(env, (Bind(Path(server.address), _SOCKET, writable=True),))
    return Help(env, _resolver(root), network=True)


def _resolver(root: Root) -> tuple[Bind, ...]:
    """Show the host's names and name servers, where the root has files of that name."""
    names = (Path("/etc/resolv.conf"), Path("/etc/hosts"))
    return tuple(
        Bind(path, str(path))
        for path in names
        if path.is_file() and (root.path / path.relative_to("/")).is_file()
    )


# Icecream.


def parse_scheduler(text: str) -> tuple[str, int]:
    """Read host[:port] of an icecream scheduler; raises UserError for anything else."""
    match = _HOST.fullmatch(text)
    port = int(match["port"] or SCHEDULER_PORT) if match else 0
    if match is None or not 0 < port < 65536 or not _is_host(match["host"].strip("[]")):
        shown = redact_url(text)
        raise UserError(
            f"--scheduler {shown} is no icecream scheduler",
            expected=f"HOST or HOST:PORT; the usual port is {SCHEDULER_PORT}",
            found=shown,
        )
    return match["host"].strip("[]"), port


def compiler_environment(settings: Settings, root: Root) -> Path:
    """Return the root's own compiler as an archive that icecream's workers unpack.

    Made once by icecc-create-env for each root, and kept in the cache.
    """
    home = settings.cache / "icecream" / root.digest[:16]
    mark, inputs = home / "stamp.json", {"root": root.digest}
    with fs.lock(settings.cache / "locks" / f"icecream-{root.digest[:16]}.lock"):
        if stamp.due(mark, inputs) is not None:
            compiler = suites.suite(root.suite).compiler
            with fs.fresh_directory(home) as scratch:
                roots.enter(
                    root,
                    ["icecc", "--build-native", f"/usr/bin/{compiler}"],
                    timeout_s=300,
                    binds=[Bind(scratch, _ICECREAM, writable=True)],
                    cwd=_ICECREAM,
                )
                stamp.write(scratch / mark.name, inputs, scratch.glob("*.tar.*"), 0.0, sync=False)
    fs.mark_used(home)
    # Workers tell environments apart by the name, which holds a digest of the content.
    made = list(home.glob("*.tar.*"))
    if len(made) != 1:
        raise BuildError(
            "icecc made no archive of the compiler",
            expected=f"one file in {home}",
            found=", ".join(path.name for path in made) or "none",
            hint="remove that directory, and run the same command again",
        )
    return made[0]


@contextlib.contextmanager
def _icecream_help(settings: Settings, root: Root, home: Path) -> Iterator[Help | None]:
    """Run icecream's daemon for one build, and yield what the compilers need to find it."""
    host, port = parse_scheduler(settings.scheduler)
    try:
        archive = compiler_environment(settings, root)
    except KbuildError as error:
        # As with a scheduler that is away: a security update must not wait for its helpers.
        logger.warning("icecream is left out: %s", error)
        yield None
        return
    place = home / "icecream"
    fs.remove_tree(place)
    place.mkdir(parents=True)
    shutil.copyfile(archive, place / archive.name)
    shutil.chown(place, *_owner(root, _USER))
    binds = (Bind(place, _ICECREAM, writable=True),)
    env = {"ICECC_TEST_SOCKET": f"{_ICECREAM}/socket"}
    daemon = roots.command(
        root,
        [
            *("iceccd", "--no-remote", "-s", f"{host}:{port}"),
            *("-b", f"{_ICECREAM}/environments", "-u", _USER, "-vv"),
        ],
        binds=[*binds, *_resolver(root)],
        env=env,
        network=True,
    )
    log = settings.build / "logs" / "icecream.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = run.start(daemon, stdout=stream, stderr=subprocess.STDOUT)
        try:
            # Asked through the daemon: a scheduler stops for seconds over a connection that
            # says nothing.
            if not _connected(process, log):
                logger.warning(
                    "icecream is left out: no scheduler at %s answers; see %s",
                    settings.scheduler,
                    log,
                )
                yield None
                return
            yield Help(
                {
                    **env,
                    "CCACHE_PREFIX": "icecc",
                    "ICECC_VERSION": f"{_ICECREAM}/{archive.name}",
                },
                (*binds, *_resolver(root)),
                network=True,
            )
        finally:
            run.stop(process)


def _owner(root: Root, user: str) -> tuple[int, int]:
    """Return the numbers of a user and its group in a root, which are not the host's."""
    for line in (root.path / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == user:
            return int(uid), int(gid)
    raise BuildError(f"{root.path} has no user {user}", hint="'invoke clean --roots' makes it anew")


def _connected(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until icecream's daemon says that its scheduler has taken it."""
    deadline = time.monotonic() + _DAEMON_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise InfrastructureError(
                "icecream's daemon does not start",
                found=log.read_text(errors="replace").strip()[-1000:],
                log=log,
                hint="leave --scheduler out",
            )
        if _CONNECTED in log.read_text(errors="replace"):
            return True
        time.sleep(0.1)
    return False


# Both, for one build.


@contextlib.contextmanager
def ready(settings: Settings, root: Root, home: Path) -> Iterator[Help]:
    """Yield the help that ``settings`` ask for, as far as it is to be had, for one build.

    ``home`` is the build's directory: ccache's statistics of the build are kept below it.
    Raises UserError for an address that makes no sense.
    """
    place = home / "statistics"
    place.mkdir(parents=True, exist_ok=True)
    for left in (OBJECTS_LOG, VERSIONS_LOG, _CONFIG):
        (place / left).unlink(missing_ok=True)
    counted = Help(
        {"CCACHE_STATSLOG": f"{_STATISTICS}/{OBJECTS_LOG}"},
        (Bind(place, _STATISTICS, writable=True),),
    )
    check(settings)
    server = parse_cache(settings.remote_cache) if settings.remote_cache else None
    parts = [counted]
    with contextlib.ExitStack() as stack:
        if settings.scheduler:
            workers = stack.enter_context(_icecream_help(settings, root, home))
            parts += [workers] if workers else []
        # The server's password is not left behind in build/.
        stack.callback((place / _CONFIG).unlink, missing_ok=True)
        if server and (cache := _cache_help(root, server, place)):
            parts.append(cache)
        yield together(parts)
    logs = {"objects": OBJECTS_LOG, "symbol versions of files": VERSIONS_LOG}
    found = {what: read_statistics(place / log) for what, log in logs.items()}
    kept = {
        what: {"counters": dict(one.counters), "missed": list(one.missed)}
        for what, one in found.items()
        if one is not None
    }
    if kept:
        fs.write_json(place / "ccache.json", kept)
    for what, one in found.items():
        if one is not None:
            logger.info("%s", describe(one, what))


def together(parts: list[Help]) -> Help:
    """Return the sum of several."""
    env: dict[str, str] = {}
    for one in parts:
        env |= one.env
    return Help(
        env=env,
        binds=tuple(dict.fromkeys(bind for one in parts for bind in one.binds)),
        network=any(one.network for one in parts),
    )


def read_statistics(path: Path) -> Statistics | None:
    """Read what ccache wrote to CCACHE_STATSLOG, or None when it wrote nothing.

    Each call gives a comment with the source file, and a line for each counter that it raised.
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
    """Say in a line what ccache did for ``what`` it was called for."""
    calls = found.hits + found.misses
    share = f"{100 * found.hits / calls:.1f} %" if calls else "none"
    remote = f", {found.from_remote} lookups answered by the remote cache"
    return (
        f"ccache: {found.hits} of {calls} {what} ({share}) from the cache"
        f"{remote if found.from_remote else ''}"
    )
