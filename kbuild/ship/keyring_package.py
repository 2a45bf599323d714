"""Build cplayground-archive-keyring, with which servers find and verify the archive.

It also has the certificates for Secure Boot, which an administrator enrolls from there.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from kbuild.core import fs, suites
from kbuild.core.errors import BuildError, TrustError, UserError
from kbuild.core.model import Package, Settings
from kbuild.core.run import run
from kbuild.ship import deb, indexes, mok, signing
from kbuild.ship.mok import Certificate

NAME = "cplayground-archive-keyring"
KEYRING = Path("usr/share/keyrings/cplayground-archive-keyring.gpg")
SOURCES = Path("etc/apt/sources.list.d/cplayground.sources")
# The certificate of the key that signs kernels now; further ones have their number in the name.
MOK = Path("usr/share/cplayground/mok.der")

# The date of its content; a number after it for a second change on that day; the suite's mark.
_VERSION = re.compile(r"(\d{4})\.(\d\d)\.(\d\d)(?:\.(\d+))?\+(\w+)")
_TIMEOUT_S = 60
_DAMAGED = "'./inv verify-archive' lists all damage; copy the package from a backup"


def build(
    settings: Settings,
    suite: str,
    out: Path,
    *,
    now: datetime,
    last: Package | None = None,
    withdrawn: str = "",
) -> Package:
    """Build the package of a suite into the directory ``out``, or return ``last``.

    ``last`` is the newest one in the archive.  It stays if a package of its version would have
    the same bytes.  Otherwise the new version is above it: the date of the newest key, or the
    date of ``now``.  The same keys, address, suite and version give the same bytes.

    The certificates for Secure Boot of ``last`` stay after those of the settings, because servers
    need them for the kernels that they have; only the one with the SHA-256 ``withdrawn`` goes.
    Raises SigningError as :func:`signing.signers` and :func:`mok.certificates` do, and UserError
    for an unusable archive_url.
    """
    keyring = signing.keyring(settings)
    _check_url(settings.archive_url)
    ders = [one.der for one in mok.certificates(settings)]
    if last is not None:
        ders += [one for one in certificates(last) if one not in ders and digest(one) != withdrawn]
        with tempfile.TemporaryDirectory(prefix="cplayground-keyring-") as name:
            again = _build(settings, suite, keyring, ders, last.version, Path(name))
            if again.sha256 == last.sha256:
                return last
    made = max(key.made for key in signing.signers(settings))
    version = _above(last.version if last else None, [made, now], suites.suite(suite).mark)
    return _build(settings, suite, keyring, ders, version, out)


def check(settings: Settings, last: Package) -> None:
    """Check that servers with ``last``, a package of the archive, could follow the next one.

    Raises SigningError as :func:`signing.check_continues` does, UserError if ``last`` has the
    archive's address and the settings have none, and TrustError if ``last`` is damaged.
    """
    with _extracted(last) as tree:
        signing.check_continues(settings, _content(last, tree, KEYRING))
        entry = _content(last, tree, SOURCES).decode()
    if settings.archive_url:
        return
    if not re.search(r"^Enabled: *no$", entry, re.MULTILINE):
        address = re.search(r"^URIs: *(.+)$", entry, re.MULTILINE)
        raise UserError(
            "archive_url is not set, which would switch the archive off on every server",
            expected=f"archive_url: {address[1]}" if address else "archive_url",
            found=f"none in the configuration; {last.path.name} has one",
            hint="set archive_url in the configuration, or use the configuration of the releaser",
        )


def certificates(package: Package) -> tuple[bytes, ...]:
    """Return the certificates for Secure Boot in a package, as DER and in their order."""
    with _extracted(package) as tree:
        return tuple((tree / one).read_bytes() for one in _places(tree))


def place_of(certificate: Certificate, tree: Path) -> Path | None:
    """Return where an installed package has a certificate, relative to ``tree``; None if not."""
    found = (one for one in _places(tree) if (tree / one).read_bytes() == certificate.der)
    return next(found, None)


def _places(tree: Path) -> Iterator[Path]:
    """Yield the certificates' files in a tree."""
    for number in itertools.count(1):
        if not (tree / _place(number)).is_file():
            return
        yield _place(number)


