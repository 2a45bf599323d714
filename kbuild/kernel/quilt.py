"""Read a quilt series with DEP-3 headers, and choose the one for a kernel."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import zlib
from pathlib import Path

from debian.deb822 import Deb822
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchedFile, PatchSet

from kbuild.core import fs
from kbuild.core.errors import UserError
from kbuild.core.model import Patch, Series
from kbuild.core.run import run

_UPSTREAM = re.compile(r"[0-9]+(\.[0-9]+)+(~rc[0-9]+)?")
# The DEP-3 fields that our patches must have, with either name of the description, because a mail
# for 'git am' has a Subject.  X-Exports is ours, which DEP-3's vendor fields allow; it is empty if
# a patch exports nothing.
EXPORTS_FIELD = "X-Exports"
_DESCRIPTION_FIELDS = ("Description", "Subject")
_REQUIRED_FIELDS = ("Forwarded", "Last-Update", EXPORTS_FIELD)
_MAIL_TAG = re.compile(r"^\[PATCH[^]]*\] *")
# The separator of hunks in a context diff (diff -c).
_CONTEXT_DIFF = re.compile(r"^\*{15}", re.MULTILINE)
# A line that names the file of the next hunks.
_HEADER = re.compile(
    rb"^[ \tX]*(?:---|\+\+\+|\*\*\*|Index:|diff --git)[ \t]+(.+?)\r?$", re.MULTILINE
)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)")
_ESCAPES = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))
# Changes without hunks, which patch(1) ignores or cannot make.
_UNSUPPORTED = re.compile(
    rb"^(?:GIT binary patch|(?:Binary files|Symbolic links) .* differ|Only in \S+: \S+"
    rb"|File .* is an? .* while file .* is an? .*|.*\bmode 160000)\r?$",
    re.MULTILINE,
)
_COMPRESSED = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_NAME_MAX = 255  # bytes of a file name on Linux


def read_series(directory: Path) -> Series:
    """Read a quilt series and its range of kernels; raises UserError if malformed."""
    try:
        wanted = (directory / "range").read_text().strip()
        SpecifierSet(wanted)
        lines = os.fsdecode((directory / "series").read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError, InvalidSpecifier) as error:
        raise UserError(
            f"{directory} is not a series: {error}",
            expected="a file 'series' (quilt's format) and a file 'range' (a version specifier)",
            hint="a range looks like >=5.11,<8",
        ) from error
    patches = tuple(
        _read_patch(directory / name)
        for line in lines
        if (name := _patch_name(directory / "series", line))
    )
    if not patches:
        raise UserError(f"{directory / 'series'} names no patch", hint="list the patch files in it")
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(fs.sha256_file(patch.path).encode())
    return Series(name=directory.name, range=wanted, patches=patches, digest=digest.hexdigest())


def _patch_name(series: Path, line: str) -> str:
    """Return the patch named by a line of a series, or "" if it names none."""
    name, *options = re.sub(r"(^|\s)#.*", "", line).split() or [""]
    if options not in ([], ["-p1"]):
        raise UserError(
            f"{name} has options in {series} that are not supported",
            expected="none, or -p1",
            found=" ".join(options),
            hint="rewrite the patch for -p1, forward",
        )
    return name


def content(path: Path) -> bytes:
    """Return a patch as patch(1) takes it, decompressed according to its name."""
    if not path.is_file():
        raise UserError(
            f"the series in {path.parent} names a patch that does not exist",
            expected="a file",
            found=path.name,
        )
    try:
        return _COMPRESSED.get(path.suffix, bytes)(path.read_bytes())
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_patch(path: Path) -> Patch:
    text = content(path)
    raw = text.partition(b"\n---")[0]
    try:
        header = raw.decode()
    except UnicodeDecodeError:
        header = raw.decode("latin-1")
    if not _HEADER.search(text):
        raise UserError(
            f"{path} contains no diff",
            expected="a unified or context diff that names its files, as text, .gz, .bz2 or .xz",
        )
    if unsupported := _UNSUPPORTED.search(text):
        raise UserError(
            f"{path} makes a change that patch(1) cannot make",
            expected="changes of text files, modes and symbolic links",
            found=unsupported[0].decode(errors="replace").strip(),
            hint="write binary files as text, or omit them",
        )
    fields = Deb822(header)
    missing = [
        name
        for name in _REQUIRED_FIELDS
        if name not in fields or not (fields[name] or name == EXPORTS_FIELD)
    ]
    described = next((fields[name] for name in _DESCRIPTION_FIELDS if fields.get(name)), "")
    if not described:
        missing.insert(0, " or ".join(_DESCRIPTION_FIELDS))
    if missing:
        raise UserError(
            f"{path} has no complete DEP-3 header",
            expected=", ".join((" or ".join(_DESCRIPTION_FIELDS), *_REQUIRED_FIELDS)),
            found=f"{', '.join(missing)} missing",
        )
    return Patch(
        path=path,
        description=_MAIL_TAG.sub("", described.splitlines()[0]),
        exports=tuple(re.findall(r"\w+", fields[EXPORTS_FIELD])),
    )


def choose(directory: Path, upstream: str) -> Series:
    """Return the one series below ``directory`` whose range contains ``upstream`` (6.1.192)."""
    series = [read_series(path.parent) for path in sorted(directory.glob("*/series"))]
    fitting = [one for one in series if upstream_in_range(upstream, one.range)]
    if len(fitting) != 1:
        raise UserError(
            f"{len(fitting)} series are for Linux {upstream}, but there must be exactly one",
            expected="; ".join(f"{one.name}: {one.range}" for one in series) or "any series",
            found=", ".join(one.name for one in fitting) or "none",
            hint=f"add a directory to {directory}, or narrow a range",
        )
    return fitting[0]


def touched(series: Series) -> tuple[str, ...]:
    """Return the files that a series changes, relative to the tree, sorted."""
    return tuple(sorted({name for patch in series.patches for name in named(patch)}))


def named(patch: Patch) -> set[str]:
    """Return every name that patch(1) could choose for a file of this patch, and maybe more.

    Headers are ambiguous: a name may end at a blank, at a tab, or at the end of the line.
    """
    names: set[bytes] = set()
    for header in _HEADER.findall(content(patch.path)):
        names |= {header, header.partition(b"\t")[0], *header.split()}
        names |= {_unescaped(quoted) for quoted in _QUOTED.findall(header)}
    stripped = {name.partition(b"/")[2].lstrip(b"/") for name in names if b"\0" not in name}
    possible = {name for name in stripped if name and max(map(len, name.split(b"/"))) <= _NAME_MAX}
    paths = {Path(os.fsdecode(name)) for name in possible}
    return {path.as_posix() for path in paths if path.name and ".." not in path.parts}


def _unescaped(quoted: bytes) -> bytes:
    """Return the file name in a C string that diff or git wrote."""

    def character(match: re.Match[bytes]) -> bytes:
        escaped = match[1]
        if escaped[:1].isdigit():
            return bytes([int(escaped, 8) & 0xFF])
        return bytes([_ESCAPES.get(escaped[0], escaped[0])])

    return _ESCAPE.sub(character, quoted)


def changes(patch: Patch) -> dict[str, PatchedFile]:
    """Parse a unified or context diff into the files that it changes."""
    raw = content(patch.path)
    text = raw.decode(errors="surrogateescape")
    if _CONTEXT_DIFF.search(text):
        text = run(["filterdiff", "--format=unified"], data=raw, timeout_s=60).stdout
    try:
        return {_path(change): change for change in PatchSet(text)}
    except UnidiffParseError as error:
        raise UserError(f"{patch.path} is not a readable diff: {error}") from error


def _path(change: PatchedFile) -> str:
    """Return the name of a changed file as -p1 shortens it."""
    name = change.source_file if change.target_file == "/dev/null" else change.target_file
    raw = str(name).encode(errors="surrogateescape")
    if quoted := _QUOTED.fullmatch(raw):
        raw = _unescaped(quoted[1])
    return os.fsdecode(raw).partition("/")[2]


def upstream_in_range(upstream: str, specifier: str) -> bool:
    """Return whether an upstream kernel version is in a series' range: 6.1.192 in >=5.11,<8.

    Debian writes a release candidate as 6.12~rc3.  It counts as PEP 440's 6.12rc3, which comes
    before 6.12.  Raises UserError if version or range cannot be parsed.
    """
    # PEP 440 would read a source version, 6.1.192-2, as a post-release.
    if not _UPSTREAM.fullmatch(upstream):
        raise UserError(
            f"{upstream!r} is not an upstream kernel version", expected="such as 6.1.192"
        )
    try:
        return SpecifierSet(specifier).contains(
            Version(upstream.replace("~rc", "rc")), prereleases=True
        )
    except InvalidSpecifier:
        raise UserError(
            f"{specifier!r} is not a range of kernels", expected="such as >=5.11,<8"
        ) from None
