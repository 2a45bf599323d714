"""Where Debian archives are: what the user names, and what the machine's apt already uses.

An archive is recognised by what its entry says, never by its host: an entry for one of
Debian's suites with the component main.  The base URL of a Debian archive serves every
suite, so a machine on trixie can build for bookworm.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from debian.deb822 import Deb822

from kbuild import access, download, suites
from kbuild.access import bare, masked
from kbuild.download import Network
from kbuild.errors import InfrastructureError, UserError
from kbuild.model import Settings

logger = logging.getLogger(__name__)

APT = access.APT

_CODENAMES = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid")
_ROLES = ("oldoldstable", "oldstable", "stable", "testing", "unstable")
_DIST = re.compile(
    rf"(?:{'|'.join((*_CODENAMES, *_ROLES))})"
    r"(?P<pocket>-updates|-proposed-updates|-backports|-security|/updates)?"
)
# The security archive's dists; the form with the slash was in use until buster.
_SECURITY = ("-security", "/updates")
_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<dist>\S+)\s+(?P<rest>.+)"
)


@dataclass(frozen=True)
class Mirrors:
    """Base URLs, in the order in which they are tried; nothing was asked of them yet."""

    main: tuple[str, ...]  # have dists/<suite>
    security: tuple[str, ...]  # have dists/<suite>-security


@dataclass(frozen=True)
class Entry:
    """One source of packages that apt is configured with."""

    uri: str
    dist: str
    components: tuple[str, ...]
    signed_by: str  # "" where the entry does not say


def find(settings: Settings, *, apt: Path = APT) -> Mirrors:
    """List the mirrors to try: those of ``settings`` first, then the machine's own.

    A mirror given by the user may be the main archive's or the security archive's; its
    URL does not tell, so it is in both lists, and whichever dists it does not have are
    taken from the next.  Raises UserError when there is none.
    """
    given = [url.rstrip("/") for url in settings.mirrors]
    for url in given:
        fault = _fault(url)
        if fault is not None:
            raise UserError(
                f"the mirror {masked(url)!r} is not a URL that can be fetched from",
                expected="http://... or https://..., the directory that has dists/ and pool/",
                found=fault,
            )
    main, security = list(given), list(given)
    for entry in entries(apt):
        match = _DIST.fullmatch(entry.dist.rstrip("/"))
        if match is None or "main" not in entry.components:
            continue
        # Whoever signs with another key than Debian's is no mirror of Debian.
        if entry.signed_by.startswith("/") and "debian" not in Path(entry.signed_by).name:
            continue
        wanted = security if match["pocket"] in _SECURITY else main
        wanted.extend(_urls(entry.uri))
    found = Mirrors(tuple(dict.fromkeys(main)), tuple(dict.fromkeys(security)))
    for kind, urls in (("main", found.main), ("security", found.security)):
        if not urls:
            raise UserError(
                f"no mirror of Debian's {kind} archive is known",
                expected=f"an entry for one of Debian's suites in {apt}/sources.list, "
                f"{apt}/sources.list.d/*.list or *.sources",
                found="none with the component main and an http or https URI",
                hint="give the base URL (the directory that has dists/ and pool/) with --mirror, "
                "once for the main archive and once for the security archive",
            )
    return found


def sources_list(
    settings: Settings, suite: str, *, apt: Path = APT, network: Network | None = None
) -> str:
    """Return apt's one-line sources for a suite, its pockets and its security pocket.

    Each dist comes from the first mirror that has an InRelease for it.  apt itself checks
    the signatures, with the suite's keyring.  Logins are left out: a root keeps its sources.
    Raises UserError when no mirror is known,
    InfrastructureError when none has the suite, or when the run is offline.
    """
    row = suites.suite(suite)
    found = find(settings, apt=apt)
    if settings.offline:
        raise InfrastructureError(
            f"packages of {suite} are needed from a mirror, and this run is offline",
            hint="run the same without --offline once; the result is kept in the cache",
        )
    network = network or download.machine(apt)
    options = f"signed-by={row.keyring}"
    if settings.accept_expired:
        options += " check-valid-until=no"
    lines = [
        f"deb [{options}] {bare(_having(dist, urls, network))} {dist} main"
        for dist, urls in dists(row, found)
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Private:
    """What a bootstrap needs to reach the mirrors, and its root must not keep."""

    options: tuple[str, ...]  # for mmdebstrap(1)
    files: tuple[str, ...]  # that those put into the root

    def remove(self, root: Path) -> None:
        """Remove it from a root that is ready."""
        for name in self.files:
            (root / name).unlink(missing_ok=True)


@contextlib.contextmanager
def private(settings: Settings, *, apt: Path = APT) -> Iterator[Private]:
    """Lay out the machine's proxies and logins for mmdebstrap while the block runs."""
    found, reach = find(settings, apt=apt), access.of(apt)
    texts = {
        "apt.conf.d/90cplayground": reach.apt_conf,
        "auth.conf.d/cplayground.conf": reach.auth_conf((*found.main, *found.security)),
    }
    with tempfile.TemporaryDirectory(prefix="cplayground-apt-") as name:
        directories = []
        for path, text in texts.items():
            place = Path(name, path)
            place.parent.mkdir()
            place.touch(mode=0o600)
            place.write_text(text)
            directories.append(shlex.quote(str(place.parent)))
        # mmdebstrap copies with tar, which keeps the modes.
        hook = f"--setup-hook=copy-in {' '.join(directories)} /etc/apt/"
        yield Private((hook,), tuple(f"etc/apt/{path}" for path in texts))


