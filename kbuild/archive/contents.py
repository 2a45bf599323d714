"""Decide, from the records alone, which packages each suite of the archive shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from debian.debian_support import Version

from kbuild.archive.release import SERVED, Record, State
from kbuild.ship import versions
from kbuild.ship.manifest import Output

# Versions of each target that servers can install.
KEPT = 3
ALL = 100  # percent
_STAGING = "-staging"


@dataclass(frozen=True)
class Entry:
    """A package in an index."""

    output: Output
    # apt upgrades to it on so many percent of the servers.
    percent: int = ALL
    # The field Source in the index, by which apt chooses these servers; "" for the package's own.
    source: str = ""


Plan = Mapping[str, tuple[Entry, ...]]


def staging(suite: str) -> str:
    """Return the name in dists/ of a suite's staging."""
    return suite + _STAGING


def suite_of(dist: str) -> str:
    """Return the suite of a name in dists/."""
    return dist.removesuffix(_STAGING)


def of_target(records: Iterable[Record], one: Record) -> list[Record]:
    """Return the records of the same target, the newest version first."""
    same = (other for other in records if other.target == one.target)
    return sorted(same, key=lambda record: record.order, reverse=True)


def shown(records: Iterable[Record]) -> list[Record]:
    """Return the promoted and superseded ones that stay installable, the newest first.

    ``records`` are those of one target.  More than :data:`KEPT` are shown if servers may have to
    go back to one of them.
    """
    every = list(records)
    backs = (going_back(every), going_back(public(every)))
    needed = {one.leads_to for one in backs if one is not None}
    found = installable(every)
    needed.update(one.id for one in reached(found)[:1])
    return [one for place, one in enumerate(found) if place < KEPT or one.id in needed]


def installable(records: Iterable[Record]) -> list[Record]:
    """Return the promoted and superseded ones whose packages are in the pool, the newest first."""
    found = (one for one in records if one.state in SERVED and not one.pruned)
    return sorted(found, key=lambda record: record.order, reverse=True)


def public(records: Iterable[Record]) -> list[Record]:
    """Return all but the withdrawn ones that were in staging only."""
    return [one for one in records if one.state is not State.WITHDRAWN or one.percent]


def reached(records: Iterable[Record]) -> list[Record]:
    """Return the records of releases that every server was upgraded to, the newest first."""
    found = (one for one in records if one.state in SERVED and one.percent == ALL)
    return sorted(found, key=lambda record: record.order, reverse=True)


def older(records: Iterable[Record], record: Record) -> list[Record]:
    """Return the releases of the same target that servers may have before it, the newest first."""
    return [one for one in shown(of_target(records, record)) if one.order < record.order]


def withdrawn(records: Iterable[Record]) -> list[Record]:
    """Return the withdrawn ones that were in staging, the newest first."""
    found = (one for one in records if one.state is State.WITHDRAWN and one.published)
    return sorted(found, key=lambda record: record.order, reverse=True)


def waiting(records: Iterable[Record]) -> list[Record]:
    """Return the staged ones that are newer than what every server has, the newest first.

    ``records`` are those of one target.
    """
    every = list(records)
    floor = [one.order for one in reached(every)[:1]]
    staged = (one for one in every if one.state is State.STAGED and not one.pruned)
    newer = (one for one in staged if all(one.order > least for least in floor))
    return sorted(newer, key=lambda record: record.order, reverse=True)


def going_back(records: Iterable[Record]) -> Record | None:
    """Return the withdrawn one whose rollback packages servers still need, or None.

    ``records`` are those of one target.  A newer release that reached every server makes them
    unnecessary, and they are useless once the release to which they lead is gone.
    The last of several has the highest versions.
    """
    every = list(records)
    there = {one.id for one in installable(every)}
    useful = [one for one in withdrawn(every) if one.rollback and one.leads_to in there]
    if not useful:
        return None
    last = max(useful, key=lambda one: max(Version(two.version) for two in one.rollback))
    return None if any(one.order > last.order for one in reached(every)) else last


def plan(records: Iterable[Record], keyrings: Mapping[str, Output]) -> Plan:
    """Return the packages of each name in dists/; ``keyrings`` are by suite."""
    by_target: dict[object, list[Record]] = defaultdict(list)
    for record in records:
        if record.published:
            by_target[record.target].append(record)
    dists: dict[str, dict[str, Entry]] = {}
    for target in by_target.values():
        suite = target[0].suite
        stable = dists.setdefault(suite, {})
        stage = dists.setdefault(staging(suite), {})
        for one in shown(target):
            percent = one.percent if one.state is State.PROMOTED else ALL
            _add(stable, one, one.packages, percent)
            _add(stage, one, one.packages)
        for one in waiting(target):
            _add(stage, one, one.packages)
        # A release that was in staging only leads back there, and leaves the suite as it was.
        for dist, concerned in ((stage, target), (stable, public(target))):
            back = going_back(concerned)
            if back is not None:
                _add(dist, back, back.rollback)
    for suite, output in keyrings.items():
        for name in (suite, staging(suite)):
            if name in dists:
                dists[name][output.path] = Entry(output)
    return {
        name: tuple(entries[path] for path in sorted(entries)) for name, entries in dists.items()
    }


def _add(
    dist: dict[str, Entry], record: Record, outputs: Iterable[Output], percent: int = ALL
) -> None:
    # The kernel's source for all packages of a release.  The module has a source of its own, so apt
    # would choose other servers for its metapackage than for the kernel's.
    target = record.target
    name = versions.source_package(target.flavour, target.variant)
    source = f"{name} ({record.version})" if percent < ALL else ""
    for output in outputs:
        known = dist.get(output.path)
        # Releases share cplayground-dkms and the guard: servers of the furthest one get these.
        if known is None or known.percent < percent:
            dist[output.path] = Entry(output, percent, source)


def kept(records: Iterable[Record], plan: Plan) -> set[str]:
    """Return the paths in the pool that a plan shows or that a release will need."""
    paths = {entry.output.path for entries in plan.values() for entry in entries}
    every = list(records)
    for record in every:
        on_the_way = record.state is State.GATED
        if on_the_way or record in waiting(of_target(every, record)):
            paths.update(one.path for one in record.packages)
    return paths
