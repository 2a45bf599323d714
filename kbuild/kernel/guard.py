"""The fast path: rebuild the image alone, and keep the distro's own modules.

With CONFIG_MODVERSIONS a module loads into any kernel whose symbols have the CRCs that it
was built against, whatever its release.  Our patch changes no type, so the image is
compiled from the same source with the distro's exact configuration and compiler, and
three things of the distro's own image make it complete: the certificate that its modules
are signed for, its BTF, and its Module.symvers as the yardstick.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import GuardError
from kbuild.core.model import Series
from kbuild.kernel import symvers
from kbuild.kernel.debian_image import btf_section
from kbuild.kernel.kconfig import Fragment
from kbuild.kernel.symvers import ExportedSymbol

logger = logging.getLogger(__name__)

_NAMED_AT_MOST = 12
_LINE_AT_MOST = 300
# The symbol whose CRC is made of struct module and what else the loader reads in a module
# (kernel/module/version.c).
_LAYOUT = "module_layout"
# v1.16: what scripts/link-vmlinux.sh asks for at least.
_OLDEST_PAHOLE = 116


# What a header may gain without a word changing for whoever includes it.
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DECLARATION = re.compile(
    r"(?!typedef\b|static\b)[A-Za-z_][\w *]*[ *]\w+ ?\((?! ?\*)[^{}=]*\)[\w ()]*;"
    r"|(?:struct|union|enum) \w+ ?;"
)
# A type or a function's head in a C file, in the kernel's style: it begins in the first column,
# and so does the brace that ends a type of several lines, or begins a function.
_DEFINED = re.compile(
    r"^(?:(?:(?:typedef|static|const)\s+)*(?:struct|union|enum)\b[^;={}()]*\{(?:[^{}\n]*\}|.*?^\})[^;]*;"
    r"|[A-Za-z_][^;:={}]*\)[\w\s]*(?=^\{))",
    re.MULTILINE | re.DOTALL,
)
_BODY = re.compile(r"^\{.*?^\}", re.MULTILINE | re.DOTALL)  # of a function, by the same style
_DIRECTIVE = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_MACRO = re.compile(r"# ?define (\w+)")


def write_pahole(path: Path, version: int) -> None:
    """Write the stand-in for pahole(1) that puts the distro's BTF into the image.

    ``version`` is CONFIG_PAHOLE_VERSION of the distro (124 for v1.24): Kconfig asks for it.
    Linux 5.10 does not know that option, and its link-vmlinux.sh merely wants v1.16 or later.
    Module BTF refers to string offsets of the BTF that it was made against, so freshly
    generated BTF, though of the same types, would make the kernel refuse every module's.
    """
    version = max(version, _OLDEST_PAHOLE)
    script = f"""#!/bin/sh
