"""Find and fetch a distro kernel: the newest of a suite, or the requested version.

The distro's kernel is five or six packages: the Debian-patched source as a tarball, the image,
the flavour's headers, and the dependencies of these.  All have the same version, unless the
archive has already replaced one by the next version.
"""

from __future__ import annotations

import functools
import logging
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from debian.deb822 import PkgRelation
from debian.debian_support import Version

from kbuild.core import progress, suites
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Base, Settings, Target, VerifiedFile
from kbuild.fetch import download, index, mirror
from kbuild.fetch.download import GoneError, Network, Wanted
from kbuild.fetch.index import Listed

logger = logging.getLogger(__name__)

# Source packages of the kernel's binary packages: the build, and the one with the signatures for
# Secure Boot.  Until buster, the meta packages had their own.
_KERNEL_SOURCE = re.compile(r"linux|linux-latest|linux-signed-\w+")
# 6.1.0-56, or since trixie 6.12.117+deb13; the flavour follows.
_ABI = r"\d[\w.+~]*(?:-\d+)?"


@dataclass(frozen=True)
class Offer:
    """A package of the kernel, and every place that has it."""

    listed: Listed
    wanted: Wanted
    urls: tuple[str, ...]
    dists: tuple[str, ...]  # the signed indexes that list it


