"""Guard the fast path: prove that the distro's own modules fit an image that we rebuilt.

With CONFIG_MODVERSIONS a module loads into any kernel with the symbol CRCs that the module was
built for, whatever the kernel's release.  Our patch changes no type.  So the image alone is
compiled, from the same source with the distro's exact configuration and compiler.  Three
parts of the distro's own image complete it: the certificate for its modules, its BTF, and its
Module.symvers to compare with.
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
# The CRC of this symbol covers struct module and everything else that the loader reads in a
# module (kernel/module/version.c).
_LAYOUT = "module_layout"
# v1.16: the minimum in scripts/link-vmlinux.sh.
_OLDEST_PAHOLE = 116


# Declarations that a header may gain without affecting the files that include it.
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DECLARATION = re.compile(
    r"(?!typedef\b|static\b)[A-Za-z_][\w *]*[ *]\w+ ?\((?! ?\*)[^{}=]*\)[\w ()]*;"
    r"|(?:struct|union|enum) \w+ ?;"
)
# A type or a function's head in a C file, in the kernel's style.  It begins in the first column.
# So does the brace that ends a type of several lines or that begins a function.
_DEFINED = re.compile(
    r"^(?:(?:(?:typedef|static|const)\s+)*(?:struct|union|enum)\b[^;={}()]*\{(?:[^{}\n]*\}|.*?^\})[^;]*;"
    r"|[A-Za-z_][^;:={}]*\)[\w\s]*(?=^\{))",
    re.MULTILINE | re.DOTALL,
)  # a function's, in the same style
_BODY = re.compile(r"^\{.*?^\}", re.MULTILINE | re.DOTALL)  # of a function, by the same style
_DIRECTIVE = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_MACRO = re.compile(r"# ?define (\w+)")


def write_pahole(path: Path, version: int) -> None:
    """Write a stand-in for pahole(1) that puts the distro's BTF into the image.

    ``version`` is the distro's CONFIG_PAHOLE_VERSION (124 for v1.24), which Kconfig checks.
    Linux 5.10 does not have that option; its link-vmlinux.sh only requires v1.16 or later.
    Module BTF refers to string offsets of the BTF that it was made against.  Freshly generated
    BTF has the same types, but the kernel would refuse the BTF of every module.
    """
    version = max(version, _OLDEST_PAHOLE)
    script = f"""#!/bin/sh
# Stand-in for pahole in scripts/link-vmlinux.sh: it gives vmlinux the distro's own BTF.
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
    """Raise GuardError unless a compiler with this first --version line built the distro's."""
    wanted = config.options.get("CC_VERSION_TEXT", "").strip('"')
    if wanted != found:
        raise GuardError(
            "the compiler is not the one that built the distro's kernel",
            expected=wanted,
            found=found,
            hint="the archive may not have that compiler any more: build in full with "
            "--modules rebuild",
        )


def check_types(pristine: Path, patched: Path, names: Iterable[str]) -> None:
    """Check that a series changes nothing that the distro's modules or its BTF depend on.

    A CRC covers only the types that the exporting file sees in full, and neither macros nor
    inline functions.  So a header that the series changes (``names`` are its files) may gain or
    lose declarations of functions, and nothing else.
    For a type that a C file defines for itself, genksyms uses only the name (record_compound()
    in scripts/genksyms/parse.y).  But the distro's BTF describes that type, and the head of each
    function.  So no such type or head may change or go, nor may the macros and conditions that
    produce it.  Raises GuardError with the differences, before anything is compiled.
    """
    problems = []
    for name in names:
        # The distro's modules include no new file, and its BTF knows none.
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
                # A new piece is no fault by itself.  Next to a missing piece, it explains the
                # change.
                if differing or not _harmless(piece, old)
            ]
        else:
            continue
        problems += [f"{name}: {line[:_LINE_AT_MOST]}" for line in differing]
    if problems:
        raise GuardError(
            "the image cannot carry the distro's modules: the series changes what they were "
            "compiled with, or what the distro's BTF describes",
            expected="in headers, only declarations of functions change; "
            "in C files, no type, function's head, macro or condition changes",
            found="\n".join(problems[:_NAMED_AT_MOST]),
            hint="build everything, modules too, with --modules rebuild",
        )


