"""Read from apt's configuration how this machine reaches mirrors: proxies, certificates, logins.

apt-config(8) reads the configuration, so apt's own rules apply.  Requests and our own apt then
use the same values.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies

import requests.utils

from kbuild.core.errors import InfrastructureError
from kbuild.core.run import run
from kbuild.core.secrets import redact

logger = logging.getLogger(__name__)

APT = Path("/etc/apt")
# ca-certificates adds a company's own authority here; requests would use its own bundle.
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_OPTION = re.compile(r'(?P<name>\S+) "(?P<value>.*)";')
# The options for reaching a mirror.  Hooks, trust and limits are not copied.
_REACHING = re.compile(r"Acquire::(?:https?|ForceIPv[46])\b.*", re.IGNORECASE)
# A password may contain an unencoded slash or @.
_LOGIN = re.compile(r"(?<=://)[^\s'\"<>]*@")


@dataclass(frozen=True)
class Login:
    """One entry of apt_auth.conf(5)."""

    machine: str  # [protocol://]host[:port][/path]
    user: str
    password: str = field(repr=False)

    def fits(self, url: str) -> bool:
        """Return whether the entry applies to a URL; without a protocol, it needs HTTPS."""
        parts = urlsplit(url)
        scheme, _, place = self.machine.rpartition("://")
        host, slash, path = place.partition("/")
        return (
            parts.scheme == (scheme or "https")
            and host in (parts.hostname, f"{parts.hostname}:{parts.port}")
            and parts.path.startswith(slash + path)
        )


@dataclass(frozen=True)
class Access:
    """The proxies, certificates and logins between this machine and its mirrors."""

    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # of apt.conf(5)
    logins: tuple[Login, ...] = ()

    @property
    def certificates(self) -> str | bool:
        """Return the file of authorities that check a server's certificate."""
        env = os.environ
        given = env.get("REQUESTS_CA_BUNDLE") or env.get("SSL_CERT_FILE")
        there = _BUNDLE if Path(_BUNDLE).exists() else ""
        return given or self.options.get("acquire::https::cainfo") or there or True

    def proxy(self, url: str) -> str:
        """Return the proxy that apt uses for a URL, or "" for none.

        An option for the host comes first, then a program that detects a proxy, then an option
        for the protocol, then the environment.
        """
        if requests.utils.should_bypass_proxies(url, None):
            return ""
        parts = urlsplit(url)
        schemes = ("https", "http") if parts.scheme == "https" else ("http",)
        for suffix in (f"::{parts.hostname}", "-auto-detect", ""):
            for scheme in schemes:
                value = self.options.get(f"acquire::{scheme}::proxy{suffix}")
                if value and suffix == "-auto-detect":
                    value = _detected(value, url)
                if value:
                    return "" if value.upper() == "DIRECT" else self._with_login(value)
        return self._with_login(requests.utils.select_proxy(url, getproxies()) or "")

    def _with_login(self, proxy: str) -> str:
        login = None if _LOGIN.search(proxy) else self.login(proxy)
        if login is None:
            return proxy
        return proxy.replace("://", f"://{':'.join(quote(word, safe='') for word in login)}@", 1)

    def login(self, url: str) -> tuple[str, str] | None:
        """Return user and password for a URL: its own, or those in apt's auth.conf."""
        parts = urlsplit(url)
        if parts.username:
            return unquote(parts.username), unquote(parts.password or "")
        return next(((one.user, one.password) for one in self.logins if one.fits(url)), None)

    @property
    def apt_conf(self) -> str:
        """Return the options as a file for apt.conf.d."""
        return "".join(f'{name} "{value}";\n' for name, value in self.options.items() if value)

    def auth_conf(self, urls: Iterable[str]) -> str:
        """Return the logins, and those in ``urls``, as a file for auth.conf.d."""
        entries = [
            (bare(url), *login)
            for url in dict.fromkeys(urls)
            if urlsplit(url).username and (login := self.login(url))
        ]
        entries += [(one.machine, one.user, one.password) for one in self.logins]
        return "".join(f"machine {m} login {u} password {p}\n" for m, u, p in entries)


def _detected(program: str, url: str) -> str:
    """Ask apt's own program for detecting a proxy (such as auto-apt-proxy); "" if it has none."""
    try:
        done = run([program, bare(url)], timeout_s=60, error=InfrastructureError)
    except InfrastructureError as error:
        logger.warning("proxy detection failed: %s", redact(str(error)))
        return ""
    return done.stdout.strip()


def bare(url: str) -> str:
    """Return a URL without its user and password."""
    return _LOGIN.sub("", url)


@contextlib.contextmanager
def configured(text: str) -> Iterator[dict[str, str]]:
    """Yield the environment that makes apt's programs read ``text`` first; it may hold logins."""
    with tempfile.TemporaryDirectory(prefix="cplayground-apt-") as name:
        place = Path(name) / "apt.conf"
        place.touch(mode=0o600)
        place.write_text(text)
        yield {"APT_CONFIG": str(place)}


def of(apt: Path = APT) -> Access:
    """Read how the machine's apt reaches mirrors.

    Raises InfrastructureError if apt cannot read its own configuration.
    """
    with configured(f'Dir::Etc "{apt}";\n') as env:
        dump = run(
            ["apt-config", "dump"],
            env=env,
            timeout_s=60,
            error=InfrastructureError,
            hint="correct the file of /etc/apt/apt.conf.d that apt names",
        ).stdout
    every = {m["name"].lower(): m["value"] for m in map(_OPTION.fullmatch, dump.splitlines()) if m}
    reaching = {name: value for name, value in every.items() if _REACHING.fullmatch(name)}
    return Access(reaching, tuple(_logins(apt)))


def _logins(apt: Path) -> Iterator[Login]:
    for path in (apt / "auth.conf", *sorted((apt / "auth.conf.d").glob("*.conf"))):
        if not path.is_file():
            continue
        try:
            hosts = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError, UnicodeError) as error:
            # The parser's message may quote the password.
            logger.warning("%s is ignored: %s", path, getattr(error, "strerror", "not readable"))
            continue
        for machine, (user, _, password) in hosts.items():
            yield Login(machine, user, password)
