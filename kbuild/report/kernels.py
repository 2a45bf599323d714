"""Report for each kernel whether the patch is needed: exports, series, options, changelog.

It compiles the module only, never a kernel.  From the cache it reads the stock kernel's list
of exports, its source, its Kconfig files and its changelog.
"""

from __future__ import annotations

import dataclasses
import gzip
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from debian.changelog import Changelog
from debian.debian_support import Version
from unidiff.patch import Hunk

from kbuild.core import fs, recipe, results, suites
from kbuild.core.errors import BuildError, DefectError, KbuildError
from kbuild.core.model import BACKENDS, Base, Series, Settings, Target, VerifiedFile
from kbuild.fetch import download, roots, source, unpack
from kbuild.fetch.download import Network
from kbuild.kernel import hunks, kconfig, module, patches, quilt, symvers
from kbuild.kernel.patches import Refusal
from kbuild.kernel.symvers import ExportedSymbol
from kbuild.pipeline import stages
from kbuild.ship import manifest

logger = logging.getLogger(__name__)


_CVE = re.compile(r"\bCVE-\d{4}-\d{4,}\b")
# An item of Debian's kernel changelog: "  * ...", "    - ...", "    + ...".
_ITEM = re.compile(r"^\s+[-*+] ")
# The files that are searched for a function's definition.
_DEFINED_IN = ("fs/*.c", "kernel/*.c", "lib/*.c", "mm/*.c", "kernel/sched/*.c")


@dataclass(frozen=True)
class Lacking:
    """A symbol that a backend needs but the kernel does not export."""

    name: str
    place: str | None  # of its definition, as fs/file.c:432; None: no definition was found


@dataclass(frozen=True)
class Backend:
    """A backend of the module on the unpatched kernel: the symbols that it needs and lacks."""

    name: str
    needs: int  # symbols
    lacking: tuple[Lacking, ...]
    unknown: str | None = None  # the reason why the symbols are not known

    @property
    def works(self) -> bool:
        """Return whether every symbol that it needs is exported; False if they are not known."""
        return self.unknown is None and not self.lacking


@dataclass(frozen=True)
class HunkFailure:
    """A hunk that does not apply to a source, and how the source differs."""

    patch: str
    file: str
    line: int  # of the hunk's old lines, from its header
    reason: str  # how the source differs, in one line
    functions: tuple[str, ...]  # those in the hunk: where each is now, or that it is gone
    change: tuple[str, ...]  # a diff from the old lines to the new ones
    since: str  # the origin of the old lines


@dataclass(frozen=True)
class SeriesVerdict:
    """The result of trying a series of patches on a source."""

    series: str
    range: str
    chosen: bool  # the source's version is in its range
    applies: bool  # and has the declared effect
    why: str | None  # the reason if it does not
    hunks: tuple[HunkFailure, ...] = ()


@dataclass(frozen=True)
class GoneOptions:
    """Options of one of our fragments that a source does not have."""

    fragment: str
    options: tuple[str, ...]
    count: int  # options in the fragment
    foreseen: tuple[str, ...] = ()  # gone too, but marked "where it exists" in the fragment


@dataclass(frozen=True)
class Fix:
    """An item of the changelog that names CVEs."""

    version: str
    text: str
    cves: tuple[str, ...]


@dataclass(frozen=True)
class News:
    """The distro's changes after the version ``since``; if that is None, in its newest version."""

    since: str | None
    versions: tuple[str, ...]  # those with the changes, newest first
    fixes: tuple[Fix, ...]
    dates: tuple[str, ...] = ()  # of the versions: UTC, ISO 8601; empty where there is none

    @property
    def cves(self) -> tuple[str, ...]:
        """Return every CVE that the items name, once, sorted."""
        return tuple(sorted({cve for fix in self.fixes for cve in fix.cves}))


@dataclass(frozen=True)
class KernelReport:
    """The report on one kernel; with ``error``, the other fields are empty."""

    suite: str
    flavour: str
    release: str = ""
    version: str = ""
    backends: tuple[Backend, ...] = ()
    series: tuple[SeriesVerdict, ...] = ()
    options: tuple[GoneOptions, ...] = ()
    news: News | None = None
    error: KbuildError | None = None

    @property
    def answer(self) -> str:
        """Say in a sentence whether the patch is needed."""
        stock, export = self.backends
        if stock.unknown or export.unknown:
            return "not known"
        if export.works:
            which = "both backends work" if stock.works else "export works"
            return f"no: {which} without it"
        if stock.works:
            return "only for the backend export; stock works without it"
        return "yes: no backend works without it"


