"""Follow the chain of trust: a signed InRelease, the index that it lists, the index's packages.

apt-get(8) fetches and checks both with the suite's keyring, in directories of its own in the
cache for each dist.  So apt judges signature, age, sizes and digests, and it never replaces an
index by an older one.  It also says where a package lies, and its digest.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from debian.deb822 import Packages
from debian.deb822 import Release as ReleaseFile

from kbuild.core import fs, suites
from kbuild.core.errors import (
    ExpiredError,
    FullDiskError,
    InfrastructureError,
    KbuildError,
    LostDependencyError,
    TrustError,
)
from kbuild.core.model import Settings
from kbuild.core.run import run
from kbuild.core.secrets import redact
from kbuild.core.suites import Suite
from kbuild.fetch import access, mirror
from kbuild.fetch.access import bare
from kbuild.fetch.download import Network, PassingError, Wanted

logger = logging.getLogger(__name__)

PACKAGES = "main/binary-amd64/Packages"

# The last word of this gpgv line is the primary key's fingerprint (GnuPG's doc/DETAILS).
_SIGNED = "[GNUPG:] VALIDSIG "
# Take from the machine's configuration only how it reaches mirrors.  Its hooks must not run, and
# it may have switched checks off.
_CONFIGURATION = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
{reaching}
Dir::Etc::sourcelist "{private}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::netrc "{private}/auth.conf";
Dir::Etc::netrcparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::State "{private}";
Dir::State::lists "{lists}";
Dir::State::status "/dev/null";
Dir::Cache "{private}";
Dir::Cache::archives "{private}";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
Acquire::AllowReleaseInfoChange "true";
Acquire::Check-Valid-Until "{check_age}";
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::Retries "0";
Acquire::http::Timeout "{timeout_s}";
Acquire::https::Timeout "{timeout_s}";
"""
# apt's messages about wrong content, as opposed to missing content; since trixie, sqv's.
_REFUSED = re.compile(
    r"GPG error|OpenPGP signature verification failed|Clearsigned file|Splitting up"
    r"|signatures? (?:was|were|could)|not valid yet|Hash Sum mismatch"
    r"|unexpected size|insufficient|too weak"
)
# apt's message about an InRelease past its Valid-Until.
_EXPIRED = re.compile(r"is expired")
# The same request would get these answers again.
_LASTING = re.compile(r"\b(?:3\d\d|4(?!08|25|29)\d\d) ")
# The mirror's base URL is in a file of the working directory.  With this path instead of the URL
# in its indexes' names, apt remembers the newest index of any mirror.  The path leads through
# /proc, because apt's method for such files hangs if a path has a character to quote.
_URI = "mirror+file:/proc/self/cwd/mirrors"
_KEPT = "_proc_self_cwd_mirrors"  # prefix of its indexes' names
_STRANGER = re.compile(r"NO_PUBKEY|Missing key")


@dataclass(frozen=True)
class Release:
    """A dist's InRelease that apt accepted."""

    dist: str  # bookworm-security
    bases: tuple[str, ...]  # its mirrors; the first one delivered it
    signers: tuple[str, ...]  # primary key fingerprints of the good signatures
    expired: bool  # past its Valid-Until; accepted on request or offline


@dataclass(frozen=True)
class Listed:
    """A binary package as listed by an index."""

    package: str
    version: str
    source: str  # the source package's name
    depends: str


def read(
    settings: Settings,
    suite: Suite,
    dist: str,
    bases: Sequence[str],
    network: Network,
    *,
    prefix: str | None,
) -> tuple[Release, list[Listed]]:
    """Return a dist's release, and its packages whose names begin with ``prefix``.

    The index comes from the first mirror whose copy apt accepts; offline, it comes from the
    cache and is checked again.  Raises TrustError if a mirror's copy was refused and no other
    was good, and InfrastructureError if no mirror delivered one.
    """
    if not Path(suite.keyring).exists():
        raise LostDependencyError(
            f"the keyring {suite.keyring} is not on this machine",
            hint="install debian-archive-keyring",
        )
    failures: dict[str, KbuildError] = {}
    home = settings.cache / "apt" / dist
    with fs.lock(settings.cache / "locks" / f"dist-{dist}.lock"):
        here = _Apt(settings, suite, dist, tuple(bases), network, home)
        if settings.offline:
            return _read(here, prefix)
        here.lists.mkdir(parents=True, exist_ok=True)
        # A killed run left it; the lock proves that no other run works in it.
        for left in home.glob("update.*"):
            fs.remove_tree(left)
        undamaged = _undamaged(here)
        for base in bases:
            known = [one for one, error in failures.items() if _foreign(settings, one, error)]
            order = (base, *(one for one in bases if one not in (base, *known)))
            with tempfile.TemporaryDirectory(dir=home, prefix="update.") as name:
                apt = _Apt(settings, suite, dist, order, network, Path(name))
                try:
                    _update(apt, undamaged)
                    result = _read(apt, prefix)
                except FullDiskError:
                    raise
                except (TrustError, InfrastructureError) as error:
                    refused = isinstance(error, TrustError) and not _foreign(settings, base, error)
                    level = logging.WARNING if refused else logging.INFO
                    logger.log(level, "%s: %s", redact(base), error)
                    failures[base] = error
                    continue
                # The InRelease remembers the newest index, so it must always exist.
                apt.packages.replace(here.packages)
                fs.write_atomic(here.inrelease, apt.inrelease.read_bytes())
                return result
    raise _no_index(settings, dist, failures)


