"""The smallest ELF file that serves the unit tests; also read by the stand-in for make."""

from __future__ import annotations

import struct


def elf(btf: bytes | None, rodata: bytes) -> bytes:
    """Return a 64-bit ELF with a .BTF section (unless None) and ``rodata``."""
    names = b"\0.shstrtab\0.rodata\0.BTF\0"
    header_size, entry_size = 64, 64
    body = b"".join((names, rodata, btf or b""))
    at = [header_size, header_size + len(names), header_size + len(names) + len(rodata)]
    sections = [struct.pack("<IIQQQQIIQQ", *([0] * 10))]
    for name, kind, offset, size in (
        (b".shstrtab", 3, at[0], len(names)),
        (b".rodata", 1, at[1], len(rodata)),
        (b".BTF", 1, at[2], len(btf or b"")),
    ):
        if name != b".BTF" or btf is not None:
            sections.append(
                struct.pack("<IIQQQQIIQQ", names.index(name), kind, 0, 0, offset, size, 0, 0, 1, 0)
            )
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    table = header_size + len(body)
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, header_size, 0, 0, entry_size, len(sections), 1
    )
    return head + body + b"".join(sections)