@dataclass(frozen=True)
class Resolved:
    """A distro kernel as the signed indexes describe it, before it is fetched."""

    suite: str
    flavour: str  # one of Debian's
    version: str  # Debian source version
    abi: str
    signers: tuple[str, ...]  # fingerprints of the keys that signed the indexes
    expired: bool
    source: Offer
    image: Offer
    parts: tuple[Offer, ...]  # the packages of the image, if Debian splits it
    headers: Offer
    support: tuple[Offer, ...]
    others: tuple[str, ...] = ()  # other versions listed with their source, newest first

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Return every package of this kernel."""
        everything = (self.source, self.image, *self.parts, self.headers, *self.support)
        return tuple(dict.fromkeys(everything))


@dataclass(frozen=True)
class _Found:
    """One package in one signed index."""

    listed: Listed
    release: index.Release


def resolve(
    settings: Settings,
    target: Target,
    *,
    network: Network | None = None,
    apt: Path = mirror.APT,
) -> Resolved:
    """Find the target's kernel in the suite's signed indexes.

    It only reads indexes; offline, those of the last run.  Raises UserError if the version does
    not exist.  Raises InfrastructureError if the archive lists an image without source and
    headers of the same version, and the errors of :mod:`kbuild.fetch.index`.
    """
    row = suites.suite(target.suite)
    flavour = suites.base_flavour(target.flavour)
    network = network or download.machine(apt)
    found = list(_kernel_packages(settings, row, network, apt))
    image = _image(found, row.name, flavour, target.version)
    version, name = image.listed.version, image.listed.package
    abi = name.removeprefix("linux-image-").removesuffix(f"-{flavour}")
    same = [f for f in found if f.listed.version == version]
    source = _one(same, re.compile(rf"linux-source-{_ABI}"), image)
    headers = _one(same, re.compile(re.escape(f"linux-headers-{abi}-{flavour}")), image)
    parts = _built_along(found, image, without=())
    # Since 6.12 the headers depend on the image, which compiling does not need.
    support = _built_along(found, headers, without=(image,))
    chosen = (image, *parts, source, headers, *support)
    offers = _offers(settings, row, found, chosen, network)
    used = [f.release for f in chosen]
    return Resolved(
        suite=row.name,
        flavour=flavour,
        version=version,
        abi=abi,
        signers=tuple(sorted({signer for release in used for signer in release.signers})),
        expired=any(release.expired for release in used),
        source=offers[source],
        image=offers[image],
        parts=tuple(offers[one] for one in parts),
        headers=offers[headers],
        support=tuple(offers[one] for one in support),
        others=_versions(found, flavour, without=version),
    )


def fetch(
    settings: Settings,
    target: Target,
    *,
    without_source: bool = False,
    network: Network | None = None,
    apt: Path = mirror.APT,
) -> Base:
    """Fetch the target's kernel into the cache and verify every file.

    ``without_source`` leaves out the largest file, which only compiling needs.
    A dry run fetches only indexes, logs what it would fetch, and returns the paths that the files
    would have.  Raises the errors of :func:`resolve` and :func:`kbuild.fetch.download.fetch`.
    """
    network = network or download.machine(apt)
    resolved = resolve(settings, target, network=network, apt=apt)
    logger.info(
        "base: linux %s (%s-%s) of %s",
        resolved.version,
        resolved.abi,
        resolved.flavour,
        resolved.suite,
    )
    for offer in resolved.offers:
        if without_source and offer == resolved.source:
            continue
        if settings.dry:
            missing = not download.place(settings, offer.wanted).exists()
            logger.info(
                "%s %s (%s)",
                "would fetch" if missing else "have",
                offer.wanted.name,
                progress.size(offer.wanted.size),
            )
        else:
            _fetch(settings, resolved, offer, network)
    return base(settings, resolved)


def _fetch(settings: Settings, resolved: Resolved, offer: Offer, network: Network) -> None:
    try:
        download.fetch(settings, offer.wanted, offer.urls, network)
    except GoneError as error:
        # Another version is another kernel with other bugs, so the user must choose it.
        others = ", ".join(resolved.others) or "none"
        raise GoneError(
            f"linux {resolved.version} of {resolved.suite} cannot be fetched: "
            f"the archive lists {offer.wanted.name}, but no mirror has it",
            expected=error.expected,
            found=error.found,
            hint="add another mirror with --mirror, or ask for another version with --version "
            f"(also listed: {others})",
        ) from error


def base(settings: Settings, resolved: Resolved) -> Base:
    """Return the base that :func:`fetch` makes of ``resolved``; its files may not exist yet."""
    file = functools.partial(verified, settings)
    return Base(
        suite=resolved.suite,
        flavour=resolved.flavour,
        version=resolved.version,
        abi=resolved.abi,
        signers=resolved.signers,
        source=file(resolved.source),
        image=file(resolved.image),
        headers=file(resolved.headers),
        support=tuple(file(offer) for offer in resolved.support),
        expired=resolved.expired,
        parts=tuple(file(offer) for offer in resolved.parts),
    )


def verified(settings: Settings, offer: Offer) -> VerifiedFile:
    """Return the file that fetching an offer makes; it may not exist yet."""
    one = offer.listed
    path = download.place(settings, offer.wanted)
    return VerifiedFile(one.package, one.version, path, offer.wanted.sha256, offer.wanted.size)


def _kernel_packages(
    settings: Settings, row: suites.Suite, network: Network, apt: Path
) -> Iterator[_Found]:
    for dist, bases in mirror.kernel_dists(row, mirror.find(settings, apt=apt)):
        release, packages = index.read(settings, row, dist, bases, network, prefix="linux-")
        for listed in packages:
            if _KERNEL_SOURCE.fullmatch(listed.source):
                yield _Found(listed, release)


def _image(found: Sequence[_Found], suite: str, flavour: str, version: str | None) -> _Found:
    """Find the requested image, or the one that the newest meta package depends on."""
    pattern = re.compile(rf"linux-image-{_ABI}-{re.escape(flavour)}")
    images = [f for f in found if pattern.fullmatch(f.listed.package)]
    if version is not None:
        for one in images:
            if one.listed.version == version:
                return one
        listed = sorted({f.listed.version for f in images}, key=Version, reverse=True)
        raise UserError(
            f"{suite} has no linux {version} for {flavour}",
            expected="one of " + ", ".join(listed) if listed else "an image of this flavour",
            found=version,
            hint="archives keep few old versions; omit --version for the newest",
        )
    metas = [f for f in found if f.listed.package == f"linux-image-{flavour}"]
    if not metas:
        raise InfrastructureError(
            f"{suite} has no package linux-image-{flavour}",
            expected="the meta package that depends on the newest image",
            found=f"{len(images)} images of this flavour",
            hint="the mirror may be incomplete: add another with --mirror, or use --version",
        )
    meta = max(metas, key=lambda f: Version(f.listed.version))
    wishes = [wish.name for group in _dependencies(meta.listed) for wish in group]
    needed = [name for name in wishes if pattern.fullmatch(name)]
    candidates = [f for f in images if f.listed.package in needed]
    if not candidates:
        raise InfrastructureError(
            f"{suite} lists linux-image-{flavour} {meta.listed.version}, but not its image",
            expected=meta.listed.depends,
            found="no such package in the suite's indexes",
            hint="the mirror is being updated: run this again later, or add one with --mirror",
        )
    return max(candidates, key=lambda f: Version(f.listed.version))


def _versions(found: Sequence[_Found], flavour: str, *, without: str) -> tuple[str, ...]:
    image = re.compile(rf"linux-image-{_ABI}-{re.escape(flavour)}")
    source = re.compile(rf"linux-source-{_ABI}")
    listed = {f.listed.version for f in found if source.fullmatch(f.listed.package)}
    listed &= {f.listed.version for f in found if image.fullmatch(f.listed.package)}
    return tuple(sorted(listed - {without}, key=Version, reverse=True))


def _one(same: Sequence[_Found], pattern: re.Pattern[str], image: _Found) -> _Found:
    for found in same:
        if pattern.fullmatch(found.listed.package):
            return found
    raise InfrastructureError(
        f"the archive lists {image.listed.package} {image.listed.version}, but not its "
        "source or headers",
        expected=f"a package {pattern.pattern} of version {image.listed.version}",
        found=f"{len(same)} other packages of that version",
        hint="a security update arrives package by package: run this again in some hours, or ask "
        "for an earlier version with --version",
    )


def _built_along(
    found: Sequence[_Found], package: _Found, *, without: Sequence[_Found]
) -> list[_Found]:
    """Follow a package's dependencies as far as they were built from a kernel's source.

    Like apt, it takes the first alternative that fits.  Raises InfrastructureError if a mirror
    has packages of those names, but no usable version.
    """
    by_name: dict[str, list[_Found]] = {}
    for one in found:
        by_name.setdefault(one.listed.package, []).append(one)
    seen = {package.listed.package, *(one.listed.package for one in without)}
    wanted = [package.listed]
    chosen: dict[str, _Found] = {}
    while wanted:
        for group in _dependencies(wanted.pop()):
            there = [wish for wish in group if wish.name in by_name]
            if not there:
                continue
            wish = next((w for w in there if w.fitting(by_name[w.name])), there[0])
            if wish.name not in seen:
                seen.add(wish.name)
                chosen[wish.name] = _will_do(by_name[wish.name], wish, package)
                wanted.append(chosen[wish.name].listed)
    return [chosen[name] for name in sorted(chosen)]


def _will_do(candidates: Sequence[_Found], wish: _Wish, package: _Found) -> _Found:
    """Choose the version of a dependency: the package's own, else the newest that fits.

    Packages without an ABI in their name (linux-kbuild-6.1) are replaced as soon as the next
    version is built.  That is hours or days before its image is signed.  apt accepts them too.
    """
    fitting = wish.fitting(candidates)
    if not fitting:
        raise InfrastructureError(
            f"a dependency of {package.listed.package} {package.listed.version} is missing",
            expected=f"{wish.name} ({wish.relation} {wish.version})",
            found=", ".join(sorted({one.listed.version for one in candidates})),
            hint="the mirror is being updated: run this again later, or add one with --mirror",
        )
    own = [one for one in fitting if one.listed.version == package.listed.version]
    return own[0] if own else max(fitting, key=lambda one: Version(one.listed.version))


# Debian Policy, section 7.1.
_RELATIONS: Mapping[str, Callable[[Version, Version], bool]] = {
    "<<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">>": operator.gt,
}


@dataclass(frozen=True)
class _Wish:
    """A package that another depends on; any version fits if ``relation`` is empty."""

    name: str
    relation: str = ""
    version: str = ""

    def fitting(self, candidates: Sequence[_Found]) -> list[_Found]:
        """Return those of the candidates, packages of that name, whose version fits."""
        if not self.relation:
            return list(candidates)
        holds, wanted = _RELATIONS[self.relation], Version(self.version)
        return [one for one in candidates if holds(Version(one.listed.version), wanted)]


def _dependencies(listed: Listed) -> list[list[_Wish]]:
    """Return the alternatives of each dependency."""
    groups = PkgRelation.parse_relations(listed.depends) if listed.depends else []
    return [[_Wish(str(one["name"]), *(one["version"] or ())) for one in group] for group in groups]


def _offers(
    settings: Settings,
    row: suites.Suite,
    found: Sequence[_Found],
    chosen: Sequence[_Found],
    network: Network,
) -> dict[_Found, Offer]:
    """Return every place of each package; several dists may list the same file."""
    wishes = {(one.listed.package, one.listed.version) for one in chosen}
    wanted = [one for one in found if (one.listed.package, one.listed.version) in wishes]
    files: dict[_Found, Wanted] = {}
    for release in dict.fromkeys(one.release for one in wanted):
        listed = [one.listed for one in wanted if one.release == release]
        located = index.locate(settings, row, release, listed, network)
        files |= {_Found(one, release): wanted for one, wanted in located.items()}
    return {one: _offer(files, one) for one in chosen}


def _offer(files: Mapping[_Found, Wanted], chosen: _Found) -> Offer:
    # After a point release two archives have the same file, under the same or another path.
    same = [chosen, *(one for one in files if files[one].sha256 == files[chosen].sha256)]
    urls = [f"{base}/{quote(files[one].what)}" for one in same for base in one.release.bases]
    return Offer(
        listed=chosen.listed,
        wanted=files[chosen],
        urls=tuple(dict.fromkeys(urls)),
        dists=tuple(dict.fromkeys(one.release.dist for one in same)),
    )
