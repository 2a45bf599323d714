"""List the possible Debian mirrors: those that the user names, then those that apt uses.

apt-get(8) lists the machine's sources.  An entry for one of Debian's suites with the component
main may be Debian's; :mod:`kbuild.fetch.index` decides that by the signature.  The base URL of a
Debian archive serves every suite, so a machine on trixie can build for bookworm.
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
from urllib.parse import quote, unquote, urlsplit

from kbuild.core import suites
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Settings
from kbuild.core.run import run
from kbuild.core.secrets import redact
from kbuild.fetch import access

logger = logging.getLogger(__name__)

APT = access.APT

_CODENAMES = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid")
_ROLES = ("oldoldstable", "oldstable", "stable", "testing", "unstable")
_DIST = re.compile(
    rf"(?:{'|'.join((*_CODENAMES, *_ROLES))})"
    r"(?P<pocket>-updates|-proposed-updates|-backports|-security|/updates)?"
)
# Suffixes of the security archive's dists; the form with the slash was used until buster.
_SECURITY = ("-security", "/updates")
_FORMAT = "\t".join(("$(RELEASE)", "$(COMPONENT)", "$(REPO_URI)"))


@dataclass(frozen=True)
class Mirrors:
    """Base URLs in the order in which they will be tried."""

    main: tuple[str, ...]  # have dists/<suite>
    security: tuple[str, ...]  # have dists/<suite>-security


def find(settings: Settings, *, apt: Path = APT) -> Mirrors:
    """List the mirrors to try: those of ``settings`` first, then the machine's own.

    A user's mirror may be the main archive's or the security archive's.  The URL does not tell,
    so it is in both lists, and a dist that it lacks comes from the next mirror.
    Raises UserError if there is none.
    """
    given = [url.rstrip("/") for url in settings.mirrors]
    for url in given:
        fault = _fault(url)
        if fault is not None:
            raise UserError(
                f"{redact(url)!r} is not the URL of a mirror",
                expected="http://... or https://..., the directory with dists/ and pool/",
                found=fault,
            )
    main, security = list(given), list(given)
    for dist, component, uri in _targets(apt):
        match = _DIST.fullmatch(dist.rstrip("/"))
        if match is not None and component == "main":
            wanted = security if match["pocket"] in _SECURITY else main
            wanted.extend(_urls(uri))
    found = Mirrors(tuple(dict.fromkeys(main)), tuple(dict.fromkeys(security)))
    for kind, urls in (("main", found.main), ("security", found.security)):
        if not urls:
            raise UserError(
                f"no mirror of Debian's {kind} archive is known",
                expected=f"an entry for one of Debian's suites in {apt}/sources.list, "
                f"{apt}/sources.list.d/*.list or *.sources",
                found="none with the component main and an http or https URI",
                hint="give base URLs (directories with dists/ and pool/) with --mirror, "
                "once for the main archive and once for the security archive",
            )
    return found


@dataclass(frozen=True)
class Private:
    """Files that let a bootstrap reach the mirrors, and that its root must not keep."""

    options: tuple[str, ...]  # for mmdebstrap(1)
    files: tuple[str, ...]  # that those options copy into the root

    def remove(self, root: Path) -> None:
        """Remove the files from a finished root."""
        for name in self.files:
            (root / name).unlink(missing_ok=True)


@contextlib.contextmanager
def private(settings: Settings, *, apt: Path = APT) -> Iterator[Private]:
    """Write the machine's proxies and logins for mmdebstrap while the block runs."""
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
        # mmdebstrap copies with tar, which preserves modes.
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
    """Pair the dists that contain a suite's kernel with the mirrors that may have them."""
    return [
        (dist, urls)
        for dist, urls in dists(row, found)
        if not row.kernel_dists or dist in row.kernel_dists
    ]


def _targets(apt: Path) -> Iterator[tuple[str, str, str]]:
    """Yield dist, component and URI of the machine's sources, as apt reads them."""
    try:
        yield from _listed(apt)
    except InfrastructureError as error:
        # apt refuses all entries if it cannot read one.
        logger.warning("apt cannot read its sources; reading each file by itself: %s", error.found)
        parts = apt / "sources.list.d"
        for path in (
            apt / "sources.list",
            *sorted(parts.glob("[!.]*.list")),
            *sorted(parts.glob("[!.]*.sources")),
        ):
            try:
                yield from _listed(apt, f"Dir::Etc::sourcelist={path}", "Dir::Etc::sourceparts=-")
            except InfrastructureError:
                logger.warning("%s is ignored", path)


def _listed(apt: Path, *options: str) -> list[tuple[str, str, str]]:
    options = ("APT::Architecture=amd64", "APT::Architectures=amd64", *options)
    with access.configured(f'Dir::Etc "{apt}";\n') as env:
        listing = run(
            [
                *("apt-get", "indextargets", "--no-release-info", "--format", _FORMAT),
                *(word for option in options for word in ("--option", option)),
                *("Created-By: Packages", "Architecture: amd64"),
            ],
            env=env,
            timeout_s=60,
            error=InfrastructureError,
        ).stdout
    rows = (line.split("\t") for line in listing.splitlines())
    return [(row[0], row[1], quote(row[2], safe="/:@%+~[]")) for row in rows if len(row) == 3]


def _urls(uri: str) -> list[str]:
    """Return the HTTP base URLs behind an entry's URI.

    Debian's cloud images use mirror+file:, the path of a list of mirrors (apt-transport-mirror(1)).
    """
    listed = [uri]
    if uri.startswith("mirror+file:"):
        try:
            lines = Path(unquote(urlsplit(uri).path)).read_text().splitlines()
        except (OSError, ValueError) as error:
            logger.warning("the list of mirrors %s cannot be read: %s", redact(uri), error)
            return []
        listed = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    usable = []
    for url in listed:
        fault = _fault(url)
        if fault is None:
            usable.append(url.rstrip("/"))
        else:
            logger.warning("the mirror %s is ignored: %s", redact(url), fault)
    return usable


def _fault(url: str) -> str | None:
    """Return why a URL cannot be fetched from, or None if it can be tried."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return f"only http and https are supported, not {parts.scheme or 'a path'}"
        if not parts.hostname:
            return "it names no host"
        # hostname and port raise ValueError if they are malformed.
        _ = parts.port
        parts.hostname.encode("idna")
        if re.search(r"\s", unquote(parts.username or "") + unquote(parts.password or "")):
            return "apt cannot read a login with white space"
    except ValueError as error:
        return redact(str(error))
    return None