def run(
    settings: Settings,
    target: Target,
    *,
    suite: str = "all",
    flavour: str = "all",
    network: Network | None = None,
) -> tuple[KernelReport, ...]:
    """Report on each kernel asked for; after the failure of one, the others follow.

    ``suite`` and ``flavour`` are names or "all".  Raises UserError for an unknown name.
    """
    chosen = list(suites.SUITES) if suite == "all" else [suites.suite(suite).name]
    flavours = suites.DEBIAN_FLAVOURS if flavour == "all" else (suites.base_flavour(flavour),)
    network = network or download.machine()
    return tuple(
        _report(settings, dataclasses.replace(target, suite=name, flavour=one), network)
        for name in chosen
        for one in flavours
    )


def exit_status(reports: Iterable[KernelReport]) -> int:
    """Return the exit status of the first kernel whose report failed, else 0."""
    return next((one.error.exit_status for one in reports if one.error is not None), 0)


def _report(settings: Settings, target: Target, network: Network) -> KernelReport:
    try:
        base = fetch(settings, target, network)
        logger.info("looking at %s %s of %s", base.release, base.version, base.suite)
        pristine = unpack.unpack(settings, base)
        directory = settings.project / "patches"
        last = last_built(settings, base)
        before = _tree_of(settings, last)
        series = judge_series(directory, base, pristine, before)
        exports = sorted({name for one in _all_series(directory) for name in one.exports})
        return KernelReport(
            suite=base.suite,
            flavour=base.flavour,
            release=base.release,
            version=base.version,
            backends=_backends(settings, base, pristine, exports),
            series=series,
            options=gone_options(
                [*sorted((settings.project / "fragments").glob("*.config")), *target.fragments],
                kconfig.definitions(pristine),
            ),
            news=news(_changelog(settings, base), last.base_version if last else None),
        )
    except KbuildError as error:
        return KernelReport(target.suite, target.flavour, error=error)
    except Exception as error:
        logger.exception("%s, %s", target.suite, target.flavour)
        return KernelReport(target.suite, target.flavour, error=DefectError.of(error))


def fetch(settings: Settings, target: Target, network: Network) -> Base:
    """Download the packages and the source that a report reads: all but the image."""
    resolved = source.resolve(settings, target, network=network)
    for offer in (resolved.source, resolved.headers, *resolved.support):
        download.fetch(settings, offer.wanted, offer.urls, network)
    return source.base(settings, resolved)


# Backends.


def _backends(
    settings: Settings, base: Base, pristine: Path, exports: Sequence[str]
) -> tuple[Backend, ...]:
    headers = stages.debian_headers(settings, base)
    exported = symvers.read(headers.symvers)
    unknown, needed = None, frozenset[str]()
    try:
        needed = _needed(settings, base, headers)
    except KbuildError as error:
        unknown = error.what + (f": {error.found.splitlines()[0]}" if error.found else "")
    return tuple(
        judge_backend(
            name,
            needed | frozenset(exports if name == "export" else ()),
            exported,
            pristine,
            unknown,
        )
        for name in BACKENDS
    )


def _needed(settings: Settings, base: Base, headers: module.Headers) -> frozenset[str]:
    """Return the symbols that the module needs when it is built for the unpatched kernel."""
    root = roots.compile_root(settings, base.suite)
    home = settings.build / base.suite / "report"
    inputs = {
        "headers": base.headers.sha256,
        "module": fs.sha256_tree(settings.project / "kmod"),
        "recipe": recipe.digest(Path(module.__file__)),
        "root": root.digest,
    }
    log = settings.build / "logs" / f"report-{base.suite}-{base.flavour}.log"
    out = home / base.release
    return results.kept(
        home / f"{base.release}.json",
        inputs,
        lambda _: [module.compile_unchecked(settings, root, headers=headers, out=out, log=log)],
        lambda: module.read(out / f"{module.NAME}.ko").undefined,
        lock=home / f".{base.release}.lock",
        doing=f"compiling the module for {base.release}",
    ).ensure()