def _read(apt: _Apt, prefix: str | None) -> tuple[Release, list[Listed]]:
    fields, signers = _signed(apt)
    found = _checked(apt, fields, signers)
    return found, [] if prefix is None else _packages(apt, fields, prefix)


def _foreign(settings: Settings, base: str, error: KbuildError) -> bool:
    """Return whether a mirror in the machine's sources serves another archive than Debian's."""
    given = [url.rstrip("/") for url in settings.mirrors]
    return base not in given and _STRANGER.search(error.found or "") is not None


def _no_index(settings: Settings, dist: str, failures: Mapping[str, KbuildError]) -> KbuildError:
    # Another archive in the machine's sources proves nothing about Debian's.
    counting = [e for base, e in failures.items() if not _foreign(settings, base, e)]
    found = "\n".join(
        f"{redact(base)}: {error.what}\n{error.found or ''}".rstrip()
        for base, error in failures.items()
    )
    refusals = [e for e in counting or failures.values() if isinstance(e, TrustError)]
    if refusals:
        expired = all(isinstance(error, ExpiredError) for error in refusals)
        return (ExpiredError if expired else TrustError)(
            f"the index of {dist} was refused",
            expected="an index of that suite, signed by Debian's keys and not expired",
            found=found,
            hint="a mirror is damaged, out of date or lying; or this machine's clock is wrong; or "
            "debian-archive-keyring is too old; add another mirror with --mirror, or accept one "
            "that has only expired with --accept-expired",
        )
    return InfrastructureError(
        f"no mirror has {dist}, or no mirror can be reached",
        found=found or "no mirror to ask",
        hint="check the network, add another mirror with --mirror, or use the cache with --offline",
    )


@dataclass(frozen=True)
class _Apt:
    """apt-get with its own directories for one dist."""

    settings: Settings
    suite: Suite
    dist: str
    bases: tuple[str, ...]  # the first one is to be read
    network: Network
    home: Path  # the working directory of apt-get update

    @property
    def lists(self) -> Path:
        """Return the directory of the indexes."""
        return self.home / "lists"

    @property
    def inrelease(self) -> Path:
        """Return the path of apt's InRelease."""
        return self.lists / f"{_KEPT}_dists_{self.dist}_InRelease"

    @property
    def packages(self) -> Path:
        """Return the path of apt's index of packages."""
        return self.lists / f"{_KEPT}_dists_{self.dist}_{PACKAGES.replace('/', '_')}"

    @contextlib.contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """Yield the environment that configures apt's programs in the block."""
        with tempfile.TemporaryDirectory(prefix="cplayground-apt-") as name:
            private = Path(name)
            reach = self.network.access
            (private / "partial").mkdir()
            (private / "auth.conf").write_text(reach.auth_conf(self.bases))
            line = f"deb [signed-by={self.suite.keyring}] {_URI} {self.dist} main\n"
            (private / "sources.list").write_text(line)
            text = _CONFIGURATION.format(
                reaching=reach.apt_conf,
                private=private,
                lists=self.lists,
                check_age="false" if self.settings.accept_expired else "true",
                timeout_s=max(1, round(self.network.read_timeout_s)),
            )
            with access.configured(text) as env:
                yield env


