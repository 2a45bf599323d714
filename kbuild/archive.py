"""The chain of trust: a signed InRelease, the indexes that it lists, the packages they list.

gpgv(1) checks the signature with the suite's keyring, and only what gpgv itself gives
back as the signed text is read.  Everything below is bound to it by size and SHA-256.
"""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import json
import logging
import lzma
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from debian.deb822 import Packages
from debian.deb822 import Release as ReleaseFile

from kbuild import download, fs, mirror
from kbuild.access import masked
from kbuild.download import Network, PassingError, UnavailableError, Wanted
from kbuild.errors import InfrastructureError, LostDependencyError, TrustError
from kbuild.model import Settings
from kbuild.run import run
from kbuild.suites import Suite

logger = logging.getLogger(__name__)

PACKAGES = "main/binary-amd64/Packages.xz"

# OpenPGP's numbers (RFC 9580, 9.5) of the digests that a signature may rest on: SHA-2 and SHA-3.
_DIGESTS = {"8", "9", "10", "12", "14"}
# How far a mirror's clock may be ahead of ours.
_CLOCK_SKEW = timedelta(hours=24)
# Changes when an extract's content does, so that one written by older code is not read.
_EXTRACT_FORMAT = 1
_STATUS = "[GNUPG:] "
_CLEARSIGNED = b"-----BEGIN PGP SIGNED MESSAGE-----"
_GPGV_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Release:
    """A dist's InRelease whose signature, name and age were found good."""

    dist: str  # bookworm-security
    bases: tuple[str, ...]  # mirrors of it; the one that it came from is first
    signers: tuple[str, ...]  # primary key fingerprints of the good signatures
    date: datetime
    expired: bool  # past its Valid-Until, and taken nevertheless, by request or offline
    by_hash: bool
    files: Mapping[str, Wanted]  # by their path below dists/<dist>/


@dataclass(frozen=True)
class Listed:
    """A binary package as an index lists it."""

    package: str
    version: str
    source: str  # the source package's name
    depends: str
    filename: str  # below the mirror's base URL
    size: int  # bytes
    sha256: str

    @property
    def wanted(self) -> Wanted:
        """The same, as what is to be downloaded."""
        name = PurePosixPath(self.filename).name
        return Wanted(what=self.filename, name=name, size=self.size, sha256=self.sha256)


