"""Build our module for a kernel, and check that it fits that kernel.

The sources are copied first, so that nothing is ever written into kmod/.  The result itself shows
whether it belongs to the target: requested and actual kernel have differed before.
"""

from __future__ import annotations

import logging
import re
import shutil
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kbuild.core import fs, progress, sandbox
from kbuild.core.errors import BuildError
from kbuild.core.model import Root, Settings
from kbuild.core.run import failure
from kbuild.core.sandbox import Bind
from kbuild.kernel import symvers
from kbuild.kernel.makelog import first_error
from kbuild.kernel.symvers import ExportedSymbol

logger = logging.getLogger(__name__)

NAME = "cplayground"

_HEADERS = "/mnt/headers"
_MODULE = "/mnt/module"
_TREE = "/mnt/tree"
_TIMEOUT_S = 600.0
# struct modversion_info of include/linux/module.h on a 64-bit kernel: a CRC and a name.
_VERSION = struct.Struct("<Q56s")
# A warning of W=1 that a kernel's headers may cause: 5.10 without NUMA does, in linux/mmzone.h.
# In our own files it counts as a finding.
_IN_HEADERS = "unused-but-set-variable"
# Warnings, and sparse.  Linux 7 skips sparse with only a warning if sparse does not know the C of
# the headers, or if scripts/checker-valid.sh is missing.  With Debian's sparse and headers both
# are true.  So override the Makefile's decision, and define the unknown words for sparse.
_CHECKS = (
    "W=1",
    "C=2",
    "KBUILD_CHECKSRC=2",
    "CF=-D__typeof_unqual__=__typeof__ -D'_Static_assert(...)='",
    f"KCFLAGS=-Werror -Wno-error={_IN_HEADERS}",
)
_CHECKED = re.compile(rf"^  CHECK +\S*\b{NAME}\.c$", re.MULTILINE)
_FINDING = re.compile(
    r"^\S+:\d+(?::\d+)?: (?:warning|error|WARNING|ERROR|CHECK)\b.*$", re.MULTILINE
)


@dataclass(frozen=True)
class BuiltModule:
    """A module that was checked against its kernel."""

    path: Path
    release: str  # of its kernel
    backends: tuple[str, ...]  # built in; the first one is the default
    vermagic: str
    seconds: float


@dataclass(frozen=True)
class ModuleFacts:
    """The facts in the module's own file."""

    info: Mapping[str, str]  # .modinfo; the last value of a repeated key
    undefined: frozenset[str]  # symbols that it needs from the kernel
    crcs: Mapping[str, int]  # __versions; empty without CONFIG_MODVERSIONS


@dataclass(frozen=True)
class Headers:
    """Prepared kernel headers, as a root shows them."""

    directory: str  # in the root: make's working directory
    symvers: Path  # on the host: the kernel's Module.symvers
    binds: tuple[Bind, ...]
    source: str | None = None  # in the root, if ``directory`` is the output of another tree


def whole(tree: Path) -> Headers:
    """Return headers in one directory, as in our own packages."""
    return Headers(_HEADERS, tree / "Module.symvers", (Bind(tree, _HEADERS),))


def debian(prefix: Path, release: str) -> Headers:
    """Return Debian's own headers, unpacked below ``prefix`` from several packages.

    The flavour's, the common and the kbuild package refer to each other by relative links.  Only
    the flavour's Makefile names /usr/src, so make starts in the common one.
    """
    source = prefix / "usr/src"
    common = sorted(source.glob("linux-headers-*-common"))
    if len(common) != 1:
        raise BuildError(
            f"Debian's headers for {release} are incomplete",
            expected=f"one linux-headers-*-common below {source}",
            found=", ".join(path.name for path in common) or "none",
        )
    return Headers(
        directory=f"{_HEADERS}/usr/src/linux-headers-{release}",
        symvers=source / f"linux-headers-{release}" / "Module.symvers",
        binds=(Bind(prefix, _HEADERS),),
        source=f"{_HEADERS}/usr/src/{common[0].name}",
    )


