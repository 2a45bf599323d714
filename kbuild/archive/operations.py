"""Bring releases to the servers and take them back: preview, stage, promote, rollback.

Each operation changes the records in memory, then writes and signs a whole snapshot for them, then
writes the records, and switches dists/ last.  So an error leaves what servers see as it was.
After a kill, the same command does what is left: a step that is done changes nothing again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kbuild.archive import contents, evidence, place, pool, records, snapshots
from kbuild.archive.contents import ALL, Plan
from kbuild.archive.release import SERVED, VISIBLE, Record, Release, State, View, package
from kbuild.archive.required import SIGNATURE
from kbuild.archive.states import Event, Happening, next_state
from kbuild.core import fs
from kbuild.core.errors import EvidenceError, PoolError, UserError
from kbuild.core.model import Package, Settings, Target
from kbuild.ship import indexes, keyring_package, manifest, mok, shared
from kbuild.ship import rollback as going_back
from kbuild.ship.manifest import Output

logger = logging.getLogger(__name__)

# So long before they expire, a release signs the indexes of all suites again.
RENEWAL = timedelta(days=10)
_SCRATCH = ".work."
_UNSIGNED = (
    "its kernel is not signed for Secure Boot, but that of {} is, which servers may have:"
    " set mok_certificate and mok_key"
)


@dataclass
class _Archive:
    """The archive and its records, while its lock is held."""

    settings: Settings
    root: Path
    now: datetime
    records: dict[str, Record]

    @functools.cached_property
    def commit(self) -> str:
        """The commit of the checkout, for the histories."""
        return manifest.project_commit(self.settings.project) or ""

    def record(self, id: str) -> Record:
        """Return the record of a release; raises UserError if there is none."""
        return self.records.get(id) or records.read(self.root, id)

    def of_target(self, record: Record) -> list[Record]:
        """Return the records of the same target, the newest version first."""
        return contents.of_target(self.records.values(), record)

    def older(self, record: Record) -> list[str]:
        """Return the IDs of the older releases of the same target that servers may have."""
        return [one.id for one in contents.older(self.records.values(), record)]

    def change(
        self,
        record: Record,
        event: Event,
        complaints: Sequence[str] = (),
        *,
        reason: str = "",
        percent: int = 0,
    ) -> Record:
        """Let an event happen to a release in memory, and return its record."""
        when = self.now.isoformat()
        happening = Happening(event, when, self.commit, reason, percent)
        after = next_state(record, happening, complaints)
        self.records[record.id] = after
        return after

    def judge(self, record: Record) -> tuple[str, ...]:
        """Return why the evidence next to a record does not hold for the pool as it is now."""
        path = records.home(self.root, record.id) / evidence.GATE
        try:
            gate = evidence.read(path)
        except EvidenceError as error:
            return (str(error),)
        changed = fs.sha256_file(path) != record.evidence.get(evidence.GATE)
        found = pool.found(self.root, record.packages)
        return (
            *((f"{path} has changed since the release was staged",) if changed else ()),
            *self.complaints(record, gate, found, signed=SIGNATURE in record.evidence),
        )

    def complaints(
        self, record: Record, gate: evidence.Gate, found: Mapping[str, str], *, signed: bool
    ) -> tuple[str, ...]:
        """Return why a verdict on packages does not allow a release for this archive's servers."""
        older = (one for one in self.of_target(record) if one.order < record.order)
        before = None if signed else _served_signed(older)
        unsigned = () if before is None else (_UNSIGNED.format(before.id),)
        judged = evidence.complaints(
            gate, record.id, found, older=self.older(record), signed=signed
        )
        return (*judged, *unsigned)

    def publish(self, *, again: bool = False, withdrawn: str = "") -> Plan:
        """Make dists/ show what the records in memory say, and write those that changed.

        ``again`` writes and signs a new snapshot even if the present one shows it.  ``withdrawn``
        is as in :func:`keyring_package.build`.
        """
        with self.scratch() as scratch:
            every = self.records.values()
            keyrings = _keyrings(
                self.settings, self.root, every, self.now, scratch, withdrawn=withdrawn
            )
            made = dict(keyrings.values())
            pool.check(self.root, made, {})
            pool.add(self.root, made)
        plan = contents.plan(
            self.records.values(), {suite: output for suite, (output, _) in keyrings.items()}
        )
        number = 0
        if again or not snapshots.is_current(self.root, plan):
            number = snapshots.write(self.settings, self.root, plan, self.now)
        for id, record in sorted(self.records.items()):
            if records.read(self.root, id) != record:
                records.write(self.root, record)
                logger.info("%s is %s", id, describe(record))
        if number:
            snapshots.switch(self.root, number)
            logger.info("%s shows snapshot %d", self.root / snapshots.DISTS, number)
        snapshots.prune(self.root)
        return plan

    def prune(self, plan: Plan) -> None:
        """Remove the packages that no index, kept snapshot or coming release needs."""
        kept = contents.kept(self.records.values(), plan) | snapshots.kept(self.root)
        for id, record in sorted(self.records.items()):
            gone = any(one.path not in kept for one in record.packages)
            if gone and record.state in VISIBLE and not record.pruned:
                # Before the packages: after a kill, no index may name one that is missing.
                self.records[id] = dataclasses.replace(record, pruned=True)
                records.write(self.root, self.records[id])
        for path in pool.prune(self.root, kept):
            logger.info("removed %s, which is no longer in an index", path)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a directory on the archive's file system; a kill may leave it behind."""
        with tempfile.TemporaryDirectory(dir=self.root, prefix=_SCRATCH) as name:
            yield Path(name)


