"""Write the archive's indexes as whole trees, and switch dists/ from one to the next.

A snapshot gets its number when it is complete, signed and on the disk.  dists/ has a link for each
suite, which is replaced by rename.  So a server always sees one whole suite.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from debian.deb822 import Release as ReleaseFile

from kbuild.archive.contents import ALL, Entry, Plan
from kbuild.archive.release import package
from kbuild.core import fs
from kbuild.core.errors import BuildError, ClockError, TrustError
from kbuild.core.model import Package, Settings
from kbuild.ship import indexes, signing
from kbuild.ship.indexes import Group
from kbuild.ship.manifest import Output

logger = logging.getLogger(__name__)

FORMAT = 1
HOME = "snapshots"
DISTS = "dists"
NAME = "snapshot.json"
INDEX = Path("main/binary-amd64/Packages")
BY_HASH = Path("by-hash/SHA256")
# So many snapshots with different packages stay, and these packages too.
KEPT = 4


@dataclass(frozen=True)
class Snapshot:
    """A complete tree of indexes; its description lies in it."""

    number: int
    plan: Plan


def path(root: Path, number: int) -> Path:
    """Return the directory of a snapshot."""
    return root / HOME / str(number)


def numbers(root: Path) -> list[int]:
    """Return the numbers of all complete snapshots, the newest first."""
    found = [one.parent.name for one in (root / HOME).glob(f"*/{NAME}")]
    return sorted((int(name) for name in found if name.isdecimal()), reverse=True)


def linked(root: Path) -> dict[str, int]:
    """Return the number of the snapshot to which each name in dists/ leads.

    Raises TrustError as :func:`target` does.
    """
    return {link.name: target(root, link) for link in sorted((root / DISTS).glob("[!.]*"))}


def target(root: Path, link: Path) -> int:
    """Return the number of the snapshot to which an entry of dists/ leads.

    Raises TrustError for an entry that is not a link into a complete snapshot.
    """
    leads = link.readlink() if link.is_symlink() else Path()
    number = leads.parent.name
    complete = number.isdecimal() and (root / HOME / number / NAME).is_file()
    if not complete or leads != Path("..", HOME, number, link.name):
        raise TrustError(
            f"{link} does not lead to a complete snapshot",
            expected=f"a link to ../{HOME}/<number>/{link.name}",
            found=str(leads) if link.is_symlink() else "not a link",
            hint="'./inv verify-archive' lists all damage",
        )
    return int(number)


def read(root: Path, number: int) -> Snapshot:
    """Read the description of a snapshot; raises TrustError if it is damaged."""
    file = path(root, number) / NAME
    try:
        raw = json.loads(file.read_bytes())
        if raw["format"] > FORMAT:
            raise ValueError(f"format {raw['format']} of a newer version")
        return Snapshot(
            number=int(raw["number"]),
            plan={name: tuple(map(_entry, entries)) for name, entries in raw["plan"].items()},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TrustError(
            f"{file} is damaged",
            expected="the description of that snapshot",
            found=str(error) or type(error).__name__,
            hint="'./inv verify-archive' lists all damage",
        ) from error


def _entry(raw: dict[str, Any]) -> Entry:
    return Entry(Output(**raw["output"]), int(raw["percent"]), str(raw["source"]))


def write(settings: Settings, root: Path, plan: Plan, now: datetime) -> int:
    """Write, sign and sync a new snapshot, and return its number; nothing leads to it yet.

    Raises SigningError if it cannot be signed, and TrustError if the pool is damaged.
    """
    number = max(numbers(root), default=0) + 1
    with fs.fresh_directory(path(root, number)) as fresh:
        for name, entries in plan.items():
            earlier = [path(root, one) / name for one in generations(root, name)]
            write_dist(settings, root, fresh / name, entries, now, earlier)
        raw = {name: [asdict(entry) for entry in entries] for name, entries in plan.items()}
        fs.write_json(fresh / NAME, {"format": FORMAT, "number": number, "plan": raw})
    return number


def write_dist(
    settings: Settings,
    root: Path,
    into: Path,
    entries: Sequence[Entry],
    now: datetime,
    earlier: Sequence[Path] = (),
) -> None:
    """Write and sign the indexes of one name in dists/ to the new directory ``into``."""
    shares: dict[tuple[int, str], list[Package]] = {}
    for entry in entries:
        shares.setdefault((entry.percent, entry.source), []).append(package(root, entry.output))
    groups = [
        Group(tuple(packages), None if percent == ALL else percent, source)
        for (percent, source), packages in sorted(shares.items())
    ]
    try:
        indexes.write(
            into,
            root,
            into.name,
            groups,
            now=now,
            valid=indexes.VALID,
            sign=lambda release: signing.sign(settings, release),
            earlier=earlier,
        )
    except BuildError as error:
        raise TrustError(
            f"no index of {into.name} can be written: {error.what}",
            expected=error.expected,
            found=error.found,
            hint="'./inv verify-archive' lists all damage in the archive",
        ) from error


def generations(root: Path, name: str, before: int | None = None) -> list[int]:
    """Return the newest snapshots in which a suite has different indexes, the newest first.

    Only numbers below ``before`` count.
    """
    found: dict[str, int] = {}
    for number in numbers(root):
        dist = path(root, number) / name
        if (before is not None and number >= before) or not dist.is_dir():
            continue
        try:
            digests = [one.sha256 for one in listed(dist)]
        except TrustError as error:
            logger.warning("its indexes are left out: %s: %s", error.what, error.found)
            continue
        found.setdefault(json.dumps(digests), number)
    return list(found.values())[: indexes.GENERATIONS]


@dataclass(frozen=True)
class Index:
    """A file that a Release lists."""

    name: str
    sha256: str
    size: int


def listed(dist: Path) -> list[Index]:
    """Return what the Release of a directory of indexes lists; raises TrustError for a bad one."""
    try:
        return files(release(dist))
    except (OSError, ValueError, LookupError) as error:
        raise _bad_release(dist, "a SHA256", error) from error


def files(release: ReleaseFile) -> list[Index]:
    """Return what a Release lists; raises ValueError or LookupError for a bad one."""
    return [Index(one["name"], one["sha256"], int(one["size"])) for one in release["SHA256"]]


def release(dist: Path) -> ReleaseFile:
    """Return the Release of a directory of indexes; its signature is not verified."""
    return ReleaseFile((dist / "Release").read_bytes())


def expiry(root: Path) -> datetime | None:
    """Return when servers begin to refuse the first of the indexes; None without an index.

    Raises TrustError for a Release file without that date.
    """
    return min(valid_until(root).values(), default=None)


def valid_until(root: Path) -> dict[str, datetime]:
    """Return when servers begin to refuse each name in dists/; raises as :func:`expiry` does."""
    return {name: _date(root, name, "Valid-Until") for name in linked(root)}


def check_clock(root: Path, now: datetime) -> None:
    """Raise ClockError if a Release file is dated later than ``now``.

    apt would ignore a new one with an earlier date as a replay of an old one.  Raises TrustError
    for a Release file without a date.
    """
    for name in linked(root):
        date = _date(root, name, "Date")
        if date > now:
            raise ClockError(
                "this machine's clock is wrong: the archive was signed in the future",
                expected=f"{date:%Y-%m-%d %H:%M:%S} UTC or later, the date in"
                f" {root / DISTS / name / 'Release'}",
                found=f"{now:%Y-%m-%d %H:%M:%S} UTC",
                hint="set the clock (timedatectl), and run the same command again",
            )


def _date(root: Path, name: str, field: str) -> datetime:
    directory = root / DISTS / name
    try:
        return parsedate_to_datetime(str(release(directory)[field]))
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise _bad_release(directory, f"a {field}", error) from error


def _bad_release(dist: Path, field: str, error: Exception) -> TrustError:
    return TrustError(
        f"{dist / 'Release'} is damaged",
        expected=f"a Release file with {field}",
        found=str(error),
        hint="'./inv verify-archive' lists all damage",
    )


def recover(root: Path) -> None:
    """Remove what killed writers left; the caller holds the archive's lock.

    A snapshot to which no link leads, and which is newer than all linked ones, was never used.
    A file between them is none of ours, and stays.
    """
    used = set(linked(root).values())
    for one in sorted(path for path in (root / HOME).glob("*") if path.is_dir()):
        complete = one.name.isdecimal() and (one / NAME).is_file()
        if not complete or (int(one.name) not in used and int(one.name) > max(used, default=0)):
            fs.remove_tree(one)
    for link in (root / DISTS).glob(".*"):
        if link.is_symlink():
            link.unlink()


def is_current(root: Path, plan: Plan) -> bool:
    """Return whether dists/ shows exactly ``plan``, all of it from one snapshot."""
    links = linked(root)
    if links.keys() != plan.keys() or len(set(links.values())) > 1:
        return not links and not plan
    return all(read(root, number).plan == plan for number in set(links.values()))


def switch(root: Path, number: int) -> None:
    """Let every name in dists/ lead to a snapshot, each by one rename."""
    (root / DISTS).mkdir(exist_ok=True)
    for name in sorted(read(root, number).plan):
        scratch = root / DISTS / f".{name}"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(Path("..", HOME, str(number), name))
        fs.rename(scratch, root / DISTS / name)


def newest(root: Path) -> list[int]:
    """Return the newest snapshots that differ in what they show, the newest first."""
    found: list[int] = []
    plans: list[Plan] = []
    for number in numbers(root):
        plan = read(root, number).plan
        if plan not in plans:
            plans.append(plan)
            found.append(number)
    return found[:KEPT]


def prune(root: Path) -> None:
    """Remove snapshots that are neither linked nor among the newest, nor needed by the next one."""
    links = linked(root)
    needed = {*links.values(), *newest(root)}
    for name, used in links.items():
        needed.update(generations(root, name, before=used))
    for number in numbers(root):
        if number not in needed:
            # Without this file, what a kill leaves of the rest is no snapshot any more.
            (path(root, number) / NAME).unlink()
            fs.remove_tree(path(root, number))


def kept(root: Path) -> set[str]:
    """Return the paths in the pool that the newest snapshots name."""
    return {
        entry.output.path
        for number in newest(root)
        for entries in read(root, number).plan.values()
        for entry in entries
    }