def build(
    settings: Settings,
    root: Root,
    *,
    headers: Path | Headers,
    release: str,
    out: Path,
    log: Path,
    source: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> BuiltModule:
    """Compile the module against ``headers`` in ``root``, into the directory ``out``.

    ``source`` is kmod/ or a changed copy of it; ``variables`` are make's.  Raises BuildError with
    the compiler's first error, or with the differences if the result is not for ``release``.
    ``out`` then stays as it was.
    """
    began = time.monotonic()
    target = headers if isinstance(headers, Headers) else whole(headers)
    exported = symvers.read(target.symvers)
    log.unlink(missing_ok=True)
    with fs.fresh_directory(out) as scratch:
        copy_sources(source or settings.project / "kmod", scratch)
        given = [f"{name}={value}" for name, value in (variables or {}).items()]
        _make(settings, root, target, scratch, [*given, "modules"], log)
        facts = read(scratch / f"{NAME}.ko")
        check(facts, release=release, exported=exported, log=log)
    seconds = time.monotonic() - began
    backends = tuple(facts.info["backends"].split())
    logger.info(
        "built %s.ko for %s (%s) in %s",
        NAME,
        release,
        ", ".join(backends),
        progress.duration(seconds),
    )
    return BuiltModule(out / f"{NAME}.ko", release, backends, facts.info["vermagic"], seconds)


def compile_unchecked(
    settings: Settings, root: Root, *, headers: Headers, out: Path, log: Path
) -> Path:
    """Compile our module for a kernel that may lack what it needs; return its .ko.

    The result is only for reading, not for loading: modpost warns of missing exports, and nothing
    is checked.  Raises BuildError if the sources do not compile against the headers.
    """
    log.unlink(missing_ok=True)
    with fs.fresh_directory(out) as scratch:
        copy_sources(settings.project / "kmod", scratch)
        _make(settings, root, headers, scratch, ["KBUILD_MODPOST_WARN=1", "modules"], log)
    return out / f"{NAME}.ko"


def compile_other(
    settings: Settings, root: Root, *, headers: Headers, source: Path, out: Path, log: Path
) -> Path:
    """Compile the module of one file in ``source``, one of the tests' own; return its .ko.

    ``out`` becomes a directory with it.  Raises BuildError as :func:`build` does.
    """
    log.unlink(missing_ok=True)
    with fs.fresh_directory(out) as scratch:
        copy_sources(source, scratch)
        _make(settings, root, headers, scratch, ["modules"], log, shown=source)
        made = [path.name for path in scratch.glob("*.ko")]
        if len(made) != 1:
            raise BuildError(f"{source} gave no module", found=" ".join(made), log=log)
    return out / made[0]


def lint(
    settings: Settings,
    root: Root,
    *,
    headers: Path | Headers,
    tree: Path,
    scratch: Path,
    log: Path,
) -> None:
    """Compile with all warnings and sparse, and check the sources with checkpatch --strict.

    ``tree`` is a directory with scripts/checkpatch.pl (the kernel's source, or its headers).
    Raises BuildError with every finding.
    """
    target = headers if isinstance(headers, Headers) else whole(headers)
    log.unlink(missing_ok=True)
    findings: list[str] = []
    with fs.fresh_directory(scratch) as work:
        copy_sources(settings.project / "kmod", work)
        said = _make(settings, root, target, work, [*_CHECKS, "modules"], log)
        if _CHECKED.search(said) is None:
            raise BuildError(
                "sparse did not read the module's source",
                expected=f"make to say CHECK {NAME}.c",
                found="\n".join(line for line in said.splitlines() if "sparse" in line),
                log=log,
            )
        findings += [line for line in _FINDING.findall(said) if not _is_of_headers(line, work)]
        names = sorted(p.relative_to(work).as_posix() for p in work.rglob("*.[ch]"))
        generated = {f"{NAME}.mod.c", "features.h"}
        completed = sandbox.enter(
            root,
            [
                f"{_TREE}/scripts/checkpatch.pl",
                "--strict",
                "--no-tree",
                "--terse",
                "--quiet",
                "--file",
                *(name for name in names if name not in generated),
            ],
            timeout_s=_TIMEOUT_S,
            binds=[Bind(tree, _TREE), Bind(work, _MODULE)],
            cwd=_MODULE,
            log=log,
            check=False,
        )
        findings += _FINDING.findall(completed.stdout)
    # Both report only findings, so a bad status without output is a finding too.
    if findings or completed.returncode:
        raise BuildError(
            "the module's sources have findings",
            expected="no findings by the compiler (W=1), sparse and checkpatch --strict",
            found="\n".join(findings) or completed.stdout.strip(),
            log=log,
        )


def _is_of_headers(finding: str, work: Path) -> bool:
    """Return whether a finding is the one that the kernel's own headers may cause."""
    path = finding.partition(":")[0].removeprefix(f"{_MODULE}/")
    return finding.endswith(f"[-W{_IN_HEADERS}]") and not (work / path).exists()


def copy_sources(kmod: Path, target: Path) -> None:
    """Copy the module's sources, but no files that a build left next to them."""
    shutil.copytree(
        kmod,
        target,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(
            "*.o", "*.ko", "*.mod", "*.mod.c", "*.cmd", "*.symvers", "*.order", "features.*"
        ),
    )


def _make(
    settings: Settings,
    root: Root,
    target: Headers,
    module: Path,
    goals: Sequence[str],
    log: Path,
    *,
    shown: Path = Path("kmod"),
) -> str:
    output = [] if target.source is None else [f"O={target.directory}"]
    completed = sandbox.enter(
        root,
        [
            "make",
            "-C",
            target.source or target.directory,
            *output,
            f"-j{settings.jobs}",
            f"M={_MODULE}",
            f"KDIR={target.directory}",
            *goals,
        ],
        timeout_s=_TIMEOUT_S,
        binds=[*target.binds, Bind(module, _MODULE, writable=True)],
        log=log,
        check=False,
    )
    if completed.returncode:
        raise failure(
            completed,
            "the module does not build",
            found=first_error(completed.stdout).replace(_MODULE, str(shown)),
            log=log,
        )
    return completed.stdout


def read(path: Path) -> ModuleFacts:
    """Read the facts in a module's file; raises BuildError if it is not a module."""
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            modinfo = elf.get_section_by_name(".modinfo")
            table = elf.get_section_by_name(".symtab")
            if modinfo is None or not isinstance(table, SymbolTableSection):
                raise BuildError(f"{path} is not a kernel module: no .modinfo or no symbols")
            entries = [entry.decode() for entry in modinfo.data().split(b"\0") if entry]
            versions = elf.get_section_by_name("__versions")
            undefined = frozenset(
                symbol.name
                for symbol in table.iter_symbols()
                if symbol["st_shndx"] == "SHN_UNDEF"
                and symbol["st_info"]["bind"] != "STB_WEAK"
                and symbol.name
            )
            crcs = {} if versions is None else parse_versions(versions.data())
    except (OSError, ELFError) as error:
        raise BuildError(f"cannot read the module {path}", found=str(error)) from None
    info = dict(entry.partition("=")[::2] for entry in entries)
    return ModuleFacts(info, undefined, crcs)


def parse_versions(raw: bytes) -> dict[str, int]:
    """Read the section __versions: the CRC of each symbol that the module was built for."""
    if len(raw) % _VERSION.size:
        raise BuildError(
            "the module's symbol versions have an unknown form",
            expected=f"a multiple of {_VERSION.size} bytes",
            found=f"{len(raw)} bytes",
        )
    return {
        name.rstrip(b"\0").decode(): crc & 0xFFFFFFFF for crc, name in _VERSION.iter_unpack(raw)
    }


def check(
    facts: ModuleFacts,
    *,
    release: str,
    exported: Mapping[str, ExportedSymbol],
    log: Path | None = None,
) -> None:
    """Raise BuildError unless a module fits the kernel with that release and those symbols."""
    vermagic = facts.info.get("vermagic", "")
    if vermagic.split(" ", 1)[0] != release:
        raise BuildError(
            "the module was built for another kernel than the requested one",
            expected=release,
            found=vermagic or "no vermagic",
            log=log,
            hint="the headers belong to another release",
        )
    if not facts.info.get("backends"):
        raise BuildError("the module does not name its backends", log=log)
    missing = sorted(facts.undefined - exported.keys())
    if missing:
        raise BuildError(
            f"the module uses symbols that {release} does not export",
            expected="every one in the kernel's Module.symvers",
            found=", ".join(missing),
            log=log,
        )
    if not facts.crcs and any(exported[name].crc is not None for name in facts.undefined):
        raise BuildError(
            f"the module has no symbol versions, but {release} requires them",
            log=log,
            hint="with CONFIG_MODVERSIONS, Linux 7 needs CONFIG_BASIC_MODVERSIONS to write them",
        )
    wrong = []
    for name in sorted(facts.undefined | facts.crcs.keys()):
        wanted = exported[name].crc if name in exported else None
        if wanted is not None and facts.crcs.get(name) != wanted:
            got = facts.crcs.get(name)
            shown = "none" if got is None else f"{got:#010x}"
            wrong.append(f"{name}: {shown}, the kernel has {wanted:#010x}")
    if wrong:
        raise BuildError(
            f"the module's symbol versions do not match {release}",
            found="\n".join(wrong),
            log=log,
            hint="the headers and the Module.symvers come from different builds",
        )
