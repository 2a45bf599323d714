"""Read the whole archive, and say what is wrong in it, where, and what was expected.

Nothing is changed.  The remains of a killed writer are no damage: the next writer removes them.
"""

from __future__ import annotations

import logging
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from debian.deb822 import Packages
from debian.deb822 import Release as ReleaseFile

from kbuild.archive import contents, evidence, place, pool, records, snapshots
from kbuild.archive.contents import ALL, Entry, Plan
from kbuild.archive.evidence import MISSING
from kbuild.archive.release import VISIBLE, Record
from kbuild.core import fs, progress
from kbuild.core.errors import EvidenceError, KbuildError, SigningError, TrustError
from kbuild.core.model import Settings
from kbuild.ship import keyring_package, provenance, signing

logger = logging.getLogger(__name__)

_TOP = {place.MARK, pool.HOME, records.HOME, snapshots.HOME, snapshots.DISTS, *place.OTHERS}
_SIGNATURE = ".asc"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be; ``path`` is relative to the archive."""

    path: str
    what: str
    expected: str = ""
    found: str = ""
    # A record or its evidence, instead of what servers download.
    evidence: bool = False

    def __str__(self) -> str:
        text = f"{self.path}: {self.what}"
        text += f"; expected {self.expected}" if self.expected else ""
        return text + (f"; found {self.found}" if self.found else "")


@dataclass(frozen=True)
class Verification:
    """The numbers of things that were read, and the findings."""

    root: Path
    packages: int
    bytes: int  # of the packages
    releases: int
    dists: tuple[str, ...]  # names in dists/
    findings: tuple[Finding, ...]


@dataclass
class _Reader:
    """The archive while it is read; each check appends what it finds."""

    settings: Settings
    root: Path
    now: datetime
    ring: Path | None  # the public keys of now
    old_ring: Path | None  # these and all former ones
    findings: list[Finding] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)  # of the files in the pool

    def find(self, path: Path, what: str, expected: object = "", found: object = "") -> None:
        """Note a finding."""
        name = path.relative_to(self.root).as_posix()
        about = path.is_relative_to(self.root / records.HOME)
        self.findings.append(Finding(name, what, str(expected), str(found), about))

    def stray(self, path: Path) -> None:
        """Note a file that does not belong to the archive."""
        self.find(path, "it does not belong here")


def check(settings: Settings) -> Verification:
    """Check every signature, date, hash, by-hash file, index, record and piece of evidence.

    Raises UserError if there is no archive, or one of a newer version.
    """
    with place.reading(settings) as root, tempfile.TemporaryDirectory() as name:
        if root is None:
            raise place.none(settings)
        reader = _Reader(settings, root, datetime.now(UTC), *_rings(settings, Path(name)))
        if reader.ring is None and _listed(root / snapshots.DISTS):
            reader.find(root / snapshots.DISTS, "no signature can be verified without a key")
        for part in (_pool, _records, _dists, _top):
            part(reader)
        return Verification(
            root=root,
            packages=len(reader.hashes),
            bytes=sum((root / one).stat().st_size for one in reader.hashes),
            releases=len(reader.records),
            dists=tuple(sorted(path.name for path in _listed(root / snapshots.DISTS))),
            findings=tuple(reader.findings),
        )


def error(found: Verification) -> KbuildError | None:
    """Return the error that lists all findings; None if there is none.

    It is a TrustError if servers are concerned, and an EvidenceError if only records are.
    """
    if not found.findings:
        return None
    kind = EvidenceError if all(one.evidence for one in found.findings) else TrustError
    return kind(
        f"{found.root} is damaged: {len(found.findings)} findings",
        expected="what the records, the indexes and their signatures say",
        found="\n".join(map(str, found.findings)),
        hint="if a task was interrupted, run it again; copy damaged files from a backup;"
        " docs/reference/archive.md describes each file",
    )


def _rings(settings: Settings, scratch: Path) -> tuple[Path | None, Path | None]:
    try:
        rings = [signing.keyring(settings), signing.keyring(settings, retired=True)]
    except SigningError as failed:
        logger.warning("%s", failed)
        return None, None
    paths = [scratch / "now.gpg", scratch / "ever.gpg"]
    for path, ring in zip(paths, rings, strict=True):
        path.write_bytes(ring)
    return paths[0], paths[1]


def _listed(directory: Path) -> list[Path]:
    """Return the entries of a directory without the scratch files of writers."""
    return sorted(directory.glob("[!.]*"))


def _files(directory: Path) -> list[Path]:
    """Return everything below a directory that is not a directory itself."""
    return sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())


# The pool.


def _pool(reader: _Reader) -> None:
    """Hash every package, and check that each is a plain file which servers can read."""
    paths = [path for path in pool.files(reader.root) if not path.name.startswith(".")]
    total = sum(path.lstat().st_size for path in paths)
    done = 0
    with progress.bar("reading the archive", total, unit="bytes") as advance:
        for path in paths:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                reader.stray(path)
                continue
            if status.st_mode & 0o777 != 0o644:
                reader.find(path, "it has another mode", "0644", f"{status.st_mode & 0o7777:04o}")
            reader.hashes[path.relative_to(reader.root).as_posix()] = fs.sha256_file(path)
            done += status.st_size
            advance(done)


# Records and evidence.


def _records(reader: _Reader) -> None:
    known = records.ids(reader.root)
    for home in _listed(reader.root / records.HOME):
        if home.name not in known:
            reader.stray(home)
            continue
        try:
            record = records.read(reader.root, home.name)
        except EvidenceError as failed:
            path = home / records.NAME
            reader.find(path, "it is damaged", failed.expected or "", failed.found or "")
            continue
        reader.records[home.name] = record
        _evidence(reader, home, record)
    for record in reader.records.values():
        if record.state in VISIBLE:
            _verdict(reader, record)


def _evidence(reader: _Reader, home: Path, record: Record) -> None:
    """Check the files next to a record."""
    for name, digest in record.evidence.items():
        path = home / name
        found = fs.sha256_file(path) if path.is_file() else MISSING
        if found != digest:
            reader.find(path, "the evidence has changed", digest, found)
        elif name.endswith(_SIGNATURE) and reader.old_ring is not None:
            signed = home / name.removesuffix(_SIGNATURE)
            try:
                signing.verify_detached(reader.old_ring, signed.read_bytes(), path.read_bytes())
            except (SigningError, OSError) as failed:
                reader.find(path, f"the signature does not verify: {failed}")
    if provenance.NAME in record.evidence:
        _provenance(reader, home / provenance.NAME, record)
    for path in _listed(home):
        if path.name not in (records.NAME, *record.evidence):
            reader.stray(path)


def _provenance(reader: _Reader, path: Path, record: Record) -> None:
    """Check that the packages of a release are the subjects of its provenance."""
    try:
        found = provenance.subjects(path)
    except EvidenceError as failed:
        reader.find(path, failed.what, failed.expected or "", failed.found or "")
        return
    recorded = {Path(one.path).name: one.sha256 for one in record.packages}
    for name in sorted(recorded.keys() | found.keys()):
        here, there = recorded.get(name, "no package"), found.get(name, "no subject")
        if here != there:
            reader.find(path, f"it is not about {name} of the record", here, there)


def _verdict(reader: _Reader, record: Record) -> None:
    """Check that the gate passed exactly the packages of a published release."""
    path = records.home(reader.root, record.id) / evidence.GATE
    if evidence.GATE not in record.evidence:
        reader.find(path, f"the release is {record.state.value} without a verdict of the gate")
    try:
        gate = evidence.read(path)
    except EvidenceError as failed:
        reader.find(path, "it is no verdict", failed.expected or "", failed.found or "")
        return
    packages = {Path(one.path).name: one.sha256 for one in record.packages}
    # Another release may have been the older one at that time, and the gate of that time may have
    # had fewer cases, so only staging and promote ask for these.
    for one in evidence.complaints(gate, record.id, packages, older=(), required=()):
        reader.find(path, one)


# Indexes.


def _dists(reader: _Reader) -> None:
    links: dict[str, int] = {}
    for link in _listed(reader.root / snapshots.DISTS):
        try:
            links[link.name] = snapshots.target(reader.root, link)
        except TrustError as failed:
            what = "it does not lead to a complete snapshot"
            reader.find(link, what, failed.expected or "", failed.found or "")
    plan: dict[str, tuple[Entry, ...]] = {}
    for name, number in links.items():
        try:
            plan[name] = snapshots.read(reader.root, number).plan[name]
        except (TrustError, KeyError) as failed:
            file = snapshots.path(reader.root, number) / snapshots.NAME
            reader.find(file, f"it does not describe {name}", found=failed)
            continue
        _dist(reader, name, number, plan[name])
    _shown(reader, plan)
    _named(reader, plan)


def _dist(reader: _Reader, name: str, number: int, entries: Sequence[Entry]) -> None:
    """Check one directory of indexes: signature, dates, hashes, by-hash and packages."""
    dist = snapshots.path(reader.root, number) / name
    release = _release(reader, dist)
    if release is None:
        return
    expected = {dist / "Release", dist / "InRelease"}
    for listed in release:
        path = dist / listed.name
        by_hash = path.parent / snapshots.BY_HASH / listed.sha256
        expected |= {path, by_hash}
        for one in (path, by_hash):
            found = fs.sha256_file(one) if one.is_file() else MISSING
            if found != listed.sha256:
                reader.find(one, "it is not what the Release lists", listed.sha256, found)
            elif one.stat().st_size != listed.size:
                size = one.stat().st_size
                reader.find(one, "it has another size in the Release", listed.size, size)
    for path, digest in _earlier(reader, name, number).items():
        expected.add(path)
        found = fs.sha256_file(path) if path.is_file() else MISSING
        if found != digest:
            reader.find(path, "an earlier index is damaged", digest, found)
    for path in _files(dist):
        if path not in expected or path.is_symlink():
            reader.stray(path)
    _entries(reader, dist, entries)


def _earlier(reader: _Reader, name: str, number: int) -> dict[Path, str]:
    """Return the by-hash files of earlier indexes that a suite still has, with their SHA-256."""
    read: dict[int, list[snapshots.Index]] = {}
    for one in snapshots.numbers(reader.root):
        earlier = snapshots.path(reader.root, one) / name
        if one == number or not earlier.is_dir():
            continue
        try:
            read[one] = snapshots.listed(earlier)
        except TrustError as failed:
            reader.find(
                earlier / "Release", "it is damaged", failed.expected or "", failed.found or ""
            )
    dist = snapshots.path(reader.root, number) / name
    return {
        (dist / listed.name).parent / snapshots.BY_HASH / listed.sha256: listed.sha256
        for one in snapshots.generations(reader.root, name, before=number)
        for listed in read[one]
    }


def _release(reader: _Reader, dist: Path) -> list[snapshots.Index] | None:
    """Check signature and dates of a Release, and return the indexes that it lists."""
    signed = dist / "InRelease"
    try:
        text = (dist / "Release").read_bytes()
        if reader.ring is not None:
            _, inside = signing.verify(reader.ring, signed.read_bytes())
            if inside != text:
                reader.find(signed, "it is another text than Release")
            text = inside
        release = ReleaseFile(text)
        date, until = (parsedate_to_datetime(str(release[one])) for one in ("Date", "Valid-Until"))
        listed = snapshots.files(release)
    except SigningError as failed:
        reader.find(signed, failed.what, failed.expected or "", failed.found or "")
        return None
    except (OSError, ValueError, LookupError, TypeError) as failed:
        reader.find(signed, "it cannot be read", found=failed)
        return None
    if date > reader.now:
        reader.find(signed, "its date lies in the future", f"{reader.now} or before", date)
    if until <= reader.now:
        reader.find(signed, "it has expired", f"a Valid-Until after {reader.now}", until)
    if release.get("Suite") != dist.name:
        reader.find(signed, "it is of another suite", dist.name, release.get("Suite"))
    return listed


def _entries(reader: _Reader, dist: Path, entries: Sequence[Entry]) -> None:
    """Compare an index with its description, and with the packages in the pool."""
    index = dist / snapshots.INDEX
    wanted = {entry.output.path: _fields(entry) for entry in entries}
    found = {}
    try:
        for stanza in Packages.iter_paragraphs(index.read_bytes(), use_apt_pkg=False):
            fields = ("Package", "Version", "Architecture", "Size", "SHA256")
            percent = stanza.get("Phased-Update-Percentage", ALL)
            found[stanza["Filename"]] = (*(stanza[one] for one in fields), str(percent))
    except (OSError, ValueError, LookupError) as failed:
        reader.find(index, "it cannot be read", found=failed)
        return
    for path in sorted(wanted.keys() | found.keys()):
        here, there = wanted.get(path), found.get(path)
        if here != there:
            say = "not listed"
            reader.find(
                index,
                f"the entry of {path} differs from {snapshots.NAME}",
                " ".join(here or (say,)),
                " ".join(there or (say,)),
            )
        elif there is not None and reader.hashes.get(path, MISSING) != there[4]:
            reader.find(
                reader.root / path,
                f"it is not what {dist.name} lists",
                there[4],
                reader.hashes.get(path, MISSING),
            )


def _fields(entry: Entry) -> tuple[str, ...]:
    one = entry.output
    return (
        *(one.name, one.version, one.architecture, str(one.size), one.sha256),
        str(entry.percent),
    )


def _shown(reader: _Reader, shown: Plan) -> None:
    """Compare what the indexes show with what the records say."""
    keyrings = {
        contents.suite_of(name): entry.output
        for name, entries in shown.items()
        for entry in entries
        if entry.output.name == keyring_package.NAME
    }
    plan = contents.plan(reader.records.values(), keyrings)
    for name in sorted(plan.keys() | shown.keys()):
        here = {entry.output.path: entry.percent for entry in plan.get(name, ())}
        there = {entry.output.path: entry.percent for entry in shown.get(name, ())}
        for path in sorted(here.keys() | there.keys()):
            if here.get(path) != there.get(path):
                reader.find(
                    reader.root / snapshots.DISTS / name,
                    f"it does not show {path} as the records say",
                    _percent(here.get(path)),
                    _percent(there.get(path)),
                )
        if name in shown and contents.suite_of(name) not in keyrings:
            dist = reader.root / snapshots.DISTS / name
            reader.find(dist, f"it has no package {keyring_package.NAME}")


def _percent(percent: int | None) -> str:
    return "no entry" if percent is None else f"{percent} %"


def _named(reader: _Reader, shown: Plan) -> None:
    """Look for packages that nothing names, and for those that have other bytes than a record."""
    named = {
        one.path: one.sha256
        for record in reader.records.values()
        for one in (*record.packages, *record.rollback)
    }
    for number in snapshots.numbers(reader.root):
        try:
            plan = snapshots.read(reader.root, number).plan
        except TrustError as failed:
            file = snapshots.path(reader.root, number) / snapshots.NAME
            reader.find(file, "it is damaged", failed.expected or "", failed.found or "")
            continue
        named |= {one.output.path: one.output.sha256 for each in plan.values() for one in each}
    for path, digest in reader.hashes.items():
        if path not in named:
            reader.stray(reader.root / path)
        elif digest != named[path]:
            reader.find(reader.root / path, "it is not the recorded package", named[path], digest)
    needed = contents.kept([one for one in reader.records.values() if one.published], shown)
    for path in sorted(needed - reader.hashes.keys()):
        reader.find(reader.root / path, "it is missing", named.get(path, ""), MISSING)


def _top(reader: _Reader) -> None:
    """Look for files at the top of the archive that are not ours."""
    for path in _listed(reader.root):
        if path.name not in _TOP:
            reader.stray(path)
    for path in _listed(reader.root / snapshots.HOME):
        if not (path.is_dir() and path.name.isdecimal()):
            reader.stray(path)
