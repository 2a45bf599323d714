"""Debian's kernel image: its BTF, its signing certificate, and its vmlinux."""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.kernel import debian_image
from tests.unit import toy


def test_btf_and_certificate_come_out_of_the_image(tmp_path: Path) -> None:
    image = toy.make(tmp_path).image / "boot" / f"vmlinuz-{toy.RELEASE}"
    vmlinux = debian_image.unpack_vmlinuz(image)
    assert debian_image.btf_section(vmlinux, where=image) == toy.BTF
    certificate = debian_image.find_certificate(vmlinux, toy.SERIAL)
    assert isinstance(certificate, x509.Certificate)
    assert certificate.serial_number == toy.SERIAL
    assert debian_image.find_certificate(vmlinux, toy.SERIAL + 1) is None


def test_the_serial_alone_is_no_certificate() -> None:
    bare = toy.elf(toy.BTF, b"\x30\x82\x01\x00" + toy.SERIAL.to_bytes(20, "big") + bytes(300))
    assert debian_image.find_certificate(bare, toy.SERIAL) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MZ" + bytes(2000), "is not a bzImage"),
        (b"", "is not a bzImage"),
        (toy.bz_image(b"no ELF"), "not an ELF"),
        (
            toy.bz_image(toy.elf(None, b"x")).replace(b"\x1f\x8b", b"\x00\x00", 1),
            "unknown compression",
        ),
    ],
)
def test_a_bad_image_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=words):
        debian_image.unpack_vmlinuz(path)


@pytest.mark.parametrize("packer", ["lz4 -l -9", "zstd -19", "xz"])
def test_every_compression_that_debian_uses_is_undone(packer: str, tmp_path: Path) -> None:
    # cloud-amd64 of 5.10 and 6.1 is lz4's, amd64 xz's, and 6.12 and 7.3 are zstd's.
    vmlinux = toy.elf(toy.BTF, bytes(range(256)) * 64)
    if packer == "xz":
        packed = lzma.compress(vmlinux, check=lzma.CHECK_CRC32)
    else:
        command = [*packer.split(), "-q", "-c"]
        packed = subprocess.run(command, input=vmlinux, capture_output=True, check=True).stdout
    path = tmp_path / "vmlinuz"
    # scripts/Makefile.lib puts the size behind each of them.
    path.write_bytes(toy.bz_image(b"", packed + struct.pack("<I", len(vmlinux))))
    assert debian_image.unpack_vmlinuz(path) == vmlinux


def test_a_damaged_payload_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    whole = toy.bz_image(toy.elf(toy.BTF, bytes(range(256)) * 8))
    begin = whole.index(b"\x1f\x8b") + 10
    for damage in (b"\xff" * 8, bytes(8)):
        path.write_bytes(whole[:begin] + damage + whole[begin + 8 :])
        with pytest.raises(BuildError, match="is damaged"):
            debian_image.unpack_vmlinuz(path)


def test_an_image_without_btf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no \.BTF section"):
        debian_image.btf_section(toy.elf(None, b"x"), where=tmp_path)


def test_unchanged_inputs_keep_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # make would link the kernel again for a certificate that is only newer.
    distro = toy.make(tmp_path)
    monkeypatch.setenv("PATH", f"{toy.FAKE_TOOLS}:{os.environ['PATH']}")
    image, root = distro.image / "boot" / f"vmlinuz-{toy.RELEASE}", Root("bookworm", tmp_path, "d")
    given = debian_image.extract(root, image, distro.image, tmp_path / "input")
    for path in (given.btf, given.certificate):
        os.utime(path, ns=(1, 1))
    again = debian_image.extract(root, image, distro.image, tmp_path / "input")
    assert [path.stat().st_mtime_ns for path in (again.btf, again.certificate)] == [1, 1]