def _described(text: str) -> list[str]:
    """Return the definitions of types and the functions' heads in a C file, one piece a line.

    The preprocessor's directives outside of functions count too.
    """
    bare = _COMMENT.sub(" ", text).replace("\\\n", " ")
    pieces = [*_DEFINED.findall(bare), *_DIRECTIVE.findall(_BODY.sub(" ", bare))]
    return [" ".join(piece.split()) for piece in pieces]


def _harmless(piece: str, old: str) -> bool:
    """Return whether a new piece in a C file leaves the meaning of the old pieces unchanged."""
    if not piece.startswith("#"):
        return True
    macro = _MACRO.match(piece)
    if macro is not None:
        return re.search(rf"\b{macro[1]}\b", old) is None
    return re.match(r"# ?include\b", piece) is not None


def _meaning(text: str) -> list[str]:
    """Return the content of a header, one piece a line, without declarations and comments."""
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
    """Check that the distro's modules load into our image, and return the new exports.

    ``distro`` is the distro's whole Module.symvers, ``ours`` our image's vmlinux.symvers.
    Every symbol of the distro's vmlinux must be in ours with the same CRC, kind and
    namespace.  Ours must have exactly the declared exports in addition.  The CRC of
    ``module_layout`` covers struct module itself.  Raises GuardError with the names.
    """
    wanted = {name: symbol for name, symbol in distro.items() if symbol.owner == "vmlinux"}
    if not wanted or any(symbol.crc is None for symbol in wanted.values()):
        raise GuardError(
            "the distro's Module.symvers has no CRCs, so it proves nothing",
            hint="build in full instead: --modules rebuild",
        )
    if _LAYOUT not in wanted:
        raise GuardError(
            "the distro's Module.symvers does not cover struct module",
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
            "the image cannot carry the distro's modules: its exported symbols differ",
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
    """Check that the image itself takes the distro's modules: vermagic and BTF.

    With CRCs the kernel ignores the first word of a module's vermagic, the release
    (same_magic() in kernel/module).  ``flags`` is the rest of the modules' vermagic.  ``btf`` is
    the distro's own section, which the modules' BTF refers to by offset.  Raises GuardError.
    """
    content = vmlinux.read_bytes()
    if f"{release} {flags}\0".encode() not in content:
        there = re.search(
            re.escape(release).encode() + rb" ((?:SMP|preempt|mod_)[^\0]*)\0", content
        )
        raise GuardError(
            "the image cannot carry the distro's modules: its vermagic differs",
            expected=f"{release} {flags}",
            found=f"{release} {there[1].decode(errors='replace')}" if there else "no vermagic",
            hint="the configuration is not the distro's: build in full with --modules rebuild",
        )
    if btf_section(content, where=vmlinux) != btf.read_bytes():
        raise GuardError(
            "the image cannot carry the distro's modules: its BTF is not the distro's",
            expected=f"the {btf.stat().st_size} bytes of {btf}",
            found=f"other content in the section .BTF of {vmlinux}",
            hint="did pahole run instead of its stand-in? build in full with --modules rebuild",
        )
    logger.info("guard: vermagic '%s' and the distro's own BTF are in the image", flags.strip())


def _names(names: list[str]) -> str:
    if not names:
        return "no other"
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def write_symvers(distro: Path, added: Mapping[str, ExportedSymbol], destination: Path) -> None:
    """Write our kernel's Module.symvers: the distro's, modules included, and our exports."""
    lines = [
        f"0x{symbol.crc or 0:08x}\t{symbol.name}\t{symbol.owner}\t{symbol.kind}\t{symbol.namespace}"
        for symbol in added.values()
    ]
    fs.write_atomic(destination, distro.read_text().rstrip("\n") + "\n" + "\n".join(lines) + "\n")
    symvers.read(destination)
