"""The fast path: rebuild the image alone, and keep the distro's own modules.

With CONFIG_MODVERSIONS a module loads into any kernel whose symbols have the CRCs that it
was built against, whatever its release.  Our patch changes no type, so the image is
compiled from the same source with the distro's exact configuration and compiler, and
three things of the distro's own image make it complete: the certificate that its modules
are signed for, its BTF, and its Module.symvers as the yardstick.
"""

from __future__ import annotations

import difflib
import gzip
import io
import logging
import lzma
import re
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kbuild import fs, roots, symvers
from kbuild.errors import BuildError, GuardError
from kbuild.kconfig import Fragment
from kbuild.model import Root, Series
from kbuild.roots import Bind
from kbuild.run import run
from kbuild.symvers import ExportedSymbol

logger = logging.getLogger(__name__)

# Offsets in the bzImage header (Documentation/x86/boot.rst).
_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD = 0x248
_SECTOR = 512
_DECOMPRESS_TIMEOUT_S = 120
# A DER SEQUENCE with a two-byte length, which every certificate of a module key has.
_DER_SEQUENCE = b"\x30\x82"
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


@dataclass(frozen=True)
class DistroImage:
    """What the distro's own image gives to ours."""

    btf: Path  # the .BTF section of its vmlinux, raw
    certificate: Path  # PEM; the key that its modules are signed with


def _lz4(payload: bytes) -> bytes:
    # The kernel uses LZ4's legacy frame, which Python's lz4 package does not read.
    return _filter("lz4", payload)


def _zstd(payload: bytes) -> bytes:
    return _filter("zstd", payload)


def _filter(program: str, payload: bytes) -> bytes:
    # run() returns text; a decompressed kernel is not text, so it goes through files.
    with tempfile.TemporaryDirectory(prefix="cplayground-") as scratch:
        packed, plain = Path(scratch, "packed"), Path(scratch, "plain")
        packed.write_bytes(payload)
        run(
            [program, "-q", "-d", "-f", packed, "-o", plain]
            if program == "zstd"
            else [program, "-q", "-d", "-f", packed, plain],
            timeout_s=_DECOMPRESS_TIMEOUT_S,
        )
        return plain.read_bytes()


# First bytes → decompressor, as in the kernel's lib/decompress.c; all but gzip's streams
# are followed by the unpacked size (scripts/Makefile.lib, size_append).
_FORMATS: Mapping[bytes, tuple[Callable[[bytes], bytes], bool]] = {
    b"\x1f\x8b": (gzip.decompress, False),
    b"\xfd7zXZ\x00": (lzma.decompress, True),
    b"\x02\x21\x4c\x18": (_lz4, True),
    b"\x28\xb5\x2f\xfd": (_zstd, True),
}