# Stands in for pahole in scripts/link-vmlinux.sh: gives vmlinux the distro's own BTF.
set -eu
if [ "$1" = --version ]; then
    echo v{version // 100}.{version % 100:02d}
    exit 0
fi
for file; do :; done
exec objcopy --remove-section=.BTF --add-section .BTF=/mnt/input/distro.btf "$file"
"""
    fs.write_if_changed(path, script, mode=0o755)


def check_compiler(config: Fragment, found: str) -> None:
    """Raise GuardError unless ``found`` (a compiler's first --version line) built the distro's."""
    wanted = config.options.get("CC_VERSION_TEXT", "").strip('"')
    if wanted != found:
        raise GuardError(
            "the compiler is not the one that built the distro's kernel",
            expected=wanted,
            found=found,
            hint="the archive may not have that compiler: build in full with --modules rebuild",
        )


def check_types(pristine: Path, patched: Path, names: Iterable[str]) -> None:
    """Prove that a series leaves alone what the distro's modules were compiled with, and its BTF.

    A CRC knows only the types that the exporting file sees in full, and neither macros nor
    inline functions: so a header that a series changes (``names`` are its files) may gain or
    lose declarations of functions, and nothing else.  Of types that a C file defines for
    itself genksyms takes the name alone (record_compound() in scripts/genksyms/parse.y), but
    the distro's BTF describes them, and each function's head: so none of either may change or
    go, nor may what the preprocessor makes them of.  Raises GuardError with what differs,
    before anything is compiled.
    """
    problems = []
    for name in names:
        # What is new no module of the distro's includes, and no BTF of the distro's knows.
        if not (pristine / name).exists():
            continue
        old = (pristine / name).read_text(errors="replace")
        new = (patched / name).read_text(errors="replace") if (patched / name).exists() else ""
        if name.endswith(".h"):
            lines = difflib.ndiff(_meaning(old), _meaning(new))
            differing = [line for line in lines if line.startswith(("- ", "+ ")) and line[2:]]
        elif name.endswith(".c"):
            before, after = Counter(_described(old)), Counter(_described(new))
            differing = [f"- {piece}" for piece in before - after]
            differing += [
                f"+ {piece}"
                for piece in after - before
                # What is new alone is nothing that could be wrong; beside what is gone it
                # explains it.
                if differing or not _harmless(piece, old)
            ]
        else:
            continue
        problems += [f"{name}: {line[:_LINE_AT_MOST]}" for line in differing]
    if problems:
        raise GuardError(
            "the image may not carry the distro's modules: the series changes what they were "
            "compiled with, or what the distro's BTF describes",
            expected="no change of a header but declarations of functions; "
            "no type, function's head, macro or condition of a C file changed",
            found="\n".join(problems[:_NAMED_AT_MOST]),
            hint="build in full, modules and all, with --modules rebuild",
        )


def _described(text: str) -> list[str]:
    """Return what a C file says of types and functions' heads, each piece in a line.

    That is their definitions, and the preprocessor's directives outside of functions.
    """
    bare = _COMMENT.sub(" ", text).replace("\\\n", " ")
    pieces = [*_DEFINED.findall(bare), *_DIRECTIVE.findall(_BODY.sub(" ", bare))]
    return [" ".join(piece.split()) for piece in pieces]


def _harmless(piece: str, old: str) -> bool:
    """Tell whether a piece that is new in a C file cannot change what the file had before."""
    if not piece.startswith("#"):
        return True
    macro = _MACRO.match(piece)
    if macro is not None:
        return re.search(rf"\b{macro[1]}\b", old) is None
    return re.match(r"# ?include\b", piece) is not None


def _meaning(text: str) -> list[str]:
    """Return what stands in a header, each piece in a line, without declarations and comments."""
    items: list[str] = []
    pending: list[str] = []
    depth = 0

    def flush() -> None:
        item = " ".join("".join(pending).split())
        pending.clear()
        if item and not _DECLARATION.fullmatch(item):
            items.append(item)

    for line in _COMMENT.sub(" ", text).replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#"):
            items.append(" ".join(line.split()))
            continue
        for piece in re.split(r"([{};])", f"{line} "):
            depth += (piece == "{") - (piece == "}")
            pending.append(piece)
            if depth == 0 and piece in (";", "}"):
                flush()
    flush()
    return items


def guard(
    distro: Mapping[str, ExportedSymbol], ours: Mapping[str, ExportedSymbol], series: Series
) -> dict[str, ExportedSymbol]:
    """Prove that the distro's modules load into our image, and return the new exports.

    ``distro`` is the distro's whole Module.symvers, ``ours`` our image's vmlinux.symvers.
    Every symbol of the distro's vmlinux must be in ours with the same CRC, kind and
    namespace, and ours may have exactly the declared exports more.  The CRC of
    ``module_layout`` stands for struct module itself.  Raises GuardError with the names.
    """
    wanted = {name: symbol for name, symbol in distro.items() if symbol.owner == "vmlinux"}
    if not wanted or any(symbol.crc is None for symbol in wanted.values()):
        raise GuardError(
            "the distro's Module.symvers has no CRCs, so nothing can be proved by them",
            hint="build in full instead: --modules rebuild",
        )
    if _LAYOUT not in wanted:
        raise GuardError(
            "the distro's Module.symvers does not prove struct module",
            expected=f"the symbol {_LAYOUT} with its CRC",
            found=f"{len(wanted)} other symbols of vmlinux",
            hint="build in full instead: --modules rebuild",
        )
    missing = sorted(set(wanted) - set(ours))
    changed = sorted(
        name
        for name in set(wanted) & set(ours)
        if (wanted[name].crc, wanted[name].kind, wanted[name].namespace)
        != (ours[name].crc, ours[name].kind, ours[name].namespace)
    )
    added = set(ours) - set(wanted)
    declared = set(series.exports)
    problems = [
        f"{what}: {_names(names)}"
        for what, names in (
            ("CRC, kind or namespace changed", changed),
            ("gone", missing),
            ("not declared", sorted(added - declared)),
            ("declared, but not exported", sorted(declared - added)),
        )
        if names
    ]
    if problems:
        raise GuardError(
            "the image may not carry the distro's modules: its exported symbols differ",
            expected=f"its {len(wanted)} symbols unchanged, and {_names(sorted(declared))}",
            found="\n".join(problems),
            hint="a patch changed a type that modules use: build in full with --modules rebuild",
        )
    logger.info(
        "guard: %d symbols of the distro's image unchanged, exactly %s added",
        len(wanted),
        " and ".join(sorted(declared)),
    )
    return {name: ours[name] for name in sorted(declared)}


def check_image(vmlinux: Path, *, release: str, flags: str, btf: Path) -> None:
    """Prove of the image itself that it takes the distro's modules: vermagic and BTF.

    With CRCs the kernel compares a module's vermagic without its first word, the release
    (same_magic() in kernel/module); ``flags`` is the rest of theirs.  ``btf`` is the distro's
    own section, which the modules' BTF refers to by offset.  Raises GuardError.
    """
    content = vmlinux.read_bytes()
    if f"{release} {flags}\0".encode() not in content:
        there = re.search(
            re.escape(release).encode() + rb" ((?:SMP|preempt|mod_)[^\0]*)\0", content
        )
        raise GuardError(
            "the image may not carry the distro's modules: its vermagic differs",
            expected=f"{release} {flags}",
            found=f"{release} {there[1].decode(errors='replace')}" if there else "no vermagic",
            hint="the configuration is not the distro's: build in full with --modules rebuild",
        )
    if btf_section(content, where=vmlinux) != btf.read_bytes():
        raise GuardError(
            "the image may not carry the distro's modules: its BTF is not the distro's",
            expected=f"the {btf.stat().st_size} bytes of {btf}",
            found=f"other content in the section .BTF of {vmlinux}",
            hint="was pahole run instead of its stand-in? build in full with --modules rebuild",
        )
    logger.info("guard: vermagic '%s' and the distro's own BTF are in the image", flags.strip())


def _names(names: list[str]) -> str:
    if not names:
        return "no other"
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def write_symvers(distro: Path, added: Mapping[str, ExportedSymbol], destination: Path) -> None:
    """Write the Module.symvers of our kernel: the distro's, modules and all, and our exports."""
    lines = [
        f"0x{symbol.crc or 0:08x}\t{symbol.name}\t{symbol.owner}\t{symbol.kind}\t{symbol.namespace}"
        for symbol in added.values()
    ]
    fs.write_atomic(destination, distro.read_text().rstrip("\n") + "\n" + "\n".join(lines) + "\n")
    symvers.read(destination)
