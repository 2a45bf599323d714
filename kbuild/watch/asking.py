"""Compare a target with the distro's newest kernel, from indexes and small packages only.

The changelog is in a package of 1 to 3 MB.  The patch can only be tried on the source, of 120 to
170 MB: without it, the answer is "unknown".
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from debian.debian_support import Version

from kbuild.archive.release import Record, State
from kbuild.core import progress
from kbuild.core.errors import BuildError, DefectError, GuardError, KbuildError, UserError
from kbuild.core.model import Base, Settings, Target
from kbuild.fetch import download, source, unpack
from kbuild.fetch.download import Network
from kbuild.fetch.source import Offer, Resolved
from kbuild.kernel import guard, kconfig, patches, planning, quilt
from kbuild.report import kernels
from kbuild.report.kernels import News
from kbuild.ship import versions
from kbuild.watch.state import Against, Answer, Failure, Ours, Told

logger = logging.getLogger(__name__)


def ask(
    settings: Settings,
    target: Target,
    records: Iterable[Record],
    now: datetime,
    *,
    modules: str = "auto",
    with_source: bool = False,
    network: Network | None = None,
) -> Against:
    """Compare a target with the distro; an error is in the result.

    ``with_source`` fetches and unpacks the newest source if the cache does not have it.
    """
    promoted, staged = ours(target, records)
    found = Against(
        suite=target.suite,
        flavour=target.flavour,
        variant=target.variant,
        asked=now.isoformat(),
        promoted=promoted,
        staged=staged,
    )
    try:
        network = network or download.machine()
        resolved = source.resolve(settings, target, network=network)
        base = source.base(settings, resolved)
        found = dataclasses.replace(found, newest=base.version, abi=base.abi)
        pristine = _source(settings, resolved, base, network, fetch=with_source)
        return dataclasses.replace(
            _with_news(settings, resolved, found, now, network),
            applies=_applies(settings, base, pristine),
            fast=_fast(settings, target, resolved, pristine, modules, network),
        )
    except KbuildError as error:
        return dataclasses.replace(found, error=Failure.of(error))
    except Exception as error:
        logger.exception("%s-%s", target.suite, target.name)
        wrapped = DefectError.of(error, [settings.build, settings.cache])
        return dataclasses.replace(found, error=Failure.of(wrapped))


def ours(target: Target, records: Iterable[Record]) -> tuple[Ours | None, Ours | None]:
    """Return the newest release of a target that servers get, and a newer one in staging."""
    mine = [
        one
        for one in records
        if (one.suite, one.target.name) == (target.suite, target.name)
        and one.state in (State.PROMOTED, State.STAGED)
    ]
    mine.sort(key=lambda one: one.order, reverse=True)
    promoted = next((one for one in mine if one.state is State.PROMOTED), None)
    newer = (one for one in mine if promoted is None or one.order > promoted.order)
    staged = next(newer, None)
    return _our(promoted) if promoted else None, _our(staged) if staged else None


def _our(record: Record) -> Ours:
    return Ours(
        id=record.id,
        base=versions.base_version(record.version),
        kernel=record.kernel,
        when=record.history[-1].when if record.history else "",
        percent=record.percent,
    )


# The changelog.


def _with_news(
    settings: Settings, resolved: Resolved, found: Against, now: datetime, network: Network
) -> Against:
    try:
        path = _changelog(settings, resolved, network)
    except KbuildError as error:
        return dataclasses.replace(found, changelog=Answer(Told.UNKNOWN, error.what))
    newest = kernels.news(path, None)
    since = found.promoted.base if found.promoted else None
    missed = kernels.news(path, since) if since else newest
    if since and Version(since) >= Version(found.newest):
        missed = News(since, (), ())
    first = missed.dates[-1] if since and missed.dates else ""
    lag_s = (now - datetime.fromisoformat(first)).total_seconds() if first else None
    return dataclasses.replace(
        found,
        uploaded=newest.dates[0] if newest.dates else "",
        missed=missed.versions,
        missed_since=first,
        lag_s=lag_s if missed.versions else 0.0,
        cves=missed.cves,
        changelog=Answer(Told.YES),
    )


def _changelog(settings: Settings, resolved: Resolved, network: Network) -> Path:
    """Return the changelog in the smallest package that has it; the headers are needed anyway."""
    support = sorted(resolved.support, key=lambda one: one.wanted.size)
    for offer in (resolved.headers, *support):
        _fetch(settings, offer, network)
        file = source.verified(settings, offer)
        if (path := kernels.changelog_in(settings, file)) is not None:
            return path
    raise BuildError(f"no package of linux {resolved.version} has a changelog")


def _fetch(settings: Settings, offer: Offer, network: Network) -> None:
    download.fetch(settings, offer.wanted, offer.urls, network)


# The source.


def _source(
    settings: Settings, resolved: Resolved, base: Base, network: Network, *, fetch: bool
) -> Path | Answer:
    """Return the unpacked source, or why it is not there."""
    tree = unpack.kept_tree(settings, base.source.sha256)
    if tree is not None:
        return tree
    if not fetch:
        size = progress.size(base.source.size)
        why = f"the source of linux {base.version} ({size}) is not in the cache"
        return Answer(Told.UNKNOWN, why)
    try:
        _fetch(settings, resolved.source, network)
        return unpack.unpack(settings, base)
    except KbuildError as error:
        return Answer(Told.UNKNOWN, error.what)


def _applies(settings: Settings, base: Base, pristine: Path | Answer) -> Answer:
    if isinstance(pristine, Answer):
        return pristine
    directory = settings.project / "patches"
    try:
        quilt.choose(directory, base.upstream)
    except UserError as error:
        return Answer(Told.NO, error.what)
    (verdict,) = kernels.judge_series(directory, base, pristine)
    if verdict.applies:
        return Answer(Told.YES)
    lines = [f"{one.patch}: {one.file}:{one.line}: {one.reason}" for one in verdict.hunks]
    return Answer(Told.NO, "\n".join([verdict.why or "", *lines]))


def _fast(
    settings: Settings,
    target: Target,
    resolved: Resolved,
    pristine: Path | Answer,
    modules: str,
    network: Network,
) -> Answer:
    """Foresee the fast path: its method, and the types that the series may not change."""
    try:
        fragments = planning.fragments_of(settings, target)
        headers = source.verified(settings, resolved.headers)
        _fetch(settings, resolved.headers, network)
        name = f"linux-headers-{resolved.abi}-{resolved.flavour}"
        config = unpack.unpack_deb(settings, headers) / "usr/src" / name / ".config"
        distro = kconfig.read(config, strict=False)
        method, reason = planning.choose_method(target, distro, fragments, modules)
        if method != "fast":
            return Answer(Told.NO, reason)
        if isinstance(pristine, Answer):
            return pristine
        upstream = resolved.version.rpartition("-")[0]
        series = quilt.choose(settings.project / "patches", upstream)
        with patches.aside(pristine, series) as (patched, names):
            known = [name for name in names if (pristine / name).is_file()]
            guard.check_types(pristine, patched, known)
    except (GuardError, UserError) as error:
        return Answer(Told.NO, error.what + (f": {error.found}" if error.found else ""))
    except KbuildError as error:
        return Answer(Told.UNKNOWN, error.what)
    return Answer(Told.YES, "the types are unchanged; the compiled symbols are compared later")