@contextlib.contextmanager
def _opened(settings: Settings, *, make: bool = False) -> Iterator[_Archive]:
    """Yield the archive for one writer, without the remains of killed ones.

    Without ``make`` there must be an archive.  Raises UserError, EvidenceError, TrustError or
    InfrastructureError for a directory, a record or a link that is not as it should be, and for a
    wrong clock.  Raises what :func:`keyring_package.check` does for settings that are not those
    of this archive.  Nothing is changed then.
    """
    if not (place.check(settings) or make):
        raise place.none(settings)
    with place.writing(settings) as root:
        now = datetime.now(UTC).replace(microsecond=0)
        records.read_all(root)
        snapshots.check_clock(root, now)
        _check_servers(settings, root)
        for scratch in root.glob(f"{_SCRATCH}*"):
            fs.remove_tree(scratch)
        for recover in (records.recover, pool.recover, snapshots.recover):
            recover(root)
        yield _Archive(settings, root, now, records.read_all(root))


def preview(settings: Settings, release: Release, into: Path) -> View:
    """Write what servers will see once ``release`` is staged; the archive stays as it is.

    The view replaces ``into`` when it is complete.  It is signed by the archive's key, and its
    packages are hard links where that is possible.  Raises PoolError if the archive has other
    bytes of a package, UserError for a withdrawn release, and SigningError.
    """
    packages = {pool.describe(one): one.path for one in release.packages}
    suite, now = release.target.suite, datetime.now(UTC).replace(microsecond=0)
    with place.reading(settings) as root, fs.fresh_directory(into) as fresh:
        known = records.read_all(root) if root else {}
        if root is not None:
            _check_servers(settings, root)
        candidate = _candidate(root, known, release, packages)
        for event in (Event.JUDGED, Event.STAGED):
            if not candidate.published:
                candidate = next_state(candidate, Happening(event, now.isoformat()), ())
        # Its packages are here, even if the pool has lost them.
        candidate = dataclasses.replace(candidate, pruned=False)
        mine = [one for one in (known | {candidate.id: candidate}).values() if one.suite == suite]
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as scratch:
            keyrings = _keyrings(settings, root, mine, now, Path(scratch))
            plan = contents.plan(mine, {name: output for name, (output, _) in keyrings.items()})
            files = packages | dict(keyrings.values())
            for output in {entry.output for entries in plan.values() for entry in entries}:
                there = files.get(output) or (root or into) / output.path
                pool.link(there, fresh / output.path)
        for name, entries in plan.items():
            snapshots.write_dist(settings, fresh, fresh / snapshots.DISTS / name, entries, now)
    return View(
        root=into,
        stable=suite,
        staging=contents.staging(suite),
        keyring=into / keyrings[suite][0].path,
        candidate=candidate.release(into),
        promoted=tuple(one.release(into) for one in contents.older(mine, candidate)),
    )