def unpack_vmlinuz(path: Path) -> bytes:
    """Return the vmlinux ELF inside a bzImage; raises BuildError for anything else."""
    raw = path.read_bytes()
    if len(raw) < _PAYLOAD + 8 or raw[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise BuildError(f"{path} is not a bzImage", expected="the magic HdrS at offset 0x202")
    start = ((raw[_SETUP_SECTS] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", raw, _PAYLOAD)
    payload = raw[start + offset : start + offset + length]
    for magic, (decompress, size_appended) in _FORMATS.items():
        if payload.startswith(magic):
            try:
                vmlinux = decompress(payload[:-4] if size_appended else payload)
            except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
                raise BuildError(f"the kernel in {path} is damaged: {error}") from error
            if not vmlinux.startswith(b"\x7fELF"):
                raise BuildError(f"the kernel in {path} is not an ELF file")
            return vmlinux
    raise BuildError(
        f"the kernel in {path} is compressed in a way that is not known here",
        expected="gzip, xz, lz4 or zstd",
        found=payload[:8].hex(" "),
    )


def btf_section(vmlinux: bytes, *, where: Path) -> bytes:
    """Return the content of the .BTF section; raises BuildError when there is none."""
    try:
        section = ELFFile(io.BytesIO(vmlinux)).get_section_by_name(".BTF")
    except ELFError as error:
        raise BuildError(f"the kernel in {where} cannot be read: {error}") from error
    if section is None:
        raise BuildError(
            f"the kernel in {where} has no .BTF section",
            hint="build in full instead: --modules rebuild",
        )
    return bytes(section.data())


def find_certificate(vmlinux: bytes, serial: int) -> x509.Certificate | None:
    """Return the X.509 certificate with this serial number that lies in the image, if any.

    The kernel keeps its trusted keys as DER, one after the other, in .init.rodata
    (certs/system_certificates.S).
    """
    encoded = serial.to_bytes(serial.bit_length() // 8 + 1, "big").lstrip(b"\0")
    at = vmlinux.find(encoded)
    while at >= 0:
        # The serial number stands some thirty bytes into its certificate.
        start = vmlinux.rfind(_DER_SEQUENCE, max(0, at - 64), at)
        while start >= 0 and start >= at - 64:
            length = 4 + int.from_bytes(vmlinux[start + 2 : start + 4], "big")
            try:
                certificate = x509.load_der_x509_certificate(vmlinux[start : start + length])
            except ValueError:
                pass
            else:
                if certificate.serial_number == serial:
                    return certificate
            start = vmlinux.rfind(_DER_SEQUENCE, max(0, at - 64), start)
        at = vmlinux.find(encoded, at + 1)
    return None


def signing_serial(root: Root, modules: Path) -> int:
    """Return the serial number of the one key that signed every module below ``modules``.

    Read by modinfo(8) in the root.  Raises BuildError when a module is unsigned or when
    there are several keys.
    """
    completed = roots.enter(
        root,
        ["find", "/mnt/modules", "-name", "*.ko*", "-exec", "modinfo", "-F", "sig_key", "{}", "+"],
        timeout_s=300,
        binds=[Bind(modules, "/mnt/modules")],
    )
    keys = set(completed.stdout.split())
    count = sum(1 for _ in modules.rglob("*.ko*"))
    if len(keys) != 1 or len(completed.stdout.split()) != count:
        raise BuildError(
            "the distro's modules are not all signed with one key",
            expected=f"{count} modules, one key",
            found=f"{len(completed.stdout.split())} signatures, {len(keys)} key(s)",
            hint="build in full instead: --modules rebuild",
        )
    return int(keys.pop().replace(":", ""), 16)


def extract(root: Root, vmlinuz: Path, modules: Path, destination: Path) -> DistroImage:
    """Take BTF and signing certificate out of the distro's image, into ``destination``."""
    vmlinux = unpack_vmlinuz(vmlinuz)
    serial = signing_serial(root, modules)
    certificate = find_certificate(vmlinux, serial)
    if certificate is None:
        raise BuildError(
            f"the certificate that the distro's modules are signed for is not in {vmlinuz}",
            expected=f"an X.509 certificate with serial number {serial:X}",
            hint="build in full instead: --modules rebuild",
        )
    result = DistroImage(destination / "distro.btf", destination / "distro-modules.pem")
    # An unchanged certificate must not relink the kernel.
    fs.write_if_changed(result.btf, btf_section(vmlinux, where=vmlinuz))
    fs.write_if_changed(result.certificate, certificate.public_bytes(Encoding.PEM))
    return result


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


def vermagic_flags(root: Root, modules: Path) -> str:
    """Return what follows the release in the one vermagic of all modules below ``modules``.

    Raises BuildError when they have several, or one of them has none.
    """
    completed = roots.enter(
        root,
        ["find", "/mnt/modules", "-name", "*.ko*", "-exec", "modinfo", "-F", "vermagic", "{}", "+"],
        timeout_s=300,
        binds=[Bind(modules, "/mnt/modules")],
    )
    lines = completed.stdout.splitlines()
    found = {line.partition(" ")[2] for line in lines}
    count = sum(1 for _ in modules.rglob("*.ko*"))
    if len(found) != 1 or len(lines) != count:
        raise BuildError(
            "the distro's modules have not one vermagic",
            expected=f"{count} modules, one vermagic",
            found=f"{len(lines)} with one: {'; '.join(sorted(found)) or 'none'}",
            hint="build in full instead: --modules rebuild",
        )
    return found.pop()


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