def dists(row: suites.Suite, found: Mirrors) -> list[tuple[str, tuple[str, ...]]]:
    """Pair every dist of a suite with the mirrors that may have it."""
    return [
        (row.codename, found.main),
        *((pocket, found.main) for pocket in row.pockets),
        (row.security, found.security),
    ]


def kernel_dists(row: suites.Suite, found: Mirrors) -> list[tuple[str, tuple[str, ...]]]:
    """Pair the dists that a suite's kernel is taken from with the mirrors that may have them."""
    return [
        (dist, urls)
        for dist, urls in dists(row, found)
        if not row.kernel_dists or dist in row.kernel_dists
    ]


def inrelease_url(base: str, dist: str) -> str:
    """Return where a mirror keeps the signed index of a dist."""
    return f"{base}/dists/{dist}/InRelease"


def _having(dist: str, urls: tuple[str, ...], network: Network) -> str:
    reasons = []
    for base in urls:
        reason = network.has(inrelease_url(base, dist))
        if reason is None:
            return base
        logger.info("%s does not serve %s: %s", masked(base), dist, reason)
        reasons.append(f"{masked(base)}: {reason}")
    raise InfrastructureError(
        f"no mirror has {dist}",
        expected=f"dists/{dist}/InRelease",
        found="\n".join(reasons),
        hint="check the network, or give another mirror with --mirror",
    )


def entries(apt: Path = APT) -> Iterator[Entry]:
    """Read apt's sources in its own order: sources.list, then sources.list.d by name.

    Only binary package sources that are enabled; sources.list(5) describes both formats.
    """
    files = [apt / "sources.list"]
    parts = apt / "sources.list.d"
    if parts.is_dir():
        files += sorted(p for p in parts.iterdir() if p.suffix in (".list", ".sources"))
    for path in files:
        try:
            text = path.read_text(errors="replace")
        except OSError as error:
            if path.exists():
                logger.warning("%s cannot be read: %s", path, error.strerror)
            continue
        yield from _deb822(text) if path.suffix == ".sources" else _one_line(text)


def _one_line(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(
            option.split("=", 1) for option in (match["options"] or "").split() if "=" in option
        )
        yield Entry(
            match["uri"], match["dist"], tuple(match["rest"].split()), options.get("signed-by", "")
        )


def _deb822(text: str) -> Iterator[Entry]:
    for stanza in Deb822.iter_paragraphs(text.splitlines(), use_apt_pkg=False):
        if "deb" not in stanza.get("Types", "").split():
            continue
        if stanza.get("Enabled", "yes").strip().lower() in ("no", "false", "off", "0", "without"):
            continue
        for uri in stanza.get("URIs", "").split():
            for dist in stanza.get("Suites", "").split():
                yield Entry(
                    uri,
                    dist,
                    tuple(stanza.get("Components", "").split()),
                    stanza.get("Signed-By", "").strip(),
                )


def _urls(uri: str) -> list[str]:
    """Return the HTTP base URLs behind an entry's URI.

    Debian's cloud images use mirror+file:, the path of a list of mirrors (apt-transport-mirror(1)).
    """
    listed = [uri]
    if uri.startswith("mirror+file:"):
        try:
            lines = Path(unquote(urlsplit(uri).path)).read_text().splitlines()
        except (OSError, ValueError) as error:
            logger.warning("the list of mirrors %s cannot be read: %s", masked(uri), error)
            return []
        listed = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    usable = []
    for url in listed:
        fault = _fault(url)
        if fault is None:
            usable.append(url.rstrip("/"))
        else:
            logger.warning("the mirror %s is left out: %s", masked(url), fault)
    return usable


def _fault(url: str) -> str | None:
    """Say why nothing can be fetched from a URL, None when it can be tried."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return f"only http and https can be fetched from, not {parts.scheme or 'a path'}"
        if not parts.hostname:
            return "it names no host"
        # Both raise ValueError for what is none.
        _ = parts.port
        parts.hostname.encode("idna")
        if re.search(r"\s", unquote(parts.username or "") + unquote(parts.password or "")):
            return "a login with white space cannot be handed to apt"
    except ValueError as error:
        return masked(str(error))
    return None