def stage(settings: Settings, release: Release, files: Iterable[Path]) -> Record:
    """Put a release that the gate passed into its suite's staging, and return its record.

    ``files`` are the evidence: gate.json, and whatever else describes the release.  They are kept
    next to the record.  Raises EvidenceError if the gate did not pass exactly these packages; a
    verdict that refused them is recorded.  Raises PoolError if the archive has other bytes.
    """
    packages = {pool.describe(one): one.path for one in release.packages}
    named = {path.name: path for path in files}
    if evidence.GATE not in named:
        raise evidence.lacking(release.id, ", ".join(sorted(named)) or "no evidence")
    gate = evidence.read(named[evidence.GATE])
    found = {Path(one.path).name: fs.sha256_file(path) for one, path in packages.items()}
    with _opened(settings, make=True) as archive:
        record = _candidate(archive.root, archive.records, release, packages)
        complaints = archive.complaints(record, gate, found, signed=SIGNATURE in named)
        if not record.published:
            record = archive.change(record, Event.JUDGED, complaints)
        digests = {name: fs.sha256_file(path) for name, path in sorted(named.items())}
        if not record.published or (record.evidence != digests and not complaints):
            record = dataclasses.replace(record, evidence=digests)
            records.create(archive.root, record, named)
        record = archive.change(record, Event.STAGED, complaints)
        pool.add(archive.root, packages)
        record = archive.records[record.id] = dataclasses.replace(record, pruned=False)
        archive.publish()
        return record


def complaints(settings: Settings, id: str) -> tuple[str, ...]:
    """Return why the evidence of a release does not hold now; nothing if it does.

    Raises UserError if the archive has no such release.
    """
    with place.reading(settings) as root:
        if root is None:
            raise place.none(settings)
        known = records.read_all(root)
        archive = _Archive(settings, root, datetime.now(UTC), known)
        return archive.judge(archive.record(id))


def judge_again(settings: Settings, id: str, verdict: Path) -> Record:
    """Replace the verdict of a release in the archive by a new one, and return its record.

    The other evidence stays.  Raises EvidenceError if that has changed, or if the verdict does not
    hold for the release as it is now.
    """
    with place.reading(settings) as root:
        if root is None:
            raise place.none(settings)
        record = records.read(root, id)
        papers = {
            records.home(root, id) / name: digest
            for name, digest in record.evidence.items()
            if name != evidence.GATE
        }
        for path, digest in papers.items():
            found = fs.sha256_file(path) if path.is_file() else evidence.MISSING
            if found != digest:
                raise EvidenceError(
                    f"{path} has changed since the release was staged",
                    expected=digest,
                    found=found,
                    hint="copy it from a backup",
                )
    return stage(settings, record.release(settings.archive), [verdict, *papers])