def judge_backend(
    name: str,
    needed: Iterable[str],
    exported: Mapping[str, ExportedSymbol],
    pristine: Path,
    unknown: str | None = None,
) -> Backend:
    """Compare the symbols that a backend needs with those that a kernel exports."""
    wanted = sorted(needed)
    missing = [symbol for symbol in wanted if symbol not in exported]
    return Backend(
        name,
        len(wanted),
        tuple(Lacking(symbol, find_definition(pristine, symbol)) for symbol in missing),
        unknown,
    )


def find_definition(tree: Path, symbol: str) -> str | None:
    """Return file:line of a function's definition; None if it is not found.

    Only the core of the kernel is searched (fs, kernel, lib, mm): it defines the functions that
    a module like ours may call.
    """
    for pattern in _DEFINED_IN:
        for path in sorted(tree.glob(pattern)):
            text = path.read_text(errors="replace")
            if symbol in text and (span := hunks.function_span(text.splitlines(), symbol)):
                return f"{path.relative_to(tree)}:{span[0] + 1}"
    return None


# Patches.


def _all_series(directory: Path) -> list[Series]:
    return [quilt.read_series(path.parent) for path in sorted(directory.glob("*/series"))]


def judge_series(
    directory: Path, base: Base, pristine: Path, before: tuple[str, Path] | None = None
) -> tuple[SeriesVerdict, ...]:
    """Try the series for a kernel on its source; if there is none, try every series.

    ``before`` is the version and the tree of an older source of the same suite, to show the
    changes.
    """
    every = _all_series(directory)
    fitting = [one for one in every if quilt.upstream_in_range(base.upstream, one.range)]
    return tuple(
        _verdict(one, base, pristine, before, chosen=one in fitting) for one in fitting or every
    )


def _verdict(
    series: Series,
    base: Base,
    pristine: Path,
    before: tuple[str, Path] | None,
    *,
    chosen: bool,
) -> SeriesVerdict:
    try:
        patches.foresee(pristine, series, pristine, base_version=base.version)
    except BuildError as error:
        found = f": {error.found}" if error.found else ""
        failing = failing_hunks(series, pristine, before)
        why = error.what if failing else error.what + found
        return SeriesVerdict(series.name, series.range, chosen, False, why, failing)
    return SeriesVerdict(series.name, series.range, chosen, True, None)


def failing_hunks(
    series: Series, pristine: Path, before: tuple[str, Path] | None = None
) -> tuple[HunkFailure, ...]:
    """Name each hunk that patch(1) refuses without fuzz, with the functions in it.

    ``before`` is the version and the tree of an older source.  If the hunk applies to that, the
    diff of a failure shows the changes since then.  Otherwise it starts from the hunk's own
    lines and shows the most similar ones.
    """
    changed = {patch.path.name: quilt.changes(patch) for patch in series.patches}
    failures = []
    for refusal in patches.refusals(pristine, series):
        path = pristine / refusal.file
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        hunk = changed[refusal.patch][refusal.file][refusal.hunk - 1]
        older = before and (before[0], before[1] / refusal.file)
        failures.append(_explain(refusal, hunk, lines, older))
    return tuple(failures)


def _explain(
    refusal: Refusal, hunk: Hunk, lines: list[str], older: tuple[str, Path] | None
) -> HunkFailure:
    names = hunks.functions_of(hunk, refusal.file) if lines else ()
    was = None
    if older is not None and older[1].is_file():
        was = older[1].read_text(errors="replace").splitlines()
    change, from_older = hunks.change(hunk, refusal.file, lines, was)
    return HunkFailure(
        refusal.patch,
        refusal.file,
        hunk.source_start,
        refusal.reason,
        tuple(f"{name}() {hunks.whereabouts(lines, name)}" for name in names),
        tuple(change),
        older[0] if older and from_older else "what the hunk expects",
    )


# Configuration.


def _is_foreseen(fragment: kconfig.Fragment, name: str, options: Collection[str]) -> bool:
    """Return whether a fragment allows an option to be absent, and its substitute exists."""
    instead = fragment.elsewhere.get(name)
    return instead is not None and (not instead or instead in options)