def _undamaged(apt: _Apt) -> tuple[Path, ...]:
    """Return the undamaged files of an earlier run.

    apt would not fetch a damaged index again, and it would believe a damaged InRelease about the
    age of the newest index.
    """
    if not apt.inrelease.exists():
        return ()
    good: tuple[Path, ...] = ()
    try:
        fields, _ = _signed(apt)
        good = (apt.inrelease,)
        _index(apt, fields)
    except (TrustError, InfrastructureError) as error:
        logger.warning("the index of %s is damaged and is fetched again: %s", apt.dist, error)
        return good
    return (*good, apt.packages)


def _update(apt: _Apt, before: Sequence[Path]) -> None:
    """Let apt update the index from the first mirror, starting with the files ``before``."""
    (apt.lists / "partial").mkdir(parents=True)
    for path in before:
        # apt replaces files and never writes into one, so links are safe.
        (apt.lists / path.name).hardlink_to(path)
    fs.write_atomic(apt.home / "mirrors", f"{bare(apt.bases[0])}\n")
    try:
        for attempt in apt.network.retry(apt.bases[0]):
            with attempt:
                _update_once(apt)
    except PassingError as error:
        raise InfrastructureError("apt cannot fetch the index", found=str(error)) from error


def _update_once(apt: _Apt) -> None:
    proxy = apt.network.access.proxy(apt.bases[0])
    with apt.environment() as env:
        done = run(
            [
                *("apt-get", "update", "--quiet", "--error-on=any"),
                *("--option", "pkgCacheFile::Generate=false"),
            ],
            cwd=apt.home,
            env=env,
            timeout_s=apt.network.index_timeout_s,
            check=False,
            error=InfrastructureError,
        )
    if done.returncode == 0:
        return
    # The reason for an "Err:" line is on the next line.
    lines = [*done.stderr.splitlines(), *(x for x in done.stdout.splitlines() if x[:1] == " ")]
    said = redact("\n".join(dict.fromkeys(line.strip() for line in lines)))
    said = said.replace(_URI, redact(apt.bases[0]))
    said += f"\n(through the proxy {redact(proxy)})" if proxy else ""
    if _REFUSED.search(said):
        raise TrustError("apt refuses the index", found=said)
    if _EXPIRED.search(said):
        raise ExpiredError("apt refuses the index", found=said)
    if _LASTING.search(said):
        raise InfrastructureError("apt cannot fetch the index", found=said)
    raise PassingError(said)


def _checked(apt: _Apt, fields: ReleaseFile, signers: tuple[str, ...]) -> Release:
    """Return the release; raise TrustError if it is of another dist or has expired."""
    names = [fields.get("Codename", ""), fields.get("Suite", "")]
    if apt.dist not in names:
        raise TrustError(
            f"the index of {apt.dist} names another suite",
            found=f"not {apt.dist}, but Codename {names[0] or 'missing'}, "
            f"Suite {names[1] or 'missing'}",
        )
    until = _date(fields.get("Valid-Until"))
    expired = until is not None and until < datetime.now(UTC)
    if expired and not (apt.settings.accept_expired or apt.settings.offline):
        # The index that apt remembers has expired, and the mirror has an older one.
        what = f"the index of {apt.dist} has expired"
        raise ExpiredError(what, found=f"it is expired on {until}")
    if expired:
        logger.warning("the index of %s expired on %s; it is used anyway", apt.dist, until)
    return Release(apt.dist, apt.bases, signers, expired)


def _signed(apt: _Apt) -> tuple[ReleaseFile, tuple[str, ...]]:
    """Return an InRelease's fields, and the fingerprints of the keys that signed it.

    apt checked it when it arrived.  This finds later damage, and the signers.
    """
    path = apt.inrelease
    if not path.exists():
        raise InfrastructureError(
            f"the index of {apt.dist} is not in the cache, and this run is offline"
            if apt.settings.offline
            else f"{apt.dist} has no InRelease",
            expected=str(path),
            hint="run './inv fetch' once without --offline",
        )
    with tempfile.TemporaryDirectory(prefix="cplayground-gpgv-") as name:
        text = Path(name) / "text"
        completed = run(
            [
                *("gpgv", "--homedir", name, "--keyring", Path(apt.suite.keyring).resolve()),
                *("--status-fd", "1", "--output", text, path),
            ],
            timeout_s=60,
            check=False,
            error=InfrastructureError,
        )
        lines = completed.stdout.splitlines()
        signers = {line.split()[-1] for line in lines if line.startswith(_SIGNED)}
        if not signers or not text.exists():
            raise TrustError(
                f"{path} is not signed by a key of the archive's keyring",
                expected=f"a good signature by a key in {apt.suite.keyring}",
                found=completed.stderr.strip() or "no signature",
                hint="run './inv fetch' without --offline, which replaces it",
            )
        return ReleaseFile(text.read_text(errors="replace")), tuple(sorted(signers))


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    date = email.utils.parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _index(apt: _Apt, fields: ReleaseFile) -> bytes:
    """Return the index of packages; raise an error unless the InRelease lists it."""
    sha256 = {entry["name"]: entry["sha256"] for entry in fields.get("SHA256", [])}.get(PACKAGES)
    path = apt.packages
    if sha256 is None or not path.exists():
        raise InfrastructureError(
            f"{apt.dist} has no {PACKAGES}",
            expected=f"{PACKAGES} under SHA256 in its InRelease, and at {path}",
            hint="this is not a Debian mirror for amd64; add another with --mirror",
        )
    text = path.read_bytes()
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise TrustError(
            f"{path} is not the index that its InRelease lists",
            expected=f"sha256 {sha256}",
            found=f"sha256 {found}",
            hint="run './inv fetch' without --offline, which replaces it",
        )
    return text


