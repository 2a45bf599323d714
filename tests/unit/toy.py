"""A toy distro: a kernel tree, its packages' content and its image, small enough to read."""

from __future__ import annotations

import datetime
import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from kbuild.core.model import Base, VerifiedFile
from tests.unit.toy_elf import elf as elf

FAKE_TOOLS = Path(__file__).parent / "fake"
SERIAL = 0x1BA0DB9DB017069F062A9E8AEB3E708E9BE894C4
BTF = b"\x9f\xeb\x01\x00toy types"
RELEASE = "6.1.0-56-cloud-amd64"

_DATA = Path(__file__).parent / "data/toy"
FILE_C = (_DATA / "file.c").read_text()
PATCH = (_DATA / "export.patch").read_text()
FDTABLE_H = "struct files_struct;\nvoid put_files_struct(struct files_struct *fs);\n"
CONFIG = """\
CONFIG_CC_VERSION_TEXT="gcc-12 (Toy) 12.2.0"
CONFIG_PAHOLE_VERSION=124
CONFIG_MODVERSIONS=y
CONFIG_MODULES=y
# CONFIG_KASAN is not set
"""


@dataclass(frozen=True)
class ToyDistro:
    """The directories of the toy distro's pieces."""

    pristine: Path
    patches: Path
    image: Path  # the unpacked linux-image package
    headers: Path  # the unpacked linux-headers package
    base: Base


def make(where: Path) -> ToyDistro:
    """Write a toy distro below ``where``."""
    pristine = where / "pristine"
    write(pristine / "fs/file.c", FILE_C)
    write(pristine / "fs/open.c", "int open(void)\n{\n}\nEXPORT_SYMBOL(open);\n")
    layout = "void module_layout(void)\n{\n}\nEXPORT_SYMBOL(module_layout);\n"
    write(pristine / "kernel/module.c", layout)
    write(pristine / "include/linux/fdtable.h", FDTABLE_H)
    patches = where / "patches"
    write(patches / "5.11/series", "export.patch\n")
    write(patches / "5.11/range", ">=5.11,<8\n")
    write(patches / "5.11/export.patch", PATCH)
    image, headers = where / "image", where / "headers"
    write(image / "boot" / f"vmlinuz-{RELEASE}", bz_image(elf(BTF, certificate(SERIAL))))
    module = image / "lib/modules" / RELEASE / "kernel/fs/toy.ko"
    write(module, "1B:A0:DB:9D:B0:17:06:9F:06:2A:9E:8A:EB:3E:70:8E:9B:E8:94:C4\n")
    include = headers / "usr/src" / f"linux-headers-{RELEASE}"
    write(include / ".config", CONFIG)
    names = ("exit_files", "module_layout", "open")
    crc = {n: zlib.crc32(n.encode() + FDTABLE_H.encode()) for n in names}
    write(
        include / "Module.symvers",
        "".join(f"0x{crc[n]:08x}\t{n}\tvmlinux\tEXPORT_SYMBOL\t\n" for n in sorted(crc))
        + "0x12345678\text4_thing\tfs/ext4/ext4\tEXPORT_SYMBOL_GPL\t\n",
    )

    return ToyDistro(pristine, patches, image, headers, base(where))


def base(where: Path) -> Base:
    """Return the toy distro's kernel, its packages below ``where``."""

    def file(name: str) -> VerifiedFile:
        return VerifiedFile(name, "6.1.192-2", where / f"{name}.deb", "0" * 64, 1)

    return Base(
        suite="bookworm",
        flavour="cloud-amd64",
        version="6.1.192-2",
        abi="6.1.0-56",
        signers=("F" * 40,),
        source=file("linux-source-6.1"),
        image=file(f"linux-image-{RELEASE}"),
        headers=file(f"linux-headers-{RELEASE}"),
    )


def write(path: Path, content: str | bytes) -> None:
    """Write a file with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def certificate(serial: int) -> bytes:
    """Return a self-signed certificate in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "toy module key " * 4)])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def bz_image(vmlinux: bytes, payload: bytes | None = None) -> bytes:
    """Wrap a vmlinux, gzip-compressed or as ``payload``, as a bzImage by the x86 boot protocol."""
    payload = gzip.compress(vmlinux, mtime=0) if payload is None else payload
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload + bytes(64)