def promote(settings: Settings, id: str, percent: int) -> Record:
    """Let apt upgrade ``percent`` of the servers to a staged release, and return its record.

    At 100 % the older releases are superseded.  Packages that no index needs any more are removed.
    Raises EvidenceError if the evidence is incomplete, or is for other bytes than the pool has now.
    """
    with _opened(settings) as archive:
        record = archive.record(id)
        same = archive.of_target(record)
        back = contents.going_back(contents.public(same))
        for bad in contents.withdrawn(contents.public(same))[:1]:
            leads_here = back is not None and back.leads_to == id
            if record.state in VISIBLE and bad.order > record.order and not leads_here:
                raise UserError(
                    f"servers may have {bad.id}, which is newer than {id} and withdrawn",
                    expected=f"a version above {bad.version}",
                    found=record.version,
                    hint="apt installs higher versions only: raise 'revision', and release again",
                )
        for newer in contents.reached(same)[:1]:
            if record.state is State.STAGED and newer.order > record.order:
                raise UserError(
                    f"every server has a newer release than {id}",
                    expected=f"a version above {newer.version}",
                    found=record.version,
                )
        if record.state is State.STAGED:
            _check_kernel(same, record)
        record = archive.change(record, Event.PROMOTED, archive.judge(record), percent=percent)
        for older in same:
            if older.state is State.PROMOTED and older.order < record.order and percent == ALL:
                archive.change(older, Event.SUPERSEDED, reason=f"by {record.id}")
        archive.prune(archive.publish())
        return record


@dataclass(frozen=True)
class Withdrawal:
    """A withdrawn release, and what happens to the servers that have it."""

    record: Record
    older: Record | None  # to which the rollback packages lead
    notes: tuple[str, ...]  # for the person who withdrew it


def rollback(settings: Settings, id: str, reason: str) -> Withdrawal:
    """Withdraw a release, and bring servers that have it back to an older one by apt's own means.

    The rollback packages are the older metapackages under a version above all that servers may
    have.  Without an older release, and with a newer one, there are none; a note says so.
    """
    with _opened(settings) as archive:
        before = archive.record(id)
        record = archive.change(before, Event.WITHDRAWN, reason=reason)
        older: Record | None = None
        notes: tuple[str, ...] = ()
        if record is not before and record.published:
            older, notes = _way_back(archive, record)
        archive.publish()
        return Withdrawal(archive.records[id], older, notes)


def _way_back(archive: _Archive, record: Record) -> tuple[Record | None, tuple[str, ...]]:
    """Make the packages that lead away from a withdrawn release, and note them in its record.

    Returns the release to which they lead, and notes for people.
    """
    same = archive.of_target(record)
    good = [one for one in same if one.state in SERVED and not one.pruned]
    concerned = contents.public(same) if record.percent else same
    # Servers with a withdrawn release that is newer still lose their way with this one.
    lost = contents.going_back(concerned) is None
    newest = contents.withdrawn(concerned)[0] if lost else record
    for newer in good:
        if newer.order > newest.order:
            said = f"servers with {record.version} are upgraded to {newer.version}"
            if newer.percent < ALL:
                said += f", but it is {describe(newer)}: promote it further, or withdraw it too"
            return None, (said,)
    # A release that only some servers have is the second choice.
    older = next(iter([*contents.reached(good), *good]), None)
    if older is None:
        return None, (
            f"there is no older release of {record.target.name} in {record.suite}, so apt CANNOT"
            f" bring servers with {record.version} back: release a newer version",
        )
    withdrawn = [
        one
        for one in same
        if one.state is State.WITHDRAWN and one.published and one.order > older.order
    ]
    bad = withdrawn[0]
    # Releases of other targets have the same cplayground-dkms and the same guard.
    needed = {
        (one.name, one.version)
        for other in archive.records.values()
        if other.target != record.target and other.suite == record.suite and other.state in SERVED
        for one in other.packages
    }
    theirs = {one.name: one.version for one in bad.packages}
    keep = {name for name, version in theirs.items() if (name, version) in needed}
    # Servers may have the rollback packages of an earlier time: these need a higher version.
    number = sum(bool(one.rollback) for one in withdrawn)
    for other in archive.records.values():
        for one in other.rollback:
            version, _, last = one.version.rpartition(going_back.SUFFIX)
            if theirs.get(one.name) == version:
                number = max(number, int(last))
    with archive.scratch() as scratch:
        made = going_back.packages(
            bad.release(archive.root),
            older.release(archive.root),
            scratch,
            number=number + 1,
            also=[one.release(archive.root) for one in withdrawn[1:]],
            keep=keep,
        )
        packages = {pool.describe(one): one.path for one in made}
        known = _seen(archive.records.values())
        # No server has seen what a withdrawal left that failed, or that was killed.
        pool.forget(archive.root, packages, known.keys() | snapshots.kept(archive.root))
        pool.check(archive.root, packages, known)
        pool.add(archive.root, packages)
    outputs = tuple(sorted(packages, key=lambda one: one.path))
    archive.records[record.id] = dataclasses.replace(record, rollback=outputs, leads_to=older.id)
    if older.state is State.SUPERSEDED:
        archive.change(older, Event.RESTORED, reason=f"{record.id} was withdrawn")
    notes = [f"servers with {record.version} go back to {older.version}"]
    before = {one.name: one.version for one in older.packages}
    for common in shared.ALL:
        name = common.name
        if name in theirs and name in before and theirs[name] != before[name]:
            stay = "other kernels need it, so it stays" if name in keep else "it goes back too"
            notes.append(
                f"{name} {theirs[name]}: {stay}; a release that changes {common.content} needs a"
                f" higher {common.version_file}"
            )
    return older, tuple(notes)


