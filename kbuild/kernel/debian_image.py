"""Read Debian's kernel image: its BTF, its signing certificate, its modules' vermagic."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kbuild.core import fs, sandbox
from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.run import run
from kbuild.core.sandbox import Bind

# Offsets in the bzImage header (Documentation/x86/boot.rst).
_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_PAYLOAD = 0x248
_SECTOR = 512
_DECOMPRESS_TIMEOUT_S = 120
# A DER SEQUENCE with a two-byte length; every module key's certificate begins with one.
_DER_SEQUENCE = b"\x30\x82"


@dataclass(frozen=True)
class DistroImage:
    """The parts of the distro's own image that our image reuses."""

    btf: Path  # the .BTF section of its vmlinux, raw
    certificate: Path  # PEM; of the key that signed its modules


def _lz4(payload: bytes) -> bytes:
    # The kernel uses LZ4's legacy frame, which Python's lz4 package cannot read.
    return _filter("lz4", payload)


def _zstd(payload: bytes) -> bytes:
    return _filter("zstd", payload)


def _filter(program: str, payload: bytes) -> bytes:
    # run() returns text, and a decompressed kernel is not text, so it goes through files.
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


# First bytes → decompressor, as in the kernel's lib/decompress.c.  The unpacked size follows each
# stream but gzip's (scripts/Makefile.lib, size_append).
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
        f"the kernel in {path} has an unknown compression",
        expected="gzip, xz, lz4 or zstd",
        found=payload[:8].hex(" "),
        hint="build in full instead: --modules rebuild",
    )


def btf_section(vmlinux: bytes, *, where: Path) -> bytes:
    """Return the content of the .BTF section; raises BuildError if there is none."""
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
    """Find the X.509 certificate with this serial number in the image; None if it has none.

    The kernel keeps its trusted keys as DER, one after the other, in .init.rodata
    (certs/system_certificates.S).
    """
    encoded = serial.to_bytes(serial.bit_length() // 8 + 1, "big").lstrip(b"\0")
    at = vmlinux.find(encoded)
    while at >= 0:
        # The serial number is some thirty bytes after the start of its certificate.
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

    modinfo(8) reads it in the root.  Raises BuildError if a module is unsigned or if there are
    several keys.
    """
    completed = sandbox.enter(
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
    """Copy BTF and signing certificate from the distro's image into ``destination``."""
    vmlinux = unpack_vmlinuz(vmlinuz)
    serial = signing_serial(root, modules)
    certificate = find_certificate(vmlinux, serial)
    if certificate is None:
        raise BuildError(
            f"{vmlinuz} does not contain the certificate for the distro's modules",
            expected=f"an X.509 certificate with serial number {serial:X}",
            hint="build in full instead: --modules rebuild",
        )
    result = DistroImage(destination / "distro.btf", destination / "distro-modules.pem")
    # An unchanged certificate must not relink the kernel.
    fs.write_if_changed(result.btf, btf_section(vmlinux, where=vmlinuz))
    fs.write_if_changed(result.certificate, certificate.public_bytes(Encoding.PEM))
    return result


def vermagic_flags(root: Root, modules: Path) -> str:
    """Return the text after the release in the vermagic that all modules below ``modules`` share.

    Raises BuildError if they have several, or if a module has none.
    """
    completed = sandbox.enter(
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
            "the distro's modules do not share one vermagic",
            expected=f"{count} modules, one vermagic",
            found=f"{len(lines)} with a vermagic: {'; '.join(sorted(found)) or 'none'}",
            hint="build in full instead: --modules rebuild",
        )
    return found.pop()