def _packages(apt: _Apt, fields: ReleaseFile, prefix: str) -> list[Listed]:
    raw = _index(apt, fields)
    # python-debian takes seconds for all of Debian, so it only gets the entries that may match.
    start = f"Package: {prefix}".encode()
    matching = (s for s in raw.split(b"\n\n") if s.lstrip(b"\n").startswith(start))
    return [
        Listed(
            package=stanza["Package"],
            version=stanza["Version"],
            source=stanza.get("Source", stanza["Package"]).split()[0],
            depends=stanza.get("Depends", ""),
        )
        for stanza in Packages.iter_paragraphs(b"\n\n".join(matching), use_apt_pkg=False)
    ]


def locate(
    settings: Settings,
    suite: Suite,
    found: Release,
    packages: Sequence[Listed],
    network: Network,
) -> dict[Listed, Wanted]:
    """Ask apt for the paths of packages on a mirror of a release, their sizes and digests.

    This needs no network.  Raises InfrastructureError if another run has fetched an index that
    does not list them any more.
    """
    home = settings.cache / "apt" / found.dist
    apt = _Apt(settings, suite, found.dist, found.bases, network, home)
    wishes = [f"{one.package}={one.version}" for one in packages]
    with fs.lock(settings.cache / "locks" / f"dist-{found.dist}.lock"), apt.environment() as env:
        listing = run(
            ["apt-get", "--print-uris", "download", *wishes],
            env=env,
            timeout_s=120,
            error=InfrastructureError,
            hint="another run may have fetched a newer index: run this again",
        ).stdout
    # apt names a file like this: linux-source-6.1_6.1.192-1_all.deb.
    line = re.compile(
        rf"'{re.escape(_URI)}/(?P<path>\S+)' (?P<name>\S+)_[^_]+ (?P<size>\d+)"
        r" SHA256:(?P<sha256>[0-9a-f]{64}) *"
    )
    files = {}
    for match in filter(None, map(line.fullmatch, listing.splitlines())):
        path = unquote(match["path"])
        wanted = Wanted(path, PurePosixPath(path).name, int(match["size"]), match["sha256"])
        files[match["name"]] = wanted
    return {one: files[f"{one.package}_{one.version.replace(':', '%3a')}"] for one in packages}


def sources_list(
    settings: Settings, suite: str, *, apt: Path = mirror.APT, network: Network | None = None
) -> str:
    """Return apt's one-line sources for a suite, its pockets and its security pocket.

    Each dist comes from the first mirror whose index apt accepts.  Logins are left out, because a
    root keeps its sources.  Raises the errors of :func:`kbuild.fetch.mirror.find` and
    :func:`read`, and InfrastructureError if the run is offline.
    """
    row = suites.suite(suite)
    found = mirror.find(settings, apt=apt)
    if settings.offline:
        raise InfrastructureError(
            f"a mirror's packages of {suite} are needed, and this run is offline",
            hint="run this once without --offline; the cache keeps the result",
        )
    network = network or Network(access.of(apt))
    options = f"signed-by={row.keyring}"
    if settings.accept_expired:
        options += " check-valid-until=no"
    lines = []
    for dist, urls in mirror.dists(row, found):
        release, _ = read(settings, row, dist, urls, network, prefix=None)
        lines.append(f"deb [{options}] {bare(release.bases[0])} {dist} main\n")
    return "".join(lines)