def resign(settings: Settings, *, withdrawn: str = "") -> dict[str, datetime]:
    """Write and sign all indexes again; return until when each name in dists/ is valid now.

    The certificate for Secure Boot with the SHA-256 ``withdrawn`` leaves the package with the
    archive's keys.  Raises UserError if there is no archive, or if that package has no such
    certificate, or must have it by the settings.  Raises SigningError.
    """
    with _opened(settings) as archive:
        if withdrawn:
            _check_withdrawal(settings, archive.root, withdrawn)
        plan = archive.publish(again=True, withdrawn=withdrawn)
        return dict.fromkeys(sorted(plan), archive.now + indexes.VALID)


def refresh(settings: Settings) -> None:
    """Finish what a killed task began, and sign again if the indexes expire within :data:`RENEWAL`.

    Does nothing if there is no archive.
    """
    if not place.check(settings):
        return
    with _opened(settings) as archive:
        until = snapshots.expiry(archive.root)
        soon = until is not None and until - archive.now < RENEWAL
        archive.prune(archive.publish(again=soon))


def releases(settings: Settings) -> tuple[Record, ...]:
    """Return all records, by suite and target, the newest version first."""
    with place.reading(settings) as root:
        known = records.read_all(root) if root else {}
    newest = sorted(known.values(), key=lambda one: one.order, reverse=True)
    return tuple(sorted(newest, key=lambda one: (one.suite, one.target.name)))


def served_signed(settings: Settings, target: Target) -> Record | None:
    """Return the newest release that servers may have, and that is signed for Secure Boot."""
    return _served_signed(one for one in releases(settings) if one.target == target)


def _served_signed(same: Iterable[Record]) -> Record | None:
    """Return the first of these that servers may have, and that is signed for Secure Boot."""
    found = (one for one in same if one.state in SERVED and SIGNATURE in one.evidence)
    return next(found, None)


def describe(record: Record) -> str:
    """Return the state of a release in words."""
    percent = f" to {record.percent} %" if record.state is State.PROMOTED else ""
    return f"{record.state.value}{percent}"