def release(
    settings: Settings, suite: Suite, dist: str, bases: Sequence[str], network: Network
) -> Release:
    """Return a dist's InRelease from the first mirror whose copy can be trusted.

    The last good one is kept in the cache: a server may answer that it is unchanged, an
    offline run uses it (checked again, its age only said), and a mirror that has an older
    one is passed over.  Raises TrustError when a mirror's copy was refused and no other
    was good, InfrastructureError when none could be had.
    """
    home = settings.cache / "dists" / dist
    with fs.lock(settings.cache / "locks" / f"dist-{dist}.lock"):
        if settings.offline:
            return _offline(settings, suite, dist, bases, home)
        known = _stored(home)
        refused: TrustError | None = None
        reasons = []
        for base in bases:
            url = mirror.inrelease_url(base, dist)
            same = known if known is not None and known["url"] == url else None
            try:
                document = download.document(
                    network,
                    url,
                    etag=same["etag"] if same else "",
                    modified=same["modified"] if same else "",
                )
            except (PassingError, UnavailableError) as error:
                logger.info("%s: %s", masked(url), error)
                reasons.append(f"{masked(url)}: {error}")
                continue
            content = (home / "InRelease").read_bytes() if document is None else document.content
            try:
                found = check_release(settings, suite, dist, content, masked(url))
                if known is not None and found.date.timestamp() < float(known["date"]):
                    raise TrustError(
                        f"{masked(url)} is older than the one seen before",
                        expected=f"{datetime.fromtimestamp(float(known['date']), UTC)} or later",
                        found=str(found.date),
                        hint="the mirror lags behind; try again later, or another with --mirror",
                    )
            except TrustError as error:
                logger.warning("%s", error)
                refused = refused or error
                continue
            if document is not None:
                # The note goes first: one without its InRelease is no harm, its digest differs.
                note = {
                    "url": url,
                    "etag": document.etag,
                    "modified": document.modified,
                    "date": str(found.date.timestamp()),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                fs.write_json(home / "InRelease.json", note)
                fs.write_atomic(home / "InRelease", content)
            rest = tuple(b for b in bases if b != base)
            return dataclasses.replace(found, bases=(base, *rest))
    if refused is not None:
        raise refused
    raise InfrastructureError(
        f"no mirror has {dist}, or none can be reached",
        found="\n".join(reasons) or "no mirror to ask",
        hint="check the network, give another mirror with --mirror, "
        "or use what the cache has with --offline",
    )


def _offline(
    settings: Settings, suite: Suite, dist: str, bases: Sequence[str], home: Path
) -> Release:
    path = home / "InRelease"
    if not path.exists():
        raise InfrastructureError(
            f"the index of {dist} is not in the cache, and this run is offline",
            expected=str(path),
            hint="run 'invoke fetch' once without --offline",
        )
    found = check_release(settings, suite, dist, path.read_bytes(), str(path))
    return dataclasses.replace(found, bases=tuple(bases))


def _stored(home: Path) -> dict[str, str] | None:
    """Read the note beside the InRelease in the cache, if both are there and belong together."""
    try:
        note: dict[str, str] = json.loads((home / "InRelease.json").read_text())
        if fs.sha256_file(home / "InRelease") != note["sha256"]:
            return None
        return {key: str(note[key]) for key in ("url", "etag", "modified", "date")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_release(
    settings: Settings, suite: Suite, dist: str, content: bytes, where: str
) -> Release:
    """Check an InRelease: signature, that it is the dist asked for, and its age.

    Raises TrustError which names ``where``.
    """
    text, signers = verify(Path(suite.keyring), content, where)
    fields = ReleaseFile(text)
    names = [fields.get("Codename", ""), fields.get("Suite", "")]
    if dist not in names:
        raise TrustError(
            f"{where} speaks of another suite",
            expected=dist,
            found=f"Codename {names[0] or 'missing'}, Suite {names[1] or 'missing'}",
            hint="the mirror serves the wrong directory; give another with --mirror",
        )
    now = datetime.now(UTC)
    date = _date(fields, "Date", where)
    if date is None:
        raise TrustError(f"{where} has no Date", expected="a Date field", found="none")
    if date > now + _CLOCK_SKEW:
        raise TrustError(
            f"{where} is dated in the future",
            expected=f"{now:%Y-%m-%d %H:%M} UTC, or before",
            found=f"{date:%Y-%m-%d %H:%M} UTC",
            hint="set this machine's clock",
        )
    until = _date(fields, "Valid-Until", where)
    expired = until is not None and until < now
    if expired:
        if not (settings.accept_expired or settings.offline):
            raise TrustError(
                f"{where} has expired",
                expected=f"Valid-Until after {now:%Y-%m-%d %H:%M} UTC",
                found=f"{until:%Y-%m-%d %H:%M} UTC",
                hint="the mirror is no longer updated, or this machine's clock is wrong; "
                "give another mirror with --mirror, or take it as it is with --accept-expired",
            )
        logger.warning("%s expired on %s; it is used all the same", where, until)
    return Release(
        dist=dist,
        bases=(),
        signers=signers,
        date=date,
        expired=expired,
        by_hash=fields.get("Acquire-By-Hash", "no").strip().lower() == "yes",
        files={
            entry["name"]: Wanted(
                what=f"dists/{dist}/{entry['name']}",
                name=PurePosixPath(entry["name"]).name,
                size=int(entry["size"]),
                sha256=entry["sha256"],
            )
            for entry in fields.get("SHA256", [])
        },
    )


def verify(keyring: Path, content: bytes, where: str) -> tuple[str, tuple[str, ...]]:
    """Return a clear-signed text as gpgv gives it back, and the fingerprints that signed it.

    One good signature is needed, and no bad one is tolerated; signatures by keys that the
    keyring does not have are passed over, because an archive changes its keys with overlap.
    Raises TrustError; LostDependencyError without gpgv or the keyring.
    """
    if not keyring.exists():
        raise LostDependencyError(
            f"the keyring {keyring} is not on this machine",
            hint="install debian-archive-keyring",
        )
    # gpgv would also unpack a compressed message, whatever its size, before it knows the signer.
    if not content.lstrip().startswith(_CLEARSIGNED):
        raise _unsigned(keyring, where, "no clear-signed text")
    with tempfile.TemporaryDirectory(prefix="cplayground-gpgv-") as name:
        scratch = Path(name)
        (scratch / "signed").write_bytes(content)
        completed = run(
            [
                *("gpgv", "--homedir", scratch, "--keyring", keyring.resolve()),
                *("--status-fd", "1", "--output", scratch / "text", scratch / "signed"),
            ],
            timeout_s=_GPGV_TIMEOUT_S,
            check=False,
            error=TrustError,
            hint="the mirror is damaged or lying: give another with --mirror",
        )
        status = [
            line.removeprefix(_STATUS).split()
            for line in completed.stdout.splitlines()
            if line.startswith(_STATUS)
        ]
        signers = good_signers(status)
        plain = sum(words[0] == "PLAINTEXT" for words in status)
        if not signers or plain != 1 or not (scratch / "text").exists():
            raise _unsigned(keyring, where, completed.stderr.strip() or "no signature")
        return (scratch / "text").read_text(errors="replace"), signers


def _unsigned(keyring: Path, where: str, found: str) -> TrustError:
    return TrustError(
        f"{where} is not signed by a key of the archive's keyring",
        expected=f"a good signature by a key in {keyring}",
        found=found,
        hint="the mirror is damaged or lying, or debian-archive-keyring is too old",
    )


def good_signers(status: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the primary fingerprints of the good signatures in gpgv's status lines.

    A bad signature beside a good one makes none of them count.
    VALIDSIG alone is not enough: gpgv also says it after EXPKEYSIG and REVKEYSIG (GnuPG's
    doc/DETAILS), so it counts only where GOODSIG opened the same signature's lines.
    """
    signers = []
    good = False
    for words in status:
        match words:
            case ["NEWSIG", *_]:
                good = False
            case ["GOODSIG", *_]:
                good = True
            case ["BADSIG", *_]:
                return ()
            case ["VALIDSIG", fingerprint, *rest] if good:
                if len(rest) >= 7 and rest[6] in _DIGESTS:
                    signers.append(rest[8] if len(rest) > 8 else fingerprint)
                good = False
            case _:
                pass
    return tuple(sorted(set(signers)))


def _date(fields: ReleaseFile, name: str, where: str) -> datetime | None:
    text = fields.get(name)
    if text is None:
        return None
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        raise TrustError(
            f"{where}: {name} is not a date", expected="a date as in e-mail", found=text
        ) from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def index(settings: Settings, found: Release, path: str, network: Network) -> Path:
    """Return an index file that a release lists, verified, in the cache."""
    urls = []
    for base in found.bases:
        directory = f"{base}/dists/{found.dist}/{PurePosixPath(path).parent}"
        if found.by_hash:
            # The plain name may already be the next release's while a mirror is being updated.
            urls.append(f"{directory}/by-hash/SHA256/{_listed(found, path).sha256}")
        urls.append(f"{directory}/{PurePosixPath(path).name}")
    return download.fetch(settings, _listed(found, path), urls, network)


def packages(settings: Settings, found: Release, network: Network, *, prefix: str) -> list[Listed]:
    """Return the packages of a release's main component whose names begin with ``prefix``.

    The few that match out of tens of thousands are kept in the cache beside the index's
    digest, so that an index is decompressed and read once.
    """
    wanted = _listed(found, PACKAGES)
    extract = settings.cache / "extracts" / f"{wanted.sha256}.{prefix}{_EXTRACT_FORMAT}.json"
    kept = _read_extract(extract)
    if kept is not None:
        fs.mark_used(extract)
        return kept
    path = index(settings, found, PACKAGES, network)
    try:
        raw = lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise TrustError(
            f"{wanted.what} is what the archive signed, but cannot be decompressed",
            found=str(error),
        ) from error
    # python-debian takes seconds for all of Debian; only what may match is given to it.
    start = f"Package: {prefix}".encode()
    matching = (s for s in raw.split(b"\n\n") if s.lstrip(b"\n").startswith(start))
    listed = [
        Listed(
            package=stanza["Package"],
            version=stanza["Version"],
            source=stanza.get("Source", stanza["Package"]).split()[0],
            depends=stanza.get("Depends", ""),
            filename=stanza["Filename"],
            size=int(stanza["Size"]),
            sha256=stanza["SHA256"],
        )
        for stanza in Packages.iter_paragraphs(b"\n\n".join(matching), use_apt_pkg=False)
    ]
    body = json.dumps([dataclasses.asdict(one) for one in listed])
    fs.write_atomic(extract, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
    return listed


def _read_extract(path: Path) -> list[Listed] | None:
    try:
        digest, _, body = path.read_text().partition("\n")
        if hashlib.sha256(body.encode()).hexdigest() != digest:
            logger.warning("%s is damaged and is made again", path)
            return None
        return [Listed(**one) for one in json.loads(body)]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged and is made again: %s", path, error)
        return None


def _listed(found: Release, path: str) -> Wanted:
    try:
        return found.files[path]
    except KeyError:
        raise InfrastructureError(
            f"{found.dist} does not list {path}",
            expected=f"{path} under SHA256 in its InRelease",
            found=f"{len(found.files)} other files",
            hint="this is no mirror of Debian for amd64; give another with --mirror",
        ) from None