def gone_options(fragments: Iterable[Path], options: Collection[str]) -> tuple[GoneOptions, ...]:
    """Return for each fragment the options that a source does not have.

    Raises BuildError if the source has no options at all.
    """
    if not options:
        raise BuildError("the source has no Kconfig files, or they define no option")
    result = []
    for path in fragments:
        fragment = kconfig.read(path)
        gone = sorted(name for name in fragment.options if name not in options)
        foreseen = [name for name in gone if _is_foreseen(fragment, name, options)]
        result.append(
            GoneOptions(
                path.name,
                tuple(name for name in gone if name not in foreseen),
                len(fragment.options),
                tuple(foreseen),
            )
        )
    return tuple(result)


# News.


def last_built(settings: Settings, base: Base) -> manifest.KernelRecord | None:
    """Return the newest recorded kernel of this flavour in build/, else of the suite, or None."""
    records = [
        kernel
        for path in sorted((settings.build / base.suite).glob(f"*/{manifest.RECORD}"))
        if (record := manifest.read_if_whole(path)) is not None
        for kernel in record.kernels
    ]
    same = [one for one in records if one.flavour == base.flavour]
    return max(same or records, key=lambda one: Version(one.base_version), default=None)


def _tree_of(settings: Settings, last: manifest.KernelRecord | None) -> tuple[str, Path] | None:
    """Return the version and the source of a kernel that was built; None if it is not cached."""
    for file in last.files if last else ():
        if file.name.startswith("linux-source-"):
            tree = unpack.kept_tree(settings, file.sha256)
            if tree is not None:
                return file.version, tree
    return None


def _changelog(settings: Settings, base: Base) -> Path:
    """Return the kernel's gzipped changelog, from the headers or the packages that they need."""
    for file in (base.headers, *base.support):
        if (path := changelog_in(settings, file)) is not None:
            return path
    raise BuildError(
        f"no package of linux {base.version} has a changelog",
        expected=f"usr/share/doc/{base.headers.name}/changelog.Debian.gz",
    )


def changelog_in(settings: Settings, file: VerifiedFile) -> Path | None:
    """Return the gzipped changelog of a fetched package, or None if it has none."""
    content = unpack.unpack_deb(settings, file)
    for name in ("changelog.Debian.gz", "changelog.gz"):
        path = content / "usr/share/doc" / file.name / name
        if path.is_file():
            return path
    return None


def news(path: Path, since: str | None) -> News:
    """Read the entries of a gzipped changelog above ``since``; if that is None, the newest one."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as stream:
        lines = list(_newer(stream, since))
    fixes = []
    names = []
    dates = []
    for block in Changelog(lines, allow_empty_author=True) if lines else ():
        names.append(str(block.version))
        dates.append(_date(block.date))
        for item in items(block.changes()):
            cves = tuple(dict.fromkeys(_CVE.findall(item)))
            if cves:
                fixes.append(Fix(str(block.version), item, cves))
    return News(since, tuple(names), tuple(fixes), tuple(dates))


def _date(text: str | None) -> str:
    """Return the date of a changelog's entry in UTC; "" for one that is missing or malformed."""
    try:
        return parsedate_to_datetime(text or "").astimezone(UTC).isoformat()
    except ValueError:
        return ""


def _newer(stream: Iterable[str], since: str | None) -> Iterator[str]:
    """Yield the lines of the entries above ``since`` only: the file has a hundred thousand."""
    head = re.compile(r"^\S+ \(([^)\s]+)\) ")
    entries = 0
    for line in stream:
        if match := head.match(line):
            entries += 1
            old = since is not None and _is_in(match[1], since)
            if old or (since is None and entries > 1):
                return
        yield line


def _is_in(entry: str, since: str) -> bool:
    """Return whether the version ``since``, which was built, contains a changelog's entry.

    A backport (7.3.4-1~bpo13+1) sorts before its original version, but contains all of it.
    """
    return Version(entry) <= Version(since) or since.startswith(f"{entry}~bpo")


def items(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of each item of a changelog entry."""
    item: list[str] = []
    for line in lines:
        if _ITEM.match(line) or not line.strip():
            if item:
                yield " ".join(item)
            item = [line.strip()[2:]] if line.strip() else []
        elif item:
            item.append(line.strip())
    if item:
        yield " ".join(item)