def digest(der: bytes) -> str:
    """Return the SHA-256 of a certificate, as sha256sum(1) prints it for its file."""
    return hashlib.sha256(der).hexdigest()


def _content(package: Package, tree: Path, path: Path) -> bytes:
    """Return a file of a package with keys, which is extracted in ``tree``."""
    file = tree / path
    if not file.is_file():
        raise TrustError(
            f"{package.path} has no {path}", expected="the archive's package", hint=_DAMAGED
        )
    return file.read_bytes()


@contextlib.contextmanager
def _extracted(package: Package) -> Iterator[Path]:
    """Yield a directory with the files of a package, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="cplayground-keyring-") as name:
        run(
            ["dpkg-deb", "--extract", package.path, name],
            timeout_s=_TIMEOUT_S,
            error=TrustError,
            hint=_DAMAGED,
        )
        yield Path(name)


def _above(last: str | None, dates: list[datetime], mark: str) -> str:
    """Return the version of the first of ``dates`` that is above ``last``, or the next number."""
    versions = [f"{date.astimezone(UTC):%Y.%m.%d}+{mark}" for date in dates]
    if last is None:
        return versions[0]
    for version in versions:
        if _ordered(version) > _ordered(last):
            return version
    year, month, day, number = _ordered(last)
    return f"{year:04}.{month:02}.{day:02}.{number + 1}+{mark}"


def _ordered(version: str) -> tuple[int, int, int, int]:
    found = _VERSION.fullmatch(version)
    if found is None:
        raise BuildError(f"{NAME} has the strange version {version}", expected="2026.11.30+deb12")
    return int(found[1]), int(found[2]), int(found[3]), int(found[4] or 0)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if url and (parts.scheme not in ("http", "https", "file") or re.search(r"\s", url)):
        raise UserError(
            f"archive_url is no address for apt: {url}", expected="http://<host>/<path>"
        )
    if parts.username or parts.password:
        raise UserError(
            "archive_url has a login, which every server's users could read",
            hint="leave it out, and give it to the servers in /etc/apt/auth.conf.d",
        )


def _build(
    settings: Settings,
    suite: str,
    keyring: bytes,
    ders: Sequence[bytes],
    version: str,
    out: Path,
) -> Package:
    row = suites.suite(suite)
    year, month, day, _ = _ordered(version)
    epoch = int(datetime(year, month, day, tzinfo=UTC).timestamp())
    context = {
        "suite": row.codename,
        "dist": row.name,
        "url": settings.archive_url,
        "component": indexes.COMPONENT,
        "architecture": indexes.ARCHITECTURE,
        "keyring": f"/{KEYRING}",
    }
    with tempfile.TemporaryDirectory(prefix="cplayground-keyring-") as name:
        work = Path(name)
        tree = work / "tree"
        templates = settings.project / "debian" / "keyring"
        source = deb.SourcePackage(NAME, version, templates, {}, context)
        deb.render(source, work, epoch=epoch)
        docs = Path("usr/share/doc", NAME)
        files = {
            KEYRING: keyring,
            SOURCES: (work / SOURCES.name).read_bytes(),
            docs / "copyright": (work / "copyright").read_bytes(),
            docs / "changelog.gz": gzip.compress((work / "changelog").read_bytes(), mtime=0),
            Path("usr/share/lintian/overrides", NAME): (work / "lintian-overrides").read_bytes(),
            **{_place(number): der for number, der in enumerate(ders, 1)},
        }
        sums = [f"{hashlib.md5(raw).hexdigest()}  {path}\n" for path, raw in files.items()]
        files |= {
            Path("DEBIAN/md5sums"): "".join(sums).encode(),
            **{Path("DEBIAN", one): (work / one).read_bytes() for one in ("control", "conffiles")},
        }
        for path, raw in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(raw)
        for path in (tree, *tree.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        file = f"{NAME}_{version}_all.deb"
        run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, work / file],
            env={"SOURCE_DATE_EPOCH": str(epoch)},
            timeout_s=_TIMEOUT_S,
        )
        fs.write_atomic(out / file, (work / file).read_bytes())
    return Package(NAME, version, "all", out / file, fs.sha256_file(out / file))


def _place(number: int) -> Path:
    """Return the path of a certificate for Secure Boot, from 1 on."""
    return MOK if number == 1 else MOK.with_stem(f"{MOK.stem}-{number}")