def _candidate(
    root: Path | None,
    known: Mapping[str, Record],
    release: Release,
    packages: Mapping[Output, Path],
) -> Record:
    """Return the record of a release to publish: that of an earlier attempt, or a new one.

    Raises PoolError if servers may have seen other bytes of a package, and UserError for a
    withdrawn release, or for a new one with the kernel release of a withdrawn one.
    """
    outputs = tuple(sorted(packages, key=lambda one: one.path))
    old = known.get(release.id)
    if old is not None and old.state is State.WITHDRAWN:
        raise UserError(
            f"{release.id} is withdrawn",
            hint="its version is used up: raise 'revision', and package again",
        )
    if root is not None:
        pool.check(root, outputs, _seen(known.values()))
    if old is not None and old.published:
        if old.packages == outputs:
            return old
        raise PoolError(
            f"{release.id} is published with other packages",
            expected="\n".join(one.path for one in old.packages),
            found="\n".join(one.path for one in outputs),
            hint="raise 'revision', and package again",
        )
    record = Record(
        suite=release.target.suite,
        flavour=release.target.flavour,
        variant=release.target.variant,
        kernel=release.kernel,
        version=release.version,
        packages=outputs,
        history=() if old is None else old.history,
    )
    _check_kernel(known.values(), record)
    return old if old is not None and old.packages == outputs else record


def _check_kernel(known: Iterable[Record], record: Record) -> None:
    """Raise UserError if servers keep a kernel of that name out of their boot menu."""
    for one in contents.of_target(known, record):
        if one.kernel == record.kernel and one.published and one.state is State.WITHDRAWN:
            raise UserError(
                f"{record.id} has the kernel release of a withdrawn one",
                expected="one that servers do not keep out of their boot menu",
                found=f"{one.kernel}, withdrawn with {one.id}",
                hint="raise 'revision', and package again",
            )


def _seen(known: Iterable[Record]) -> dict[str, str]:
    """Return the SHA-256 of each path in the pool that servers may have seen."""
    return {
        one.path: one.sha256
        for record in known
        if record.published
        for one in (*record.packages, *record.rollback)
    }


def _shown_keyring(root: Path, links: Mapping[str, int], name: str) -> Package | None:
    """Return the package with the archive's keys that a name in dists/ shows, if it does."""
    entries = snapshots.read(root, links[name]).plan[name] if name in links else ()
    found = (one.output for one in entries if one.output.name == keyring_package.NAME)
    return next((package(root, output) for output in found), None)


def _check_servers(settings: Settings, root: Path) -> None:
    """Raise what :func:`keyring_package.check` does, for each package that servers may have."""
    links = snapshots.linked(root)
    found = {_shown_keyring(root, links, name) for name in links} - {None}
    for one in found:
        if one is not None:
            keyring_package.check(settings, one)


def _check_withdrawal(settings: Settings, root: Path, withdrawn: str) -> None:
    """Raise UserError if a certificate cannot leave the packages that servers may have."""
    links = snapshots.linked(root)
    shown = {_shown_keyring(root, links, name) for name in links} - {None}
    known = {
        keyring_package.digest(der)
        for one in shown
        if one is not None
        for der in keyring_package.certificates(one)
    }
    if withdrawn not in known:
        raise UserError(
            "the archive has no such certificate for Secure Boot",
            expected="the SHA-256 of a published one: " + (", ".join(sorted(known)) or "none"),
            found=withdrawn,
        )
    if withdrawn in {one.digest for one in mok.certificates(settings)}:
        raise UserError(
            "the configuration has the certificate that is to be withdrawn",
            expected="mok_certificate without it",
            found=f"{withdrawn} in {settings.mok_certificate}",
            hint="remove it there first: docs/howto/secure-boot.md",
        )


def _keyrings(
    settings: Settings,
    root: Path | None,
    known: Iterable[Record],
    now: datetime,
    scratch: Path,
    *,
    withdrawn: str = "",
) -> dict[str, tuple[Output, Path]]:
    """Return the package with the archive's keys, and its file, for each suite with a release.

    It is that of the present index, as long as it has the same content.
    """
    links = {} if root is None else snapshots.linked(root)
    found = {}
    for suite in sorted({one.suite for one in known if one.published}):
        last = _shown_keyring(root, links, suite) if root is not None else None
        made = keyring_package.build(
            settings, suite, scratch / suite, now=now, last=last, withdrawn=withdrawn
        )
        found[suite] = (pool.describe(made), made.path)
    return found
