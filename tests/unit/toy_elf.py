"""The smallest ELF file that serves the unit tests; also read by the stand-in for make."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence


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


def module(
    info: Mapping[str, str], undefined: Sequence[str], crcs: Mapping[str, int] | None = None
) -> bytes:
    """Return a relocatable ELF file with nothing in it but what is read of a kernel module."""
    modinfo = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    strings, symbols = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    # bind and type: 0x10 is a global symbol, 0x20 a weak one; section 0 is "undefined".
    for name, bind in (*((name, 0x10) for name in undefined), ("maybe", 0x20)):
        symbols += struct.pack("<IBBHQQ", len(strings), bind, 0, 0, 0, 0)
        strings += name.encode() + b"\0"
    sections = [(".modinfo", 1, modinfo, 0, 0), (".strtab", 3, strings, 0, 0)]
    sections.append((".symtab", 2, symbols, 2, 24))
    if crcs is not None:
        versions = b"".join(struct.pack("<Q56s", crc, n.encode()) for n, crc in crcs.items())
        sections.append(("__versions", 1, versions, 0, 0))
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    sections.append((".shstrtab", 3, names, 0, 0))

    body, headers = b"", bytes(64)
    for name, kind, data, link, size in sections:
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        offset = 64 + len(body)
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, offset, len(data), link, 1, 1, size)
        body += data
    start = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(sections) + 1, len(sections)),
    )
    return start + body + headers
